//! The virtual Linux host itself: it must be what the stories take it for.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::guest::io_load::IoOptions;
use e2e::netns::{Net, Peer};
use e2e::process::Processes;
use e2e::run_dir::RunDir;
use e2e::vm::{BootOptions, ConnectOptions, Kernel, KernelTarget, LinuxHost};
use e2e::wait::wait_until;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

const PORT: u16 = 8420;

struct Lab {
    // Dropped in this order: the host, what else runs, the network, the files.
    host: LinuxHost,
    processes: Processes,
    net: Net,
    run: RunDir,
}

impl Lab {
    async fn boot(name: &str, kernel: Kernel) -> Result<Self> {
        let run = RunDir::new(name)?;
        let net = Net::create(2, 1)?;
        let processes = Processes::start(run.path())?;
        let host =
            LinuxHost::boot(&processes, &net, &BootOptions { kernel, ..BootOptions::default() }).await?;
        Ok(Self { host, processes, net, run })
    }
}

/// Everything the stories do with a host before there is any storage, in one boot.
#[tokio::test]
async fn a_debian_kernel_boots_and_reaches_engines_by_their_addresses() -> Result<()> {
    let mut lab = Lab::boot("linux-host", Kernel::Bookworm).await?;
    let host = &lab.host;
    assert!(host.kernel().starts_with("6.1."), "{}", host.kernel());

    // A listener in an engine's namespace, spoken to over bridge and tap.
    lab.net.enter(Peer::Engine(2))?;
    let listener = TcpListener::bind((Peer::Engine(2).address(), PORT)).await?;
    lab.net.enter(Peer::Hub)?;
    let greeter = tokio::spawn(async move {
        let (mut stream, from) = listener.accept().await?;
        stream.write_all(format!("hello {}\n", from.ip()).as_bytes()).await?;
        stream.shutdown().await
    });
    let greeting = host.sh("nc -w 10 10.77.0.2 8420 </dev/null").await?;
    assert_eq!(greeting, "hello 10.77.0.100\n");
    greeter.await??;

    // The initiator is there, with native multipath, and says clearly why it cannot connect.
    assert_eq!(host.sh("cat /sys/module/nvme_core/parameters/multipath").await?, "Y\n");
    let nowhere = ConnectOptions::new("nqn.2019-05.io.openebs:none", Ipv4Addr::new(10, 77, 0, 1), PORT);
    let error = format!("{:#}", host.connect(&nowhere).await.unwrap_err());
    assert!(error.contains("10.77.0.1:8420") && error.contains("Connection refused"), "{error}");
    assert_eq!(host.controllers().await?, []);

    // Scripts run beside each other, keep their outputs apart, and are killed at their deadline.
    let (one, two) = tokio::join!(host.sh("sleep 0.2; echo one"), host.sh("echo two"));
    assert_eq!((one?.as_str(), two?.as_str()), ("one\n", "two\n"));
    let error = host.sh("echo out; echo err >&2; exit 3").await.unwrap_err().to_string();
    assert!(
        error.contains("code 3") && error.contains("stderr: err") && error.contains("stdout: out"),
        "{error}"
    );
    let error = host.run(Duration::from_millis(300), "echo begun; sleep 1000", &[]).await.unwrap_err();
    assert!(format!("{error:#}").contains("begun"), "{error:#}");

    // File systems, checksums and measured I/O, on the guest's own memory disk.
    host.sh("modprobe brd rd_nr=1 rd_size=65536").await?;
    host.make_ext4("/dev/ram0").await?;
    host.mount("/dev/ram0", "/mnt/a").await?;
    let checksums = host.write_files("/mnt/a", 3, 512).await?;
    host.unmount("/mnt/a").await?;
    host.mount("/dev/ram0", "/mnt/a").await?;
    host.verify_files("/mnt/a", &checksums).await?;
    host.sh("echo changed >/mnt/a/file2").await?;
    assert!(host.verify_files("/mnt/a", &checksums).await.is_err(), "a changed file passes for the old one");
    host.unmount("/mnt/a").await?;

    let options = IoOptions { state: Some("/run/state".into()), ..IoOptions::new("ram", "/dev/ram0") };
    let load = host.start_io(&options).await?;
    load.wait_operations(500).await?;
    let summary = load.stop().await?;
    assert!(summary.errors == 0 && summary.mismatches == 0 && summary.in_flight == 0, "{summary:?}");
    let checked = host.check_io(&options).await?;
    assert!(checked.reads > 0 && checked.mismatches == 0, "{checked:?}");
    host.sh("dd if=/dev/zero of=/dev/ram0 bs=1M count=16 conv=fsync 2>/dev/null").await?;
    let wiped = host.check_io(&options).await?;
    assert_eq!(wiped.mismatches, wiped.reads, "a wiped disk passes for a written one");

    // Losing power loses its memory and nothing else.
    lab.host.power_off();
    let error = lab.host.sh("true").await.unwrap_err();
    assert!(format!("{error:#}").contains("host1 is down"), "{error:#}");
    lab.host.power_on(&lab.processes, &lab.net).await?;
    assert_eq!(lab.host.sh("ls /mnt; hostname").await?, "host1\n");
    lab.run.passed();
    Ok(())
}

/// Silence between a host and one engine is made on the bridge; the agent's line is not touched by it.
#[tokio::test]
async fn a_host_can_be_cut_off_from_one_engine_and_still_be_asked() -> Result<()> {
    let lab = Lab::boot("host-cut", Kernel::Bookworm).await?;
    let (host, one, two) = (lab.host.peer(), Peer::Engine(1), Peer::Engine(2));
    let ping = async |to: Peer| lab.host.sh(&format!("ping -c 1 -W 1 {} >&2", to.address())).await;
    for engine in [one, two] {
        wait_until(Duration::from_secs(10), &format!("{engine} to answer"), || ping(engine)).await?;
    }
    lab.net.cut_one_way(one, host)?;
    ensure!(ping(one).await.is_err(), "n1 is cut off and answers");
    ping(two).await.context("n2 is not cut off")?;
    lab.net.heal_all()?;
    ping(one).await.context("n1 is healed")?;
    lab.run.passed();
    Ok(())
}

/// Connecting must work with a target that is not ours, or a story could not tell whose fault a failure is. The host
/// serves itself: two ports of one subsystem, so that the second path joins the device of the first.
#[tokio::test]
async fn two_paths_of_the_kernels_own_target_make_one_device() -> Result<()> {
    two_paths_make_one_device(Kernel::Bookworm, "6.1.").await
}

/// The other kernel that users have; its sysfs and its messages are not quite the same.
#[tokio::test]
async fn two_paths_make_one_device_on_the_newer_kernel_too() -> Result<()> {
    two_paths_make_one_device(Kernel::BookwormBackports, "6.12.").await
}

async fn two_paths_make_one_device(kernel: Kernel, release: &str) -> Result<()> {
    let lab = Lab::boot("kernel-target", kernel).await?;
    assert!(lab.host.kernel().starts_with(release), "{}", lab.host.kernel());
    let (host, address) = (&lab.host, lab.host.peer().address());
    host.make_memory_disks(1, 64).await?;
    let uuid = "5b26dd0e-6f3a-4a4e-9a63-4f1e0c6d5c11";
    let nqn = format!("nqn.2019-05.io.openebs:{uuid}");
    let (first, second) = (PORT, PORT + 1);
    let target =
        KernelTarget { nqn: nqn.clone(), uuid: uuid.to_owned(), address, ports: vec![first, second] };
    host.serve(&target, "/dev/ram0").await?;

    let path = |port| ConnectOptions { data_digest: true, ..ConnectOptions::new(&nqn, address, port) };
    let device = host.connect(&path(first)).await?;
    assert_eq!(host.connect(&path(second)).await?, device);
    let again = host.connect(&path(second)).await.expect_err("the same path twice must be refused");
    assert!(format!("{again:#}").contains("already in progress"), "{again:#}");
    let ana_states = async |expected: [&str; 2]| {
        wait_until(Duration::from_secs(10), &format!("ANA states {expected:?}"), || async {
            let controllers = host.controllers().await?;
            let seen: Vec<_> =
                controllers.iter().flat_map(|c| &c.paths).map(|p| p.ana_state.as_str()).collect();
            ensure!(seen == expected, "{controllers:?}");
            Ok(controllers)
        })
        .await
    };
    let controllers = ana_states(["optimized", "optimized"]).await?;
    assert!(controllers.iter().all(|c| c.state == "live" && c.nqn == nqn), "{controllers:?}");
    host.set_ana_state(first, "inaccessible").await?;
    ana_states(["inaccessible", "optimized"]).await?;

    host.make_ext4(&device).await?;
    host.mount(&device, "/mnt/volume").await?;
    let checksums = host.write_files("/mnt/volume", 4, 256).await?;
    host.unmount("/mnt/volume").await?;
    host.disconnect(&nqn).await?;
    assert_eq!(host.controllers().await?, []);
    assert_eq!(host.device(&nqn).await?, None);

    let device = host.connect(&path(second)).await?;
    host.mount(&device, "/mnt/volume").await?;
    host.verify_files("/mnt/volume", &checksums).await?;
    host.unmount("/mnt/volume").await?;
    lab.run.passed();
    Ok(())
}
