//! What operator, engine and registration show of volumes.

use anyhow::{Context as _, Result, ensure};
use control_api::RegisterAppNode;
use csi::node::registration::keep_registered;
use e2e::scrape::{figure, scrape};
use e2e::wait::wait_until;
use tokio_util::sync::CancellationToken;

use crate::stage::{PATIENCE, Stage, asked, new_name};

pub(crate) async fn of_operator_and_engine_are_those_of_the_volume(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.create(asked(&new_name(), 16, &[("repl", "2")])).await?.volume_id;
    plugin.publish(&id, "node-1").await?;
    let page = scrape(stage.lab.operators[0].metrics()).await?;
    let is = |page: &str, name: &str, labels: &[&str], value: f64| {
        let found = figure(page, name, labels);
        ensure!(found == Some(value), "{name} with {labels:?} is {found:?}, not {value}, in\n{page}");
        Ok(())
    };
    is(&page, "operator_leading", &[], 1.0)?;
    is(&page, "operator_node_online", &["node=\"node-2\""], 1.0)?;
    is(&page, "operator_volume_published", &[&id], 1.0)?;
    is(&page, "operator_volumes", &["status=\"online\""], 1.0)?;
    is(&page, "operator_pool_online", &["pool=\"pool-node-1\""], 1.0)?;
    let page = scrape(stage.lab.node(1).metrics()).await?;
    is(&page, "io_engine_nexus_serving", &[&id], 1.0)?;
    is(&page, "io_engine_nexus_children_online", &[&id], 2.0)?;
    is(&page, "io_engine_nexus_io_errors_total", &[&id, "operation=\"write\""], 0.0)?;
    is(&page, "io_engine_pool_online", &["pool=\"pool-node-1\""], 1.0)?;
    let taken = figure(&page, "io_engine_pool_used_bytes", &["pool-node-1"]).context("it has a replica")?;
    ensure!(taken >= 16.0 * 1024.0 * 1024.0, "{taken}");
    Ok(())
}

/// Whoever leads.
pub(crate) async fn a_node_that_uses_volumes_registers_and_deregisters(stage: &mut Stage) -> Result<()> {
    let rest = &stage.rest;
    let spec = RegisterAppNode { endpoint: "10.0.0.7:10199".into(), labels: None };
    let stop = CancellationToken::new();
    let registering =
        tokio::spawn(keep_registered(rest.clone(), "app-node".into(), spec.clone(), stop.clone()));
    wait_until(PATIENCE, "it to be registered", || async {
        let found = rest.app_node("app-node").await?;
        ensure!(found.spec.endpoint == spec.endpoint, "{found:?}");
        Ok(())
    })
    .await?;
    stop.cancel();
    registering.await?;
    ensure!(rest.app_nodes_page(0, 0).await?.entries.is_empty(), "it is still there");
    Ok(())
}
