//! Our NVMe/TCP target, on a memory disk, as the kernel of a real Linux host sees it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::guest::io_load::IoOptions;
use e2e::netns::{Net, Peer};
use e2e::process::{Process, Processes};
use e2e::programs::example;
use e2e::run_dir::RunDir;
use e2e::vm::{BootOptions, ConnectOptions, Kernel, LinuxHost};
use e2e::wait::wait_until;

const PORT: u16 = 8420;
const UUID: &str = "0f1c3a52-9a9e-4b0c-8a37-6c2b8f0f6b11";
const ENGINE: Peer = Peer::Engine(1);

struct Lab {
    // Dropped in this order: the host first, so that it does not wait for a target that is gone.
    host: LinuxHost,
    target: Process,
    _processes: Processes,
    net: Net,
    run: RunDir,
}

impl Lab {
    async fn start(name: &str, kernel: Kernel) -> Result<Self> {
        let run = RunDir::new(name)?;
        let net = Net::create(1, 1)?;
        let processes = Processes::start(run.path())?;
        let mut command = net.command(ENGINE, example("serve_memory")?)?;
        command.args([format!("{}:{PORT}", ENGINE.address()), nqn(), "128".to_owned(), "4096".to_owned()]);
        let target = processes.spawn("target", command)?;
        target
            .wait_until(Duration::from_secs(10), "listen", || async {
                let log = std::fs::read_to_string(target.log_path())?;
                ensure!(log.contains("serving "), "it has not said so");
                Ok(())
            })
            .await?;
        let options = BootOptions { kernel, ..BootOptions::default() };
        let host = LinuxHost::boot(&processes, &net, &options).await?;
        Ok(Self { host, target, _processes: processes, net, run })
    }

    async fn connect(&self, digests: bool) -> Result<String> {
        let options = ConnectOptions {
            header_digest: digests,
            data_digest: digests,
            ..ConnectOptions::new(nqn(), ENGINE.address(), PORT)
        };
        self.host.connect(&options).await.with_context(|| self.target.log_tail())
    }
}

fn nqn() -> String {
    format!("nqn.2019-05.io.openebs:{UUID}")
}

/// The product's first promise: a file system on our target holds what was written, over connections.
async fn ext4_keeps_its_files_over_connections(name: &str, kernel: Kernel) -> Result<()> {
    let lab = Lab::start(name, kernel).await?;
    let host = &lab.host;
    let device = lab.connect(false).await?;
    let controllers = host.controllers().await?;
    let [controller] = &controllers[..] else { anyhow::bail!("one controller, not {controllers:?}") };
    assert_eq!((controller.state.as_str(), controller.nqn.as_str()), ("live", nqn().as_str()));
    assert_eq!(controller.paths[0].ana_state, "optimized", "{controllers:?}");
    let name = device.trim_start_matches("/dev/");
    let facts = format!(
        "cat /sys/block/{name}/uuid /sys/block/{name}/size /sys/block/{name}/queue/logical_block_size"
    );
    assert_eq!(host.sh(&facts).await?, format!("{UUID}\n{}\n4096\n", 128 * 2048));

    host.make_ext4(&device).await?;
    host.mount(&device, "/mnt/volume").await?;
    let checksums = host.write_files("/mnt/volume", 8, 1024).await?;
    host.unmount("/mnt/volume").await?;
    host.disconnect(&nqn()).await?;
    assert_eq!(host.controllers().await?, []);

    // With digests on both: every PDU of it is checked by the kernel, and its by us.
    let device = lab.connect(true).await?;
    host.mount(&device, "/mnt/volume").await?;
    host.verify_files("/mnt/volume", &checksums).await?;
    host.sh("rm /mnt/volume/file1; fstrim -v /mnt/volume; umount /mnt/volume").await?;
    host.sh(&format!("e2fsck -f -n {device}")).await?;
    lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn a_linux_host_keeps_an_ext4_on_our_target() -> Result<()> {
    ext4_keeps_its_files_over_connections("ext4", Kernel::Bookworm).await
}

/// Newer kernels ask for more when they connect (I/O command sets, for one).
#[tokio::test]
async fn a_linux_host_with_a_newer_kernel_keeps_an_ext4_on_our_target() -> Result<()> {
    ext4_keeps_its_files_over_connections("ext4-newer", Kernel::BookwormBackports).await
}

/// A cable that is pulled and put back is a pause for the application, and no error; nothing it wrote is lost.
#[tokio::test]
async fn a_silent_network_is_a_pause_and_no_error() -> Result<()> {
    let lab = Lab::start("silence", Kernel::Bookworm).await?;
    let host = &lab.host;
    let device = lab.connect(false).await?;
    let options = IoOptions { state: Some("/run/state".into()), ..IoOptions::new("silence", &device) };
    let load = host.start_io(&options).await?;
    load.wait_operations(500).await?;

    let hangs = async |how: &str| {
        wait_until(Duration::from_secs(30), &format!("I/O to hang when {how}"), || async {
            let now = load.progress().await?;
            ensure!(now.waiting_ms >= 2000, "{now:?}");
            Ok(())
        })
        .await
    };
    lab.net.cut(ENGINE, host.peer())?;
    hangs("the network is silent").await?;
    lab.net.heal_all()?;
    load.wait_operations(500).await?;

    // A target that hangs is the same to the host, but that its kernel goes on acknowledging.
    lab.target.freeze()?;
    hangs("the target is frozen").await?;
    lab.target.thaw()?;
    load.wait_operations(500).await?;

    let summary = load.stop().await?;
    assert!(summary.errors == 0 && summary.mismatches == 0, "{summary:?}");
    let checked = host.check_io(&options).await?;
    assert!(checked.reads > 0 && checked.errors == 0 && checked.mismatches == 0, "{checked:?}");
    lab.run.passed();
    Ok(())
}
