//! Compiles the protos of CSI and of the NvmeConnect service; needs `protoc` (Debian: `protobuf-compiler`).

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure()
        // The service has a method of the name of the constructor that this would add.
        .build_transport(false)
        .compile_protos(&["proto/csi.proto", "proto/nvme.proto", "proto/node_plugin.proto"], &["proto"])
}
