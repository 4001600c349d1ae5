//! What a cluster agent counts and measures, for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::ports::{PathError, PathErrorKind};
use super::reason::GiveUp;
use super::record::Stage;
use super::step::{Answer, Outcome};
use super::switchovers::Reported;

/// The figures. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    is_leading: Gauge,
    begun: Family<ByCause, Counter>,
    ended: Family<ByEnd, Counter>,
    duration: Family<ByEnd, Histogram>,
    stage_duration: Family<ByStage, Histogram>,
    pub(super) underway: Gauge,
    pub(super) queued: Gauge,
    reports: Family<ByAnswer, Counter>,
    paths: Family<ByPath, Counter>,
    pub(super) registrations: Counter,
    pub(super) hosts_ready: Counter,
}

/// How a switchover came to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Cause {
    /// A host has reported its loss.
    Reported,
    /// Another leader had left it in the log.
    Replayed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCause {
    cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum End {
    Successful,
    Healed,
    Errored,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Reason {
    None,
    VolumeGone,
    NotPublished,
    NotAllowed,
    NoLostPath,
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByEnd {
    outcome: End,
    reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum StageLabel {
    Init,
    RepublishVolume,
    ReplacePath,
    DeleteTarget,
    Errored,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStage {
    stage: StageLabel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum AnswerLabel {
    Taken,
    AlreadyTaken,
    Later,
    Full,
    Unavailable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAnswer {
    answer: AnswerLabel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum PathLabel {
    Replaced,
    NoLostPath,
    NotServed,
    NotUp,
    AgentAway,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPath {
    result: PathLabel,
}

/// From 10 ms, what a stage takes where nothing is in the way, to three minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 15))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            is_leading: Gauge::default(),
            begun: Family::default(),
            ended: Family::default(),
            duration: Family::new_with_constructor(seconds),
            stage_duration: Family::new_with_constructor(seconds),
            underway: Gauge::default(),
            queued: Gauge::default(),
            reports: Family::default(),
            paths: Family::default(),
            registrations: Counter::default(),
            hosts_ready: Counter::default(),
        }
    }
}

impl Metrics {
    /// Shows them in a registry, with names that begin with `ha_cluster_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ha_cluster");
        registry.register("leading", "1 where this process leads", self.is_leading.clone());
        registry.register("switchovers_begun", "Switchovers taken up, by cause", self.begun.clone());
        registry.register(
            "switchovers_ended",
            "Switchovers ended, by outcome and reason",
            self.ended.clone(),
        );
        registry.register_with_unit(
            "switchover_duration",
            "From the report to the end of a switchover",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register_with_unit(
            "switchover_stage_duration",
            "How long switchovers stayed in a stage",
            Unit::Seconds,
            self.stage_duration.clone(),
        );
        registry.register("switchovers_underway", "Volumes with a switchover now", self.underway.clone());
        registry.register(
            "switchovers_queued",
            "Switchovers that wait for their turn to ask the operator",
            self.queued.clone(),
        );
        registry.register("reports", "Lost paths reported by hosts, by answer", self.reports.clone());
        registry.register("path_replacements", "Answers of node agents to ReplacePath", self.paths.clone());
        registry.register("registrations", "Registrations of node agents", self.registrations.clone());
        registry.register(
            "move_hosts_ready",
            "Hosts reported ready for a planned move",
            self.hosts_ready.clone(),
        );
    }

    pub(super) fn leads(&self, is_leading: bool) {
        self.is_leading.set(is_leading.into());
        if !is_leading {
            // What was under way is another's now.
            self.underway.set(0);
        }
    }

    pub(super) fn began(&self, cause: Cause) {
        self.begun.get_or_create(&ByCause { cause }).inc();
    }

    pub(super) fn left(&self, stage: Stage, after: Duration) {
        let stage = match stage {
            Stage::Init => StageLabel::Init,
            Stage::RepublishVolume => StageLabel::RepublishVolume,
            Stage::ReplacePath => StageLabel::ReplacePath,
            Stage::DeleteTarget => StageLabel::DeleteTarget,
            Stage::Errored => StageLabel::Errored,
        };
        self.stage_duration.get_or_create(&ByStage { stage }).observe(after.as_secs_f64());
    }

    pub(super) fn ended(&self, outcome: Outcome, after: Duration) {
        let (outcome, reason) = match outcome {
            Outcome::Successful => (End::Successful, Reason::None),
            Outcome::Healed => (End::Healed, Reason::None),
            Outcome::Errored(reason) => (End::Errored, label(reason)),
        };
        let end = ByEnd { outcome, reason };
        self.ended.get_or_create(&end).inc();
        self.duration.get_or_create(&end).observe(after.as_secs_f64());
    }

    pub(super) fn reported(&self, answer: Reported) {
        let answer = match answer {
            Reported::Answered(Answer::Taken) => AnswerLabel::Taken,
            Reported::Answered(Answer::AlreadyTaken) => AnswerLabel::AlreadyTaken,
            Reported::Answered(Answer::Later) => AnswerLabel::Later,
            Reported::Full => AnswerLabel::Full,
            Reported::Unavailable => AnswerLabel::Unavailable,
        };
        self.reports.get_or_create(&ByAnswer { answer }).inc();
    }

    pub(super) fn path_answered(&self, result: &Result<(), PathError>) {
        let result = match result.as_ref().map_err(|error| error.kind) {
            Ok(()) => PathLabel::Replaced,
            Err(PathErrorKind::NoLostPath) => PathLabel::NoLostPath,
            Err(PathErrorKind::NotServed) => PathLabel::NotServed,
            Err(PathErrorKind::NotUp) => PathLabel::NotUp,
            Err(PathErrorKind::AgentAway) => PathLabel::AgentAway,
        };
        self.paths.get_or_create(&ByPath { result }).inc();
    }
}

fn label(reason: GiveUp) -> Reason {
    match reason {
        GiveUp::VolumeGone => Reason::VolumeGone,
        GiveUp::NotPublished => Reason::NotPublished,
        GiveUp::NotAllowed => Reason::NotAllowed,
        GiveUp::NoLostPath => Reason::NoLostPath,
        GiveUp::Refused => Reason::Refused,
    }
}
