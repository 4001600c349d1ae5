//! Volumes are listed, all and page by page.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use uuid::Uuid;

use crate::stage::{Plugin, Stage, refused};

async fn volumes(plugin: &mut Plugin, count: usize) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    for _ in 0..count {
        ids.insert(plugin.volume(&[]).await?);
    }
    Ok(ids)
}

fn id_of(entry: &::csi::proto::csi::list_volumes_response::Entry) -> String {
    entry.volume.as_ref().map(|volume| volume.volume_id.clone()).unwrap_or_default()
}

pub(crate) async fn xc_8_two_volumes_are_listed(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let ids = volumes(plugin, 2).await?;
    let published = ids.first().context("two were made")?;
    plugin.publish(published, "node-2").await?;
    for _ in 0..2 {
        let all = plugin.list(0, "").await?.entries;
        ensure!(all.iter().map(id_of).collect::<BTreeSet<_>>() == ids, "{all:?}");
        for entry in all {
            let status = entry.status.clone().context("it has a status")?;
            let nodes: &[&str] = if id_of(&entry) == *published { &["node-2"] } else { &[] };
            ensure!(status.published_node_ids == nodes, "{entry:?}");
            ensure!(status.volume_condition.is_some_and(|condition| !condition.abnormal), "{entry:?}");
        }
    }
    Ok(())
}

pub(crate) async fn xc_19_a_page_says_where_the_next_one_begins(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let ids = volumes(plugin, 3).await?;
    for page in [1, 2] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let found = plugin.list(page, &token).await?;
            ensure!(plugin.list(page, &token).await? == found, "another page by the same token");
            ensure!(found.entries.len() <= usize::try_from(page)?, "{found:?}");
            seen.extend(found.entries.iter().map(id_of));
            token = found.next_token;
            if token.is_empty() {
                break;
            }
        }
        ensure!(seen.len() == 3 && seen.iter().cloned().collect::<BTreeSet<_>>() == ids, "{seen:?}");
    }
    // The volume that a page ended with goes meanwhile.
    let first = plugin.list(1, "").await?;
    plugin.delete(&id_of(&first.entries[0])).await?;
    let rest = plugin.list(0, &first.next_token).await?;
    ensure!(rest.entries.len() == 2 && rest.next_token.is_empty(), "{rest:?}");
    Ok(())
}

pub(crate) async fn xc_20_without_a_limit_all_are_listed_and_no_token(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let none = plugin.list(0, "").await?;
    ensure!(none.entries.is_empty() && none.next_token.is_empty(), "{none:?}");
    volumes(plugin, 3).await?;
    for limit in [0, 3, 1000, i32::MAX] {
        let all = plugin.list(limit, "").await?;
        ensure!(all.entries.len() == 3 && all.next_token.is_empty(), "{limit}: {all:?}");
    }
    Ok(())
}

/// CSI, "`ListVolumes` errors": the caller begins anew.
pub(crate) async fn a_token_that_nobody_gave_is_aborted(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    for token in ["page two", "1", &"t".repeat(4096)] {
        for limit in [0, 1] {
            refused(plugin.list(limit, token).await, Code::Aborted, token)?;
        }
    }
    refused(plugin.list(-1, "").await, Code::InvalidArgument, "max_entries")?;
    // One after which nothing comes is the end.
    let end = plugin.list(0, &Uuid::max().to_string()).await?;
    ensure!(end.entries.is_empty() && end.next_token.is_empty(), "{end:?}");
    Ok(())
}
