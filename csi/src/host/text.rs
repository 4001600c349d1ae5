//! The kernel's words, read and written; nothing here touches the machine.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ::nvme::ana::AnaState;

use super::{ConnectOptions, ControllerState, Target};

/// The port where a URI names none.
pub const DEFAULT_PORT: u16 = 4420;

impl ControllerState {
    /// From sysfs `state`.
    pub fn parse(text: &str) -> Self {
        match text.trim() {
            "new" => Self::New,
            "live" => Self::Live,
            "resetting" => Self::Resetting,
            "connecting" => Self::Connecting,
            // "deleting (no IO)" while namespaces are being removed.
            word if word.starts_with("deleting") => Self::Deleting,
            "dead" => Self::Dead,
            _ => Self::Other,
        }
    }

    /// As sysfs says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Live => "live",
            Self::Resetting => "resetting",
            Self::Connecting => "connecting",
            Self::Deleting => "deleting",
            Self::Dead => "dead",
            Self::Other => "unknown",
        }
    }
}

/// From sysfs `ana_state`.
pub fn parse_ana(text: &str) -> Option<AnaState> {
    Some(match text.trim() {
        "optimized" => AnaState::Optimized,
        "non-optimized" => AnaState::NonOptimized,
        "inaccessible" => AnaState::Inaccessible,
        "persistent-loss" => AnaState::PersistentLoss,
        "change" => AnaState::Change,
        _ => return None,
    })
}

/// As sysfs says it.
pub fn ana_name(state: AnaState) -> &'static str {
    match state {
        AnaState::Optimized => "optimized",
        AnaState::NonOptimized => "non-optimized",
        AnaState::Inaccessible => "inaccessible",
        AnaState::PersistentLoss => "persistent-loss",
        AnaState::Change => "change",
    }
}

/// From sysfs `address`: `traddr=10.77.0.1,trsvcid=8420,src_addr=10.77.0.100`.
pub fn parse_address(text: &str) -> Option<SocketAddr> {
    let value = |key| text.trim().split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let address: IpAddr = value("traddr")?.parse().ok()?;
    let port = value("trsvcid")?.parse().ok()?;
    Some(SocketAddr::new(address, port))
}

/// The device over all paths of `nvme0c1n2`: `nvme0n2`. `None` for what is no path: `nvme0n2` itself, for one.
pub fn head_of(path: &str) -> Option<String> {
    let (subsystem, rest) = path.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(subsystem) && is_number(controller) && is_number(namespace))
        .then(|| format!("nvme{subsystem}n{namespace}"))
}

/// What to write to /dev/nvme-fabrics. `fast_io_fail_tmo` is left out, which is off (SAFETY F5).
pub fn connect_line(target: &Target, options: &ConnectOptions) -> String {
    let ConnectOptions { host, io_queues, reconnect_delay, controller_loss, keep_alive } = options;
    let mut line = format!(
        "transport=tcp,traddr={},trsvcid={},nqn={},hostnqn={},hostid={}",
        target.address.ip(),
        target.address.port(),
        target.nqn,
        host.nqn,
        host.id,
    );
    let loss = controller_loss.map_or_else(|| "-1".to_owned(), |time| time.as_secs().to_string());
    write!(
        line,
        ",nr_io_queues={io_queues},reconnect_delay={},ctrl_loss_tmo={loss},keep_alive_tmo={}",
        reconnect_delay.as_secs(),
        keep_alive.as_secs(),
    )
    .expect("a string takes what is written to it");
    line
}

/// The name of the new controller, from the answer of /dev/nvme-fabrics: `instance=0,cntlid=1`.
pub fn parse_answer(text: &str) -> Option<String> {
    let instance: u32 =
        text.trim().split(',').find_map(|pair| pair.strip_prefix("instance="))?.parse().ok()?;
    Some(format!("nvme{instance}"))
}

/// What a line of /dev/kmsg says of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelWord {
    /// `nvme0`
    pub controller: String,
    /// What.
    pub news: News,
}

/// What the kernel says of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// An attempt to connect anew failed.
    AttemptFailed,
    /// Anything else: a reason to look.
    Other,
}

/// From one record of /dev/kmsg, `4,1234,5678,-;nvme nvme0: starting error recovery`. `None` where it is about
/// something else.
pub fn parse_kernel_log(record: &str) -> Option<KernelWord> {
    let (_, message) = record.lines().next()?.split_once(';')?;
    let (controller, words) = message.strip_prefix("nvme ")?.split_once(": ")?;
    controller.strip_prefix("nvme")?.parse::<u32>().ok()?;
    let news = match words.starts_with("Failed reconnect attempt") {
        true => News::AttemptFailed,
        false => News::Other,
    };
    Some(KernelWord { controller: controller.to_owned(), news })
}

/// Why a URI names no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Another scheme than ours.
    #[error("{uri}: the scheme is not nvmf or nvmf+tcp")]
    Scheme {
        /// The text.
        uri: String,
    },
    /// No address.
    #[error("{uri}: no address")]
    Address {
        /// The text.
        uri: String,
    },
    /// No NQN, or one that would break the line for the kernel.
    #[error("{uri}: the path is not an NQN")]
    Subsystem {
        /// The text.
        uri: String,
    },
}

impl Target {
    /// From `nvmf://<address>[:<port>]/<nqn>[?…]`; `nvmf+tcp` is the same.
    pub fn parse(uri: &str) -> Result<Self, UriError> {
        let text = || uri.to_owned();
        let rest = ["nvmf+tcp://", "nvmf://"]
            .iter()
            .find_map(|scheme| uri.strip_prefix(scheme))
            .ok_or_else(|| UriError::Scheme { uri: text() })?;
        let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
        let (authority, nqn) = rest.split_once('/').unwrap_or((rest, ""));
        let address = authority
            .parse()
            .or_else(|_| {
                let host = authority.trim_start_matches('[').trim_end_matches(']');
                host.parse().map(|ip: IpAddr| SocketAddr::new(ip, DEFAULT_PORT))
            })
            .map_err(|_| UriError::Address { uri: text() })?;
        // A comma would begin another option of the kernel's, a line feed another line.
        let is_sound = ::nvme::Nqn::new(nqn).is_ok()
            && nqn.starts_with("nqn.")
            && !nqn.contains([',', '/', '\\'])
            && nqn.chars().all(|character| character.is_ascii_graphic());
        match is_sound {
            true => Ok(Self { nqn: nqn.to_owned(), address }),
            false => Err(UriError::Subsystem { uri: text() }),
        }
    }
}

/// From sysfs `queue/io_timeout`, in milliseconds.
pub fn parse_io_timeout(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::HostIdentity;

    const NQN: &str = "nqn.2019-05.io.openebs:0f1c3a52-9a9e-4b0c-8a37-6c2b8f0f6b11";

    /// Golden: the line is the contract with the kernel. F5: no time-out that ends the host's hope is in it.
    #[test]
    fn f5_the_line_for_the_kernel_never_gives_up_and_never_fails_fast() {
        let target = Target { nqn: NQN.into(), address: "10.77.0.1:8420".parse().unwrap() };
        let mut options = ConnectOptions {
            host: HostIdentity::of_node("n1").expect("a name"),
            io_queues: 2,
            reconnect_delay: Duration::from_secs(1),
            controller_loss: None,
            keep_alive: Duration::from_secs(2),
        };
        let id = options.host.id;
        assert_eq!(
            connect_line(&target, &options),
            format!(
                "transport=tcp,traddr=10.77.0.1,trsvcid=8420,nqn={NQN},\
                 hostnqn=nqn.2019-05.io.openebs:node-name:n1,hostid={id},nr_io_queues=2,reconnect_delay=1,\
                 ctrl_loss_tmo=-1,keep_alive_tmo=2"
            )
        );
        options.controller_loss = Some(Duration::from_secs(600));
        assert!(connect_line(&target, &options).contains("ctrl_loss_tmo=600"));
    }

    #[test]
    fn states_are_read_as_the_kernel_writes_them() {
        let read =
            ["live\n", "resetting\n", "connecting\n", "deleting\n", "deleting (no IO)\n", "dead\n", "x"];
        let read = read.map(ControllerState::parse);
        use ControllerState::{Connecting, Dead, Deleting, Live, Other, Resetting};
        assert_eq!(read, [Live, Resetting, Connecting, Deleting, Deleting, Dead, Other]);
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let v4 = parse_address("traddr=10.77.0.1,trsvcid=8420,src_addr=10.77.0.100\n").unwrap();
        assert_eq!(v4, "10.77.0.1:8420".parse().unwrap());
        let v6 = parse_address("traddr=fd00::1,trsvcid=4420").unwrap();
        assert_eq!(v6, "[fd00::1]:4420".parse().unwrap());
        assert_eq!(parse_address("0000:00:04.0"), None, "a PCIe controller has no such address");
    }

    #[test]
    fn a_path_names_its_head() {
        assert_eq!(head_of("nvme0c1n2").as_deref(), Some("nvme0n2"));
        for other in ["nvme0n1", "nvme0", "nvmecn", "nvme0c1n2p1", "hwmon3", "nvme0c1n"] {
            assert_eq!(head_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_answer_names_the_controller() {
        assert_eq!(parse_answer("instance=12,cntlid=1\n").as_deref(), Some("nvme12"));
        assert_eq!(parse_answer("instance=-1,cntlid=-1"), None);
    }

    #[test]
    fn the_kernel_log_tells_attempts_from_other_news() {
        let word = |news| Some(KernelWord { controller: "nvme3".into(), news });
        let record = |text: &str| parse_kernel_log(&format!("4,901,77665544,-;{text}\n SUBSYSTEM=nvme\n"));
        assert_eq!(record("nvme nvme3: Failed reconnect attempt 1"), word(News::AttemptFailed));
        assert_eq!(record("nvme nvme3: Failed reconnect attempt 1/-1"), word(News::AttemptFailed));
        assert_eq!(record("nvme nvme3: starting error recovery"), word(News::Other));
        assert_eq!(record("nvme nvme3: Reconnecting in 1 seconds..."), word(News::Other));
        for other in
            ["block nvme0n1: no usable path - requeuing I/O", "eth0: link up", "nvme nvmet: hi: there"]
        {
            assert_eq!(record(other), None, "{other}");
        }
        assert_eq!(parse_kernel_log(""), None);
    }

    #[test]
    fn uris_of_the_control_plane_name_a_target() {
        let target = Target::parse(&format!("nvmf://10.77.0.2:8420/{NQN}?uuid=7")).unwrap();
        assert_eq!((target.nqn.as_str(), target.address), (NQN, "10.77.0.2:8420".parse().unwrap()));
        let target = Target::parse(&format!("nvmf+tcp://10.77.0.2/{NQN}")).unwrap();
        assert_eq!(target.address.port(), DEFAULT_PORT);
        let target = Target::parse(&format!("nvmf://[fd00::2]/{NQN}")).unwrap();
        assert_eq!(target.address, "[fd00::2]:4420".parse().unwrap());
    }

    /// The line is one string of options: what a peer sends must not become an option of its own.
    #[test]
    fn a_uri_cannot_smuggle_options_to_the_kernel() {
        for path in ["", "nqn.a,hostnqn=nqn.b", "nqn.a\nb", "nqn.a b", "nqn.a/b", "other"] {
            let error = Target::parse(&format!("nvmf://10.0.0.1:1/{path}")).unwrap_err();
            assert!(matches!(error, UriError::Subsystem { .. }), "{path:?}: {error}");
        }
        assert!(matches!(Target::parse("iscsi://10.0.0.1/x"), Err(UriError::Scheme { .. })));
        assert!(matches!(
            Target::parse(&format!("nvmf://host.example/{NQN}")),
            Err(UriError::Address { .. })
        ));
    }

    proptest! {
        /// sysfs and the log are the kernel's, and yet nothing of them may end the agent.
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC*|nvme[0-9cn]*|[a-z=,:.0-9;\\n ]*") {
            ControllerState::parse(&text);
            parse_ana(&text);
            parse_address(&text);
            head_of(&text);
            parse_answer(&text);
            parse_kernel_log(&text);
            parse_io_timeout(&text);
            Target::parse(&text).ok();
            Target::parse(&format!("nvmf://{text}")).ok();
        }
    }
}
