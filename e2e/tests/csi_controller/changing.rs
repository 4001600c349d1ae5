//! Volumes grow, and have another number of replicas.

use ::csi::proto::csi::volume_capability::access_mode::Mode;
use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use uuid::Uuid;

use crate::stage::{MIB, SIZE_MIB, Stage, block, capability, refused};

pub(crate) async fn ro_1_a_volume_grows_used_or_not(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let fs = || capability(Mode::SingleNodeWriter);
    let id = plugin.volume(&[("repl", "2")]).await?;
    let small = plugin.expand(&id, (MIB, 0), fs()).await?;
    ensure!(small.capacity_bytes == SIZE_MIB * MIB && small.node_expansion_required, "{small:?}");
    for _ in 0..2 {
        let grown = plugin.expand(&id, (20 * MIB + 1, 24 * MIB), fs()).await?;
        ensure!(grown.capacity_bytes == 21 * MIB && grown.node_expansion_required, "{grown:?}");
    }
    plugin.publish(&id, "node-1").await?;
    for _ in 0..2 {
        let grown = plugin.expand(&id, (32 * MIB, 0), block(Mode::SingleNodeWriter)).await?;
        ensure!(grown.capacity_bytes == 32 * MIB && !grown.node_expansion_required, "{grown:?}");
    }
    let shown = stage.rest.volume(id.parse()?).await?.state;
    let nexus = shown.target.context("it is published")?;
    ensure!((shown.size, nexus.size) == (32 << 20, 32 << 20), "{nexus:?}");
    Ok(())
}

pub(crate) async fn ro_8_what_cannot_be_is_named(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let fs = || capability(Mode::SingleNodeWriter);
    let id = plugin.volume(&[]).await?;
    refused(plugin.expand("elsewhere", (MIB, 0), fs()).await, Code::NotFound, "elsewhere")?;
    let unknown = Uuid::new_v4().to_string();
    refused(plugin.expand(&unknown, (MIB, 0), fs()).await, Code::NotFound, &unknown)?;
    refused(plugin.expand(&id, (-MIB, 0), fs()).await, Code::InvalidArgument, "required_bytes")?;
    refused(plugin.expand(&id, (64 * MIB, 32 * MIB), fs()).await, Code::InvalidArgument, "limit_bytes")?;
    refused(plugin.expand(&id, (0, 4 * MIB), fs()).await, Code::OutOfRange, "cannot shrink")?;
    refused(plugin.expand(&id, (1 << 50, 0), fs()).await, Code::ResourceExhausted, "Free space there")?;
    let size = stage.rest.volume(id.parse()?).await?.spec.size;
    ensure!(size == u64::try_from(SIZE_MIB)? << 20, "it has {size} bytes");
    Ok(())
}

pub(crate) async fn the_number_of_replicas_follows_a_class(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[("repl", "2")]).await?;
    for count in ["3", "3", "2", "2"] {
        plugin.modify(&id, &[("repl", count)]).await?;
        let spec = stage.rest.volume(id.parse()?).await?.spec;
        ensure!(spec.num_replicas.to_string() == count, "{spec:?}");
    }
    refused(plugin.modify(&id, &[("thin", "true")]).await, Code::InvalidArgument, "thin")?;
    refused(plugin.modify(&id, &[("repl", "none")]).await, Code::InvalidArgument, "repl")?;
    refused(plugin.modify(&id, &[("repl", "0")]).await, Code::InvalidArgument, "repl")?;
    refused(plugin.modify(&id, &[("repl", "4")]).await, Code::ResourceExhausted, "")?;
    refused(plugin.modify("no-such", &[("repl", "2")]).await, Code::NotFound, "no-such")?;
    refused(plugin.modify(&Uuid::new_v4().to_string(), &[("repl", "2")]).await, Code::NotFound, "")
}
