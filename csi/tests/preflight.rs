//! A machine that cannot connect says what to do about it.

use std::fs;

use csi::host::tree::Tree;
use csi::host::{Nvme as _, Unfit};

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let tree = Tree::new().unwrap();
    let host = tree.host();
    host.preflight().unwrap();
    assert_eq!(host.admin_timeout().unwrap().as_secs(), 60);

    let parameter = tree.root().join("sys/module/nvme_core/parameters/multipath");
    fs::write(&parameter, "N\n").unwrap();
    assert_eq!(host.preflight(), Err(Unfit::MultipathOff));
    assert!(Unfit::MultipathOff.to_string().contains("nvme_core.multipath=Y"));
    fs::remove_file(&parameter).unwrap();
    assert_eq!(host.preflight(), Err(Unfit::MultipathAbsent));

    let fabrics = tree.root().join("dev/nvme-fabrics");
    fs::remove_file(&fabrics).unwrap();
    let unfit = host.preflight().unwrap_err();
    assert!(unfit.to_string().contains("modprobe nvme_fabrics"), "{unfit}");

    fs::remove_dir(tree.root().join("sys/module/nvme_tcp")).unwrap();
    let unfit = host.preflight().unwrap_err();
    assert!(unfit.to_string().contains("modprobe nvme_tcp"), "{unfit}");
}

/// Before the first module is loaded there is no list, which is an empty one.
#[test]
fn a_machine_without_nvme_has_no_controllers() {
    let tree = Tree::new().unwrap();
    fs::remove_dir(tree.root().join("sys/class/nvme")).unwrap();
    assert_eq!(tree.host().controllers().unwrap(), []);
    assert_eq!(tree.host().states().unwrap(), []);
}
