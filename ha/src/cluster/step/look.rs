//! Looking again before acting (SAFETY F3): what the operator and the hosts say now decides what is left to do.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Command, Doing, Looked, Next, Switchover, differs};
use crate::cluster::ports::{Published, VolumeErrorKind};
use crate::cluster::reason::{GiveUp, Obstacle};
use crate::cluster::record::{PathState, Stage, Target};

impl Switchover {
    pub(super) fn look(&mut self, out: &mut Vec<Command>) {
        self.doing = Doing::Looking;
        let frontends = self.frontends();
        out.push(Command::Look { frontends });
    }

    /// The hosts that are not given up.
    pub(super) fn frontends(&self) -> Vec<String> {
        let given_up = |path| matches!(path, PathState::GivenUp(_));
        self.record
            .frontends
            .iter()
            .filter(|(_, f)| !given_up(f.path))
            .map(|(node, _)| node.clone())
            .collect()
    }

    pub(super) fn decide(&mut self, looked: Looked, now: Timestamp, out: &mut Vec<Command>) {
        let published = match looked.published {
            Ok(published) => published,
            Err(error) => {
                return match error.kind {
                    VolumeErrorKind::NotFound => self.give_up(GiveUp::VolumeGone, now, out),
                    VolumeErrorKind::NotPublished => self.give_up(GiveUp::NotPublished, now, out),
                    _ => self.wait(Obstacle::OperatorAway, out),
                };
            }
        };
        self.mark_paths(&published, &looked.live);
        let is_confirmed = self.record.lost().any(|node| matches!(looked.live.get(node), Some(Some(_))));
        let target = published.target;
        if self.record.lost().next().is_none() {
            return self.settle(now, out);
        }
        match self.record.stage {
            Stage::Init => {
                self.record.replaced = Some(target);
                self.enter(Stage::RepublishVolume, now);
                self.log_then(Next::Republish, out);
            }
            Stage::RepublishVolume if differs(self.record.replaced.as_ref(), &target) => {
                // Already replaced, by a call whose answer was lost or by an administrator.
                if target.uri.is_some() {
                    self.take_over(target, now, out);
                } else {
                    self.record.replaced = Some(target);
                    self.record.reuse_existing = true;
                    self.log_then(Next::Republish, out);
                }
            }
            Stage::RepublishVolume => {
                self.record.reuse_existing |= self.is_serving();
                if !self.record.reuse_existing && !is_confirmed {
                    // Only a host that is there to say so, and to be given a path, has the target taken from its place.
                    let lost = self.record.lost().next().unwrap_or_default().to_owned();
                    return self.wait(Obstacle::AgentAway(lost), out);
                }
                self.log_then(Next::Republish, out);
            }
            _ if differs(self.record.target.as_ref(), &target) => {
                self.record.replaced = Some(target);
                self.record.target = None;
                self.record.reuse_existing = true;
                self.enter(Stage::RepublishVolume, now);
                self.log_then(Next::Republish, out);
            }
            _ => self.log_then(Next::ReplacePaths, out),
        }
    }

    /// What the hosts themselves say of their paths wins over what the log says of them.
    fn mark_paths(&mut self, published: &Published, live: &BTreeMap<String, Option<Vec<String>>>) {
        let marked_for = self.record.target.as_ref().or(self.record.replaced.as_ref());
        let has_moved = differs(marked_for, &published.target);
        let known = [Some(&published.target), self.record.target.as_ref(), self.record.replaced.as_ref()];
        let same = |t: &&Target| t.nexus == published.target.nexus;
        let address = known.into_iter().flatten().filter(same).find_map(Target::address).map(str::to_owned);
        let standby = published.standby.as_ref().and_then(Target::address);
        let is_live = |addresses: &Vec<String>| match &address {
            Some(address) => addresses.contains(address),
            // The operator cannot see the target, a host does. What stands by in a planned move is not it.
            None => addresses.iter().any(|address| Some(address.as_str()) != standby),
        };
        let others = live.iter().filter(|(node, _)| !self.record.frontends.contains_key(*node));
        self.serves_others = others.filter_map(|(_, addresses)| addresses.as_ref()).any(is_live);
        for (node, frontend) in &mut self.record.frontends {
            if matches!(frontend.path, PathState::GivenUp(_)) {
                continue;
            }
            if !published.allows(node) {
                frontend.path = PathState::GivenUp(GiveUp::NotAllowed);
            } else if let Some(Some(addresses)) = live.get(node) {
                frontend.path = if is_live(addresses) { PathState::Replaced } else { PathState::Lost };
            } else if has_moved {
                frontend.path = PathState::Lost;
            }
        }
    }
}
