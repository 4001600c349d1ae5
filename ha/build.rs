//! Compiles the protos of the two agents; needs `protoc` (Debian: `protobuf-compiler`).

fn main() -> std::io::Result<()> {
    const PROTOS: [&str; 2] = ["proto/v1/ha/cluster_agent.proto", "proto/v1/ha/node_agent.proto"];
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure().include_file("protos.rs").compile_protos(&PROTOS, &["proto"])
}
