//! What the cluster agent's log says of a volume is shown, whoever died in the middle.

use std::sync::Arc;
use std::time::Duration;

use operator::kube::port::{ControlPlane, Standing, Transition};
use operator::plane::Plane;
use operator::volume::switchover::{Switchover, follow};
use serde_json::{Value, json};
use store::{Operation, Store, Transaction};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lab::{Lab, Operator, keys, on, volume};

const V: Uuid = Uuid::from_u128(7);

fn key() -> String {
    keys().object("SwitchOver", &V.to_string())
}

async fn put(lab: &Lab, record: &Value) {
    let put = Operation::Put { key: key(), value: record.to_string().into_bytes(), lease: None };
    lab.store.transact(&Transaction { when: vec![], then: vec![put] }).await.unwrap();
}

async fn remove(lab: &Lab) {
    let delete = Operation::Delete { key: key() };
    lab.store.transact(&Transaction { when: vec![], then: vec![delete] }).await.unwrap();
}

fn record(stage: &str) -> Value {
    let mut record: Value =
        serde_json::from_str(include_str!("../../../ha/src/cluster/record/golden.json")).unwrap();
    record["volume"] = json!(V.to_string());
    record["stage"] = json!(stage);
    record
}

struct Shown {
    operator: Operator,
    plane: Arc<Plane>,
    following: JoinHandle<()>,
}

impl Shown {
    fn by(operator: Operator) -> Self {
        let core = operator.core.clone();
        let following = tokio::spawn(async move { follow(&core, CancellationToken::new()).await });
        let plane = Plane::new(operator.core.clone(), "mayastor");
        Self { operator, plane, following }
    }

    /// Waits until it is shown in the log's words; what is at the Nexus then.
    async fn until(&self, stage: &str, is_over: bool) -> Transition {
        let is_so = |shown: &Switchover| shown.stage == stage && shown.is_over == is_over;
        let waiting = async {
            while !self.operator.core.volumes().switchover(V).is_some_and(|shown| is_so(&shown)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| {
            panic!("waited for {stage}: {:?}", self.operator.core.volumes().switchover(V));
        });
        let name = V.to_string();
        let Standing::Exists(nexus) = self.plane.nexus(&name) else { panic!("published") };
        let Standing::Exists(volume) = self.plane.volume(&name) else { panic!("made") };
        assert_eq!(nexus.transitions, volume.transitions);
        let [shown] = &nexus.transitions[..] else { panic!("{:?}", nexus.transitions) };
        shown.clone()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.following.abort();
    }
}

async fn published(lab: &Lab) -> Operator {
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    operator
}

#[tokio::test(start_paused = true)]
async fn every_stage_of_a_switchover_and_its_end_are_shown_at_the_nexus() {
    let lab = Lab::new(&["a", "b"]);
    let shown = Shown::by(published(&lab).await);
    for stage in ["Init", "RepublishVolume", "ReplacePath", "DeleteTarget"] {
        put(&lab, &record(stage)).await;
        let told = shown.until(stage, false).await;
        assert!(!told.is_over && !told.is_planned);
        assert_eq!(told.obstacle.as_deref(), Some("AgentAway: waiting for the agent on a to register"));
    }
    remove(&lab).await;
    let told = shown.until("Successful", true).await;
    assert!(told.is_over && told.message.contains("moved from node n1 to node n2"), "{}", told.message);
    let mut given_up = record("Errored");
    given_up["given_up"] = json!("NotPublished");
    put(&lab, &given_up).await;
    shown.until("Errored", false).await;
    remove(&lab).await;
    let told = shown.until("Errored", true).await;
    assert!(told.message.contains("given up, NotPublished"), "{}", told.message);
}

/// Neither the death of the cluster agent nor that of the operator in the middle of it makes it look finished, and a
/// record that cannot be read hides no other.
#[tokio::test(start_paused = true)]
async fn a_switchover_whose_cluster_agent_died_is_shown_until_the_next_has_ended_it() {
    let lab = Lab::new(&["a", "b"]);
    let first = Shown::by(published(&lab).await);
    let foreign = Operation::Put {
        key: keys().object("SwitchOver", "x"),
        value: br#"{"volume":"x","stage":7}"#.to_vec(),
        lease: None,
    };
    lab.store.transact(&Transaction { when: vec![], then: vec![foreign] }).await.unwrap();
    put(&lab, &record("ReplacePath")).await;
    first.until("ReplacePath", false).await;
    drop(first);
    let next = Shown::by(lab.operator().await);
    let told = next.until("ReplacePath", false).await;
    assert!(!told.is_over);
    // The watch breaks, and while it is away the switchover ends.
    lab.store.set_down(true);
    lab.store.set_down(false);
    remove(&lab).await;
    next.until("Cancelled", true).await;
}
