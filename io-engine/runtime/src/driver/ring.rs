//! Setting up a ring: which flags this kernel takes, and what to do where it refuses.

use std::io;

use io_uring::IoUring;
use rustix::io::Errno;

/// Completion entries per submission entry: receives and timers may complete long before they are looked at, and an
/// overflowing queue costs a system call more per batch.
const COMPLETIONS_PER_SUBMISSION: u32 = 8;

/// Flags in the order in which they are given up, newest kernel first. All only make the ring cheaper.
const LADDER: [Flags; 4] = [
    // 6.1: completions are worked off when we ask for them, not in the middle of a task.
    Flags { is_deferred: true, is_single_issuer: true, is_cooperative: false },
    // 6.0
    Flags { is_deferred: false, is_single_issuer: true, is_cooperative: true },
    // 5.19: no inter-processor interrupt per completion.
    Flags { is_deferred: false, is_single_issuer: false, is_cooperative: true },
    Flags { is_deferred: false, is_single_issuer: false, is_cooperative: false },
];

#[derive(Clone, Copy)]
struct Flags {
    is_deferred: bool,
    is_single_issuer: bool,
    is_cooperative: bool,
}

/// A ring with as many of the flags as the kernel takes. It belongs to the calling thread.
pub(crate) fn set_up(entries: u32) -> io::Result<IoUring> {
    let mut refusal = None;
    for flags in LADDER {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(entries * COMPLETIONS_PER_SUBMISSION);
        if flags.is_deferred {
            builder.setup_defer_taskrun();
        }
        if flags.is_single_issuer {
            builder.setup_single_issuer();
        }
        if flags.is_cooperative {
            builder.setup_coop_taskrun();
        }
        if flags.is_deferred || flags.is_cooperative {
            builder.setup_taskrun_flag();
        }
        match builder.build(entries) {
            Ok(ring) => return finish(ring),
            // Only EINVAL speaks of flags; the first refusal of another kind is the one to explain.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = Some(error),
            Err(error) => return Err(refused(&error)),
        }
    }
    Err(refused(&refusal.expect("the ladder has rungs")))
}

fn finish(ring: IoUring) -> io::Result<IoUring> {
    let params = ring.params();
    if !(params.is_feature_ext_arg() && params.is_feature_nodrop() && params.is_feature_submit_stable()) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, TOO_OLD));
    }
    Ok(ring)
}

const TOO_OLD: &str = "io_uring of this kernel lacks what the engine needs (waiting with a time limit, no lost \
                       completions); install Linux 5.15 or newer, 6.1 or newer for full speed";

fn refused(error: &io::Error) -> io::Error {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let sysctl = sysctl.and_then(|text| text.trim().parse().ok());
    io::Error::new(error.kind(), format!("set up io_uring: {error}: {}", advice(errno, sysctl)))
}

/// What an administrator has to do, by what the kernel answered and by `kernel.io_uring_disabled`, if there is one.
fn advice(errno: Errno, sysctl: Option<u32>) -> &'static str {
    match (errno, sysctl) {
        (Errno::PERM, Some(2)) => {
            "the sysctl kernel.io_uring_disabled is 2: run `sysctl -w kernel.io_uring_disabled=0` on the node, and put \
             it into /etc/sysctl.d to keep it"
        }
        (Errno::PERM, Some(1)) => {
            "the sysctl kernel.io_uring_disabled is 1: run `sysctl -w kernel.io_uring_disabled=0` on the node, or put \
             the engine's group into kernel.io_uring_group"
        }
        (Errno::PERM | Errno::ACCESS, _) => {
            "a seccomp profile forbids it: set securityContext.seccompProfile.type to Unconfined (Kubernetes), run with \
             --security-opt seccomp=unconfined (Docker), or allow io_uring_setup, io_uring_enter and io_uring_register \
             in the profile"
        }
        (Errno::NOSYS, _) => {
            "this kernel has no io_uring, or a seccomp profile hides it: install Linux 5.15 or newer with \
             CONFIG_IO_URING, or allow io_uring_setup, io_uring_enter and io_uring_register in the profile"
        }
        (Errno::NOMEM, _) => {
            "the limit on locked memory is too low: set LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 (Docker), \
             `ulimit -l unlimited` (shell), or add the capability IPC_LOCK"
        }
        (Errno::MFILE | Errno::NFILE, _) => {
            "too many files are open: raise the limit with LimitNOFILE (systemd) or `ulimit -n` (shell)"
        }
        (Errno::INVAL, _) => TOO_OLD,
        _ => "the kernel gave no reason that we know; see its log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An administrator shall not have to search the web for what a refusal means.
    #[test]
    fn each_refusal_names_its_fix() {
        let cases = [
            (Errno::PERM, Some(2), "kernel.io_uring_disabled=0"),
            (Errno::PERM, Some(1), "kernel.io_uring_group"),
            (Errno::PERM, Some(0), "seccompProfile"),
            (Errno::PERM, None, "seccompProfile"),
            (Errno::NOSYS, None, "Linux 5.15"),
            (Errno::NOMEM, Some(0), "LimitMEMLOCK"),
            (Errno::MFILE, Some(0), "LimitNOFILE"),
            (Errno::INVAL, Some(0), "Linux 5.15"),
        ];
        for (errno, sysctl, fix) in cases {
            assert!(advice(errno, sysctl).contains(fix), "{errno:?} {sysctl:?}: {}", advice(errno, sysctl));
        }
    }

    #[test]
    fn a_ring_can_be_set_up_here() {
        let ring = set_up(64).unwrap();
        assert!(ring.params().sq_entries() >= 64);
    }
}
