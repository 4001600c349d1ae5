//! An application on a Linux host: a file system with files of known content, and a load that checks what it reads.
//! It is the witness of every story: whatever happened, nothing of it may be wrong at the end.

use anyhow::{Result, ensure};

use crate::guest::io_load::{IoOptions, Summary};
use crate::vm::{ConnectOptions, GuestIo, LinuxHost};

/// What it keeps and does.
#[derive(Clone, Debug)]
pub struct AppOptions {
    /// Its name on the host, and that of its folder.
    pub name: String,
    /// Files that are written once.
    pub files: u32,
    /// Their size.
    pub kib_each: u32,
    /// Blocks that the load writes again and again. In a small area what an old target writes late is read soon, and
    /// little is open when a nexus dies.
    pub blocks: u64,
    /// How long each of its threads rests after each operation.
    pub pause_ms: u64,
    /// Threads of the load.
    pub threads: u64,
    /// How often its progress can be seen; that costs an emulated processor something.
    pub tick_ms: u64,
}

impl AppOptions {
    /// A usual one.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            files: 8,
            kib_each: 1024,
            blocks: 512,
            pause_ms: 5,
            threads: 4,
            tick_ms: 50,
        }
    }
}

/// An application that was set up on a host.
#[derive(Clone, Debug)]
pub struct App {
    /// Where its file system is mounted; none: it uses a device as it is.
    mount: Option<String>,
    checksums: String,
    load: IoOptions,
}

impl App {
    /// Makes an ext4 on a device, mounts it and writes files.
    pub async fn install(host: &LinuxHost, device: &str, options: &AppOptions) -> Result<Self> {
        let mount = format!("/mnt/{}", options.name);
        host.make_ext4(device).await?;
        host.mount(device, &mount).await?;
        let checksums = host.write_files(&mount, options.files, options.kib_each).await?;
        let load = load_options(options, &format!("{mount}/load"));
        Ok(Self { mount: Some(mount), checksums, load })
    }

    /// Uses a device without a file system: quicker, where there are many.
    pub fn on_device(device: &str, options: &AppOptions) -> Self {
        Self { mount: None, checksums: String::new(), load: load_options(options, device) }
    }

    /// Starts its load; returns when the first operations went through.
    pub async fn run<'host>(&self, host: &'host LinuxHost) -> Result<GuestIo<'host>> {
        host.start_io(&self.load).await
    }

    /// Ends its load: it saw no error, and every block and every file is right.
    pub async fn finish(&self, host: &LinuxHost, load: GuestIo<'_>) -> Result<Summary> {
        let summary = load.stop().await?;
        summary.check()?;
        self.check(host).await?;
        Ok(summary)
    }

    /// Every block and every file is right, on the device and not only in memory.
    pub async fn check(&self, host: &LinuxHost) -> Result<()> {
        host.sh("echo 3 >/proc/sys/vm/drop_caches").await?;
        let checked = host.check_io(&self.load).await?;
        ensure!(checked.reads > 0, "nothing was checked");
        checked.check()?;
        match &self.mount {
            Some(mount) => host.verify_files(mount, &self.checksums).await,
            None => Ok(()),
        }
    }

    /// The same after the host let go of the volume and connected it again; it is let go of in the end.
    pub async fn check_connected_again(&self, host: &LinuxHost, path: &ConnectOptions) -> Result<()> {
        self.leave(host).await?;
        host.disconnect_fully(&path.nqn).await?;
        let device = host.connect(path).await?;
        self.mount(host, &device).await?;
        self.check(host).await?;
        self.leave(host).await?;
        host.disconnect_fully(&path.nqn).await
    }

    /// Mounts its file system from a device, which may have another name than before.
    pub async fn mount(&self, host: &LinuxHost, device: &str) -> Result<()> {
        match &self.mount {
            Some(mount) => host.mount(device, mount).await,
            None => Ok(()),
        }
    }

    /// Unmounts.
    pub async fn leave(&self, host: &LinuxHost) -> Result<()> {
        match &self.mount {
            Some(mount) => host.unmount(mount).await,
            None => Ok(()),
        }
    }
}

fn load_options(options: &AppOptions, path: &str) -> IoOptions {
    IoOptions {
        state: Some(format!("/run/{}.state", options.name).into()),
        pause_ms: options.pause_ms,
        blocks: options.blocks,
        threads: options.threads,
        tick_ms: options.tick_ms,
        ..IoOptions::new(&options.name, path)
    }
}
