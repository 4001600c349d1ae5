//! Which replica goes when there are too many.

use std::cmp::Reverse;

use uuid::Uuid;

use crate::volume::plan::Health;

/// A replica as the choice sees it.
#[derive(Clone, Debug)]
pub struct Removable {
    /// The replica.
    pub replica: Uuid,
    /// How well it is.
    pub health: Health,
    /// Replicas of the volume's affinity group on its node.
    pub of_group: usize,
    /// On the target's node.
    pub is_local: bool,
    /// Bytes free in its pool.
    pub pool_free_bytes: u64,
}

/// The replica to remove so that `wanted` remain, or `None` when removing any would leave fewer than `wanted` good
/// ones than there could be: worst health first, then where most of its affinity group is, then remote, then from the fullest
/// pool.
pub fn choose_removal(replicas: &[Removable], wanted: usize) -> Option<Uuid> {
    if replicas.len() <= wanted {
        return None;
    }
    let good = replicas.iter().filter(|r| r.health == Health::Good).count();
    let worst = replicas
        .iter()
        .min_by_key(|r| (r.health, Reverse(r.of_group), r.is_local, r.pool_free_bytes, r.replica))?;
    match worst.health {
        // All are good and there are more than wanted.
        Health::Good => Some(worst.replica),
        // What is not good is given up only when the good ones suffice without it.
        _ => (good >= wanted).then_some(worst.replica),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(id: u128, health: Health, is_local: bool) -> Removable {
        Removable { replica: Uuid::from_u128(id), health, of_group: 0, is_local, pool_free_bytes: 0 }
    }

    #[test]
    fn the_worst_goes_first_and_never_while_it_may_be_needed() {
        use Health::{Away, Good, Lost, Syncing};
        let table = [
            (vec![replica(1, Good, true)], 1, None, "nothing too many"),
            (vec![replica(1, Good, true), replica(2, Good, false)], 1, Some(2), "the remote one"),
            (vec![replica(1, Good, true), replica(2, Lost, false)], 1, Some(2), "the lost one"),
            (
                vec![replica(1, Good, true), replica(2, Lost, false), replica(3, Syncing, false)],
                2,
                None,
                "3 is not ready",
            ),
            (
                vec![replica(1, Good, true), replica(2, Lost, false), replica(3, Good, false)],
                2,
                Some(2),
                "3 is ready",
            ),
            (
                vec![replica(1, Good, true), replica(2, Good, false), replica(3, Syncing, false)],
                2,
                Some(3),
                "2 came back",
            ),
            (
                vec![replica(1, Away, false), replica(2, Lost, false)],
                1,
                None,
                "none is good: data may be only there",
            ),
        ];
        for (replicas, wanted, expected, story) in table {
            assert_eq!(choose_removal(&replicas, wanted), expected.map(Uuid::from_u128), "{story}");
        }
    }

    #[test]
    fn it_goes_from_where_most_of_the_group_is_even_from_the_targets_node() {
        let replicas = [(1, 1, false), (2, 2, true), (3, 1, false)]
            .map(|(id, of_group, is_local)| Removable { of_group, ..replica(id, Health::Good, is_local) });
        assert_eq!(choose_removal(&replicas, 2), Some(Uuid::from_u128(2)));
        let lost = Removable { health: Health::Lost, ..replicas[0].clone() };
        let replicas = [lost, replicas[1].clone(), replicas[2].clone()];
        assert_eq!(choose_removal(&replicas, 2), Some(Uuid::from_u128(1)), "what is lost goes first");
    }
}
