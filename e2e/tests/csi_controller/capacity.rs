//! Free space, as the scheduler of Kubernetes is told it.

use anyhow::{Context as _, Result, ensure};
use tonic::Code;

use crate::stage::{MIB, SIZE_MIB, Stage, asked, new_name, refused};

pub(crate) async fn xc_2_capacity_is_the_free_space_of_all_pools(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    for _ in 0..2 {
        let all = plugin.capacity(None, &[]).await?;
        let pools = stage.rest.pools().await?;
        let states = pools.iter().filter_map(|pool| pool.state.as_ref());
        let total: u64 = states.map(|state| state.capacity).sum();
        ensure!(all.available_capacity > 0 && all.available_capacity.cast_unsigned() <= total, "{all:?}");
        let largest = all.maximum_volume_size.context("it is told")?;
        let one = all.available_capacity / 3;
        ensure!(largest < one && largest > one - 8 * MIB, "a replica keeps something: {one} and {all:?}");
        // Three pools have no place for four replicas on nodes of their own.
        ensure!(plugin.capacity(None, &[("repl", "4")]).await?.maximum_volume_size == Some(0));
    }
    refused(plugin.capacity(None, &[("repl", "0")]).await, Code::InvalidArgument, "repl")?;
    refused(plugin.capacity(None, &[("copies", "2")]).await, Code::InvalidArgument, "copies")
}

pub(crate) async fn xc_3_capacity_of_a_node_is_the_free_space_of_its_pools(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    for _ in 0..2 {
        let mut sum = 0;
        for node in ["node-1", "node-2", "node-3"] {
            let one = plugin.capacity(Some(node), &[]).await?.available_capacity;
            ensure!(one > 0, "{node} has nothing");
            sum += one;
        }
        ensure!(sum == plugin.capacity(None, &[]).await?.available_capacity);
        ensure!(plugin.capacity(Some("elsewhere"), &[]).await?.available_capacity == 0);
    }
    Ok(())
}

/// Else the next volumes would be promised the same space.
pub(crate) async fn capacity_is_less_by_a_volume_as_soon_as_it_is_made(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let free = plugin.capacity(None, &[]).await?.available_capacity;
    let id = plugin.create(asked(&new_name(), 4 * SIZE_MIB, &[("repl", "2")])).await?.volume_id;
    let left = plugin.capacity(None, &[]).await?.available_capacity;
    ensure!(left <= free - 2 * 4 * SIZE_MIB * MIB, "{free} before, {left} now");
    plugin.delete(&id).await?;
    Ok(())
}
