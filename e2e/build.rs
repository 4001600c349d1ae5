//! Compiles the proto by which plugins register with kubelet; needs `protoc` (Debian: `protobuf-compiler`).

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_protos(&["proto/registration.proto"], &["proto"])
}
