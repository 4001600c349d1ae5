//! What the node agent says when it does not start.

use std::process::Command;

#[test]
fn a_node_whose_name_no_nqn_has_room_for_is_told_so_before_anything_else() {
    let name = "n".repeat(191);
    let options = ["--grpc-ip", "127.0.0.1", "--cluster-agent", "http://127.0.0.1:1", "--node-name", &name];
    let started = Command::new(env!("CARGO_BIN_EXE_ha-node")).args(options).output();
    let output = started.expect("the program is there");
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    for told in ["--node-name", "190 bytes at most and this one has 191", "kubelet --hostname-override"] {
        assert!(text.contains(told), "{text}");
    }
}
