//! What a node agent counts and measures, for Prometheus.

use std::time::Duration;

use csi::host::probe::Outcome;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

use super::table::Standing;

/// The figures. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    paths: Family<ByStanding, Gauge>,
    changes: Family<ByStanding, Counter>,
    pub(super) volumes_lost: Gauge,
    pub(super) volumes_given_up: Counter,
    probes: Family<ByOutcome, Counter>,
    reports: Family<ByCode, Counter>,
    registrations: Family<ByCode, Counter>,
    replacements: Family<ByCode, Counter>,
    replacement_duration: Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum StandingLabel {
    Newcomer,
    Live,
    Suspected,
    Failed,
    Leaving,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStanding {
    standing: StandingLabel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum OutcomeLabel {
    Answered,
    Refused,
    Silent,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: OutcomeLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: String,
}

/// A code of gRPC by its name: there are seventeen.
fn by(code: Code) -> ByCode {
    ByCode { code: format!("{code:?}") }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            paths: Family::default(),
            changes: Family::default(),
            volumes_lost: Gauge::default(),
            volumes_given_up: Counter::default(),
            probes: Family::default(),
            reports: Family::default(),
            registrations: Family::default(),
            replacements: Family::default(),
            replacement_duration: Histogram::new(exponential_buckets(0.01, 2.0, 13)),
        }
    }
}

impl Metrics {
    /// Shows them in a registry, with names that begin with `ha_node_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ha_node");
        registry.register("paths", "Paths to volumes of ours, by standing", self.paths.clone());
        registry.register("path_changes", "Paths that came to a standing", self.changes.clone());
        registry.register(
            "volumes_lost",
            "Volumes without a path that carries I/O",
            self.volumes_lost.clone(),
        );
        registry.register(
            "volumes_given_up",
            "Volumes whose last path went while it was lost",
            self.volumes_given_up.clone(),
        );
        registry.register("probes", "Targets asked whether they are there, by outcome", self.probes.clone());
        registry.register("reports", "Answers to reported volumes, by code", self.reports.clone());
        registry.register("registrations", "Answers to registrations, by code", self.registrations.clone());
        registry.register(
            "path_replacements",
            "Paths to be replaced, by how it went",
            self.replacements.clone(),
        );
        registry.register_with_unit(
            "path_replacement_duration",
            "How long a path took that was replaced",
            Unit::Seconds,
            self.replacement_duration.clone(),
        );
    }

    pub(super) fn stand(&self, standings: impl Iterator<Item = Standing>) {
        let labels = [
            StandingLabel::Newcomer,
            StandingLabel::Live,
            StandingLabel::Suspected,
            StandingLabel::Failed,
            StandingLabel::Leaving,
        ];
        let mut counts = [0; 5];
        for standing in standings {
            let place = labels.iter().position(|label| *label == self::label(standing));
            counts[place.expect("every label is among them")] += 1;
        }
        for (standing, count) in labels.into_iter().zip(counts) {
            self.paths.get_or_create(&ByStanding { standing }).set(count);
        }
    }

    pub(super) fn changed(&self, standing: Standing) {
        self.changes.get_or_create(&ByStanding { standing: label(standing) }).inc();
    }

    pub(super) fn probed(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Answered => OutcomeLabel::Answered,
            Outcome::Refused => OutcomeLabel::Refused,
            Outcome::Silent => OutcomeLabel::Silent,
        };
        self.probes.get_or_create(&ByOutcome { outcome }).inc();
    }

    pub(super) fn reported(&self, code: Code) {
        self.reports.get_or_create(&by(code)).inc();
    }

    pub(super) fn registered(&self, code: Code) {
        self.registrations.get_or_create(&by(code)).inc();
    }

    pub(super) fn replaced(&self, code: Code, after: Duration) {
        self.replacements.get_or_create(&by(code)).inc();
        if code == Code::Ok {
            self.replacement_duration.observe(after.as_secs_f64());
        }
    }
}

fn label(standing: Standing) -> StandingLabel {
    match standing {
        Standing::Newcomer => StandingLabel::Newcomer,
        Standing::Live => StandingLabel::Live,
        Standing::Suspected { .. } => StandingLabel::Suspected,
        Standing::Failed(_) => StandingLabel::Failed,
        Standing::Leaving => StandingLabel::Leaving,
    }
}
