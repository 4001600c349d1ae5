//! Compiles the protos of `mayastor.v1`; needs `protoc` (Debian: `protobuf-compiler`).

fn main() -> std::io::Result<()> {
    const PROTOS: [&str; 12] = [
        "proto/bdev.proto",
        "proto/common.proto",
        "proto/host.proto",
        "proto/json.proto",
        "proto/nexus.proto",
        "proto/pool.proto",
        "proto/registration.proto",
        "proto/replica.proto",
        "proto/snapshot-rebuild.proto",
        "proto/snapshot.proto",
        "proto/stats.proto",
        "proto/test.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure().compile_protos(&PROTOS, &["proto"])
}
