//! Which node serves a volume.

use std::fmt;

/// The nexus that needs a node.
#[derive(Clone, Debug, Default)]
pub struct TargetAsk {
    /// Must be on this node.
    pub node: Option<String>,
    /// Would rather be on this node, such as the host's own.
    pub preferred: Option<String>,
}

/// A node as the choice of a target sees it.
#[derive(Clone, Debug)]
pub struct NodeCandidate {
    /// Its name.
    pub node: String,
    /// Its engine answers.
    pub is_online: bool,
    /// Nothing new may be placed on it.
    pub is_cordoned: bool,
    /// A nexus of the volume is on it, or may be.
    pub has_nexus: bool,
    /// A healthy replica of the volume is on it.
    pub has_replica: bool,
    /// Targets that are there or are to be.
    pub targets: usize,
    /// Targets of the volume's affinity group that are there.
    pub group_targets: usize,
}

/// No node takes the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoTarget {
    /// Node, filter and reason.
    pub refusals: Vec<(String, &'static str, String)>,
}

impl fmt::Display for NoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.refusals.is_empty() {
            return f.write_str("no node takes the target: no engine has registered");
        }
        f.write_str("no node takes the target: ")?;
        for (n, (node, filter, why)) in self.refusals.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{node}: {filter}: {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NoTarget {}

/// The best node, or why each was refused. Volumes of an affinity group part first; then local reads are cheapest, then the
/// node with the fewest targets.
pub fn choose_target<'a>(ask: &TargetAsk, nodes: &'a [NodeCandidate]) -> Result<&'a NodeCandidate, NoTarget> {
    let mut refusals = Vec::new();
    let mut left = Vec::new();
    for candidate in nodes {
        match refusal(ask, candidate) {
            Some((filter, why)) => refusals.push((candidate.node.clone(), filter, why)),
            None => left.push(candidate),
        }
    }
    let rank = |c: &NodeCandidate| {
        let is_elsewhere = ask.preferred.as_deref() != Some(c.node.as_str());
        (c.group_targets, is_elsewhere, !c.has_replica, c.targets, c.node.clone())
    };
    left.into_iter().min_by_key(|c| rank(c)).ok_or(NoTarget { refusals })
}

fn refusal(ask: &TargetAsk, node: &NodeCandidate) -> Option<(&'static str, String)> {
    if ask.node.as_ref().is_some_and(|wanted| *wanted != node.node) {
        return Some(("node_requested", "another node was asked for".into()));
    }
    if !node.is_online {
        return Some(("node_online", "its engine is not online".into()));
    }
    if node.has_nexus {
        return Some((
            "node_without_nexus",
            "a target of this volume is, or may be, on the node already".into(),
        ));
    }
    if node.is_cordoned {
        return Some(("node_not_cordoned", "the node is cordoned".into()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeCandidate {
        NodeCandidate {
            node: name.into(),
            is_online: true,
            is_cordoned: false,
            has_nexus: false,
            has_replica: false,
            targets: 0,
            group_targets: 0,
        }
    }

    #[test]
    fn a_target_goes_to_the_preferred_then_local_then_idlest_node() {
        let nodes = [node("a"), NodeCandidate { has_replica: true, targets: 5, ..node("b") }, node("c")];
        let chosen = |ask: &TargetAsk| choose_target(ask, &nodes).map(|n| n.node.clone()).ok();
        assert_eq!(chosen(&TargetAsk::default()).as_deref(), Some("b"));
        let preferred = TargetAsk { preferred: Some("c".into()), ..TargetAsk::default() };
        assert_eq!(chosen(&preferred).as_deref(), Some("c"));
        let required = TargetAsk { node: Some("a".into()), ..TargetAsk::default() };
        assert_eq!(chosen(&required).as_deref(), Some("a"));
        // Targets of a group part before anything else is looked at, but for a node that was named.
        let nodes = nodes.map(|n| NodeCandidate { group_targets: usize::from(n.node != "a"), ..n });
        let chosen = |ask: &TargetAsk| choose_target(ask, &nodes).map(|n| n.node.clone()).ok();
        assert_eq!(chosen(&preferred).as_deref(), Some("a"));
        let required = TargetAsk { node: Some("b".into()), ..TargetAsk::default() };
        assert_eq!(chosen(&required).as_deref(), Some("b"));
    }

    #[test]
    fn the_error_says_node_by_node_which_rule_refused_it() {
        let nodes = [
            NodeCandidate { is_online: false, ..node("a") },
            NodeCandidate { is_cordoned: true, ..node("b") },
            NodeCandidate { has_nexus: true, ..node("c") },
        ];
        let error = choose_target(&TargetAsk::default(), &nodes).expect_err("none is left");
        assert_eq!(
            error.to_string(),
            "no node takes the target: a: node_online: its engine is not online; b: node_not_cordoned: the node is cordoned; c: node_without_nexus: a target of this volume is, or may be, on the node already"
        );
    }
}
