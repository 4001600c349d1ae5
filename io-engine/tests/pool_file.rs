//! A pool on a real file, through io_uring, and what `pool-inspect` prints of it.

#[path = "pool/support.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use io_engine::block::{BaseDevice, BlockDevice};
use io_engine::device::{DeviceUri, open};
use io_engine::pool::{Expected, Host, Pool};
use support::*;
use uuid::Uuid;

async fn device(path: &Path) -> BaseDevice {
    let uri: DeviceUri = path.to_str().expect("a plain path").parse().expect("a path is a device");
    open(&uri).await.expect("the file opens")
}

fn inspect(path: &Path) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pool-inspect")).arg(path).output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_pool_on_a_file_outlives_its_engine_and_can_be_looked_at() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("disk");
    std::fs::File::create(&path).expect("a file").set_len(64 * MIB).expect("a sparse file");
    let (is_pool, text) = inspect(&path);
    assert!(!is_pool && text.contains("found nothing"), "{text}");
    runtime::block_on(async {
        let pool = Pool::create(device(&path).await, spec(), Host::here(Uuid::from_u128(1))).await;
        let pool = pool.expect("a clean disk");
        let replica = add(&pool, 1, 4 * MIB, true).await;
        write(&replica, MIB - 512, &[7; 2048]).await.expect("a healthy disk");
        replica.flush().await.expect("a healthy disk");
        write(&replica, 0, &[8; PAGE]).await.expect("a healthy disk");
        // No export: the engine is gone from one moment to the next.
    });
    let (is_pool, text) = inspect(&path);
    assert!(is_pool, "{text}");
    for part in [
        "name: \"pool\"",
        "name: \"replica-1\"",
        "BlocksWritten",
        "RegionsOpened",
        "would be next",
        "[0..1, 15..17]",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    runtime::block_on(async {
        let pool =
            Pool::import(device(&path).await, &Expected::default(), Host::here(Uuid::from_u128(2))).await;
        let pool = pool.expect("a killed engine's pool");
        let replica = get(&pool, 1);
        assert_eq!(read(&replica, MIB - 512, 2048).await, [7; 2048]);
        assert_eq!(read(&replica, 0, PAGE).await, [8; PAGE]);
        pool.destroy().await.expect("a healthy disk");
    });
    let (is_pool, text) = inspect(&path);
    assert!(!is_pool && text.contains("found nothing"), "{text}");
}
