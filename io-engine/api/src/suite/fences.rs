//! Stories of leaders. They come last: an engine that has seen a leader no longer serves calls without one.

use uuid::Uuid;

use super::{PLAIN, Subject, create_pool, kind, pool_ref};
use crate::{engine::Call, error::ErrorKind, fence::Fence};

/// A leader decides, is paused, and wakes up when another leads: its call has no effect.
pub(super) async fn c3_a_deposed_leader_changes_nothing(subject: &Subject) {
    let registry = Uuid::from_u128(0xa);
    let request = || create_pool("p1", &subject.disks[0]);
    let engine = &subject.engine;
    engine.create_pool(Call::leader(registry, 10), request()).await.expect("the first leader is obeyed");
    engine.export_pool(Call::leader(registry, 12), pool_ref("p1")).await.expect("a newer one too");
    let deposed = engine.create_pool(Call::leader(registry, 11), request()).await;
    assert_eq!(kind(deposed), ErrorKind::Fenced);
    assert_eq!(kind(engine.create_pool(PLAIN, request()).await), ErrorKind::Fenced, "no fence");
    let other = Uuid::from_u128(0xb);
    let stranger = engine.create_pool(Call::leader(other, 99), request()).await;
    assert_eq!(kind(stranger), ErrorKind::Fenced, "another registry");
    assert_eq!(engine.list_pools().await, Ok(vec![]), "refused calls had no effect");
    engine.create_pool(Call::unfenced(), request()).await.expect("a person may");
    let take_over = Fence::Leader { registry: other, revision: 1, take_over: true };
    let call = Call { fence: take_over, timeout: None };
    engine.export_pool(call, pool_ref("p1")).await.expect("recovery may take over");
    let former = engine.create_pool(Call::leader(registry, 100), request()).await;
    assert_eq!(kind(former), ErrorKind::Fenced, "the former registry");
    engine.create_pool(Call::leader(other, 1), request()).await.expect("the new one goes on");
    engine.destroy_pool(Call::leader(other, 2), pool_ref("p1")).await.expect("and on");
}
