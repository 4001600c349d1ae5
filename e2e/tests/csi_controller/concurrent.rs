//! The same call many times at once.

use ::csi::proto::csi::volume_capability::access_mode::Mode;
use anyhow::{Context as _, Result, ensure};
use e2e::lab::CsiController;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::stage::{MIB, Plugin, SIZE_MIB, Stage, asked, capability};

const CALLS: usize = 16;

/// A life in calls.
#[derive(Clone, Copy, Debug)]
enum Call {
    Create,
    Publish,
    Expand,
    Modify,
    Unpublish,
    Delete,
}

const LIFE: [Call; 6] =
    [Call::Create, Call::Publish, Call::Expand, Call::Modify, Call::Unpublish, Call::Delete];

async fn call(mut plugin: Plugin, call: Call, id: Uuid) -> Result<String, Status> {
    let volume = id.to_string();
    match call {
        Call::Create => {
            let request = asked(&format!("pvc-{id}"), SIZE_MIB, &[]);
            Ok(plugin.create(request).await?.volume_id)
        }
        Call::Publish => Ok(plugin.publish(&volume, "node-1").await?["uri"].clone()),
        Call::Expand => {
            let range = (2 * SIZE_MIB * MIB, 0);
            let grown = plugin.expand(&volume, range, capability(Mode::SingleNodeWriter)).await?;
            Ok(grown.capacity_bytes.to_string())
        }
        Call::Modify => plugin.modify(&volume, &[("repl", "2")]).await.map(|()| String::new()),
        Call::Unpublish => plugin.unpublish(&volume, "node-1").await.map(|()| String::new()),
        Call::Delete => plugin.delete(&volume).await.map(|()| String::new()),
    }
}

/// Those that are not at work are told to come again (CSI, "Concurrency"), and then find it done.
async fn life(plugins: &[Plugin], id: Uuid) -> Result<()> {
    for step in LIFE {
        let calls: Vec<_> = (0..CALLS)
            .map(|number| tokio::spawn(call(plugins[number % plugins.len()].clone(), step, id)))
            .collect();
        let mut answers = Vec::new();
        for call in calls {
            match call.await? {
                Ok(answer) => answers.push(answer),
                Err(status) => ensure!(status.code() == Code::Aborted, "{step:?}: {status:?}"),
            }
        }
        let first = answers.first().with_context(|| format!("{step:?}: nobody was at work"))?;
        ensure!(answers.iter().all(|answer| answer == first), "{step:?}: {answers:?}");
        let again = call(plugins[0].clone(), step, id).await?;
        ensure!(again == *first, "{step:?}: {again} after {first}");
    }
    Ok(())
}

pub(crate) async fn of_sixteen_identical_calls_all_end_alike(stage: &mut Stage) -> Result<()> {
    life(&[stage.plugin()?], Uuid::new_v4()).await?;
    ensure!(stage.rest.volumes().await?.entries.is_empty());
    Ok(())
}

/// While one takes over from another, both may be called: then the control plane keeps the order.
pub(crate) async fn two_plugins_are_as_good_as_one(stage: &mut Stage) -> Result<()> {
    let folder = stage.lab.run.path().join("second-plugin");
    std::fs::create_dir(&folder)?;
    let second = CsiController::start(&stage.lab.processes, &folder, &stage.wire.url()).await?;
    life(&[stage.plugin()?, Plugin(second.client()?)], Uuid::new_v4()).await?;
    ensure!(stage.rest.volumes().await?.entries.is_empty());
    Ok(())
}
