//! StorageClass parameters: text in, one typed struct out. What is not known is refused by name.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use control_api::{LabelledTopology, NodeTopology, PoolTopology, Topology};

use crate::host::FileSystem;

/// The prefix of what the provisioner adds: the names of claim and volume.
const ADDED_BY_PROVISIONER: &str = "csi.storage.k8s.io/";

/// What a StorageClass asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// `repl`: replicas of a volume.
    pub replicas: u8,
    /// `thin`: replicas take space at first write.
    pub thin: bool,
    /// `fsType`: file system for volumes whose claim names none.
    pub fs_type: Option<FileSystem>,
    /// What the node connects with.
    pub connect: ConnectParams,
    /// Where replicas may be.
    pub topology: Topology,
    /// `stsAffinityGroup`: the claims of a `StatefulSet` are a group of volumes that are to fail apart.
    pub sts_affinity_group: bool,
    /// `csi.storage.k8s.io/pvc/namespace` and `name`: the claim, where the provisioner tells.
    pub claim: Option<(String, String)>,
}

/// What the node connects with, where it is not the node's own setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectParams {
    /// `ioTimeout` (seconds) or `nvmeIoTimeout` (`30s`, `2m`, `500ms`).
    pub io_timeout: Option<Duration>,
    /// `nvmeCtrlLossTmo`, seconds.
    pub ctrl_loss_tmo: Option<u32>,
    /// `nvmeKeepAliveTmo`, seconds.
    pub keep_alive_tmo: Option<u32>,
    /// `nvmeNrIoQueues`.
    pub nr_io_queues: Option<u32>,
}

/// A parameter that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// Nobody knows it.
    #[error("StorageClass parameter {name} is not known; known are {known}", known = KNOWN.join(", "))]
    Unknown {
        /// Its name.
        name: String,
    },
    /// It says what cannot be.
    #[error("StorageClass parameter {name}: {value:?} is not {wanted}")]
    Bad {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it has to be.
        wanted: &'static str,
    },
    /// It is about the claim, and nobody tells which that is.
    #[error(
        "StorageClass parameter stsAffinityGroup needs the name of the claim: run csi-provisioner with \
         --extra-create-metadata"
    )]
    NoClaim,
    /// The class says two things of one label.
    #[error(
        "StorageClass: allowedTopologies has {key}={allowed}, a node label in its parameters {key}={wanted}: no node has \
         both"
    )]
    Contradiction {
        /// The label's key.
        key: String,
        /// Its value in `allowedTopologies`.
        allowed: String,
        /// In the parameters.
        wanted: String,
    },
    /// Two that exclude each other.
    #[error("StorageClass parameters {0} and {1} exclude each other: give one of them")]
    Both(&'static str, &'static str),
}

const KNOWN: [&str; 19] = [
    "protocol",
    "repl",
    "thin",
    "fsType",
    "ioTimeout",
    "nvmeIoTimeout",
    "nvmeNrIoQueues",
    "nvmeCtrlLossTmo",
    "nvmeKeepAliveTmo",
    "stsAffinityGroup",
    "cloneFsIdAsVolumeId",
    "maxSnapshots",
    "poolAffinityTopologyLabel",
    "poolHasTopologyKey",
    "poolAffinityTopologyKey",
    "nodeAffinityTopologyLabel",
    "nodeHasTopologyKey",
    "nodeAffinityTopologyKey",
    "nodeSpreadTopologyKey",
];

impl Params {
    /// Reads the parameters of a StorageClass.
    pub fn parse(given: &HashMap<String, String>) -> Result<Self, ParamError> {
        for name in given.keys() {
            if !KNOWN.contains(&name.as_str()) && !name.starts_with(ADDED_BY_PROVISIONER) {
                return Err(ParamError::Unknown { name: name.clone() });
            }
        }
        let get = |name: &'static str| given.get(name).map(|value| (name, value.trim()));
        if let Some((name, value)) = get("protocol").filter(|(_, value)| *value != "nvmf") {
            return bad(name, value, "nvmf, the only protocol");
        }
        // Of what these two ask for nothing is to be done before there are snapshots.
        get("cloneFsIdAsVolumeId").map(boolean).transpose()?;
        get("maxSnapshots").map(number).transpose()?;
        let fs_type = get("fsType")
            .map(|(name, value)| value.parse().or_else(|_| bad(name, value, "one of ext4, xfs, btrfs")))
            .transpose()?;
        let claim = |what: &str| given.get(&format!("{ADDED_BY_PROVISIONER}pvc/{what}")).cloned();
        Ok(Self {
            replicas: get("repl").map(replicas).transpose()?.unwrap_or(1),
            thin: get("thin").map(boolean).transpose()?.unwrap_or(false),
            fs_type,
            connect: ConnectParams::parse(given)?,
            topology: topology(given)?,
            sts_affinity_group: get("stsAffinityGroup").map(boolean).transpose()?.unwrap_or(false),
            claim: claim("namespace").zip(claim("name")),
        })
    }
}

impl Params {
    /// Keeps replicas to nodes with these labels too.
    pub fn keep_to(&mut self, labels: BTreeMap<String, String>) -> Result<(), ParamError> {
        if labels.is_empty() {
            return Ok(());
        }
        let mut node = match self.topology.node_topology.take() {
            Some(NodeTopology::Labelled(node)) => node,
            _ => LabelledTopology::default(),
        };
        for (key, allowed) in labels {
            match node.inclusion.get(&key) {
                Some(wanted) if !wanted.is_empty() && *wanted != allowed => {
                    let wanted = wanted.clone();
                    return Err(ParamError::Contradiction { key, allowed, wanted });
                }
                _ => drop(node.inclusion.insert(key, allowed)),
            }
        }
        self.topology.node_topology = Some(NodeTopology::Labelled(node));
        Ok(())
    }

    /// The affinity group of the claim's volume: the claims that a `StatefulSet` makes of one template, in one namespace.
    /// Other claims have none.
    pub fn affinity_group(&self) -> Result<Option<String>, ParamError> {
        if !self.sts_affinity_group {
            return Ok(None);
        }
        let (namespace, claim) = self.claim.as_ref().ok_or(ParamError::NoClaim)?;
        Ok(without_ordinal(claim).map(|group| format!("{namespace}/{group}")))
    }
}

/// A claim of a `StatefulSet` is `<template>-<set>-<ordinal>`: a label of DNS (RFC 1123) and a number.
fn without_ordinal(claim: &str) -> Option<&str> {
    let (group, ordinal) = claim.rsplit_once('-')?;
    let is_number = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_label = group.bytes().all(|b| is_alphanumeric(b) || b == b'-')
        && group.bytes().next().is_some_and(is_alphanumeric)
        && group.bytes().last().is_some_and(is_alphanumeric);
    (is_number && is_label).then_some(group)
}

impl ConnectParams {
    /// Reads what concerns the connection, from a StorageClass or from the context made of one.
    pub fn parse(given: &HashMap<String, String>) -> Result<Self, ParamError> {
        let get = |name: &'static str| given.get(name).map(|value| (name, value.trim()));
        let io_timeout = match (get("ioTimeout"), get("nvmeIoTimeout")) {
            (Some(_), Some(_)) => return Err(ParamError::Both("ioTimeout", "nvmeIoTimeout")),
            (Some(seconds), None) => {
                Some(time_of_io(seconds, Duration::from_secs(positive(seconds)?.into()))?)
            }
            (None, Some(text)) => Some(time_of_io(text, duration(text)?)?),
            (None, None) => None,
        };
        Ok(Self {
            io_timeout,
            ctrl_loss_tmo: get("nvmeCtrlLossTmo").map(signed).transpose()?,
            keep_alive_tmo: get("nvmeKeepAliveTmo").map(positive).transpose()?,
            nr_io_queues: get("nvmeNrIoQueues").map(positive).transpose()?,
        })
    }

    /// The same as a publish context, which [`crate::node::Settings::with_context`] reads. Times are whole seconds.
    pub fn context(&self) -> HashMap<String, String> {
        let seconds = |time: Duration| u64::from(time.subsec_nanos() > 0) + time.as_secs();
        let pairs = [
            ("ioTimeout", self.io_timeout.map(seconds)),
            ("nvmeCtrlLossTmo", self.ctrl_loss_tmo.map(u64::from)),
            ("nvmeKeepAliveTmo", self.keep_alive_tmo.map(u64::from)),
            ("nvmeNrIoQueues", self.nr_io_queues.map(u64::from)),
        ];
        let given = pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_string())));
        given.collect()
    }
}

type Named<'a> = (&'static str, &'a str);

fn bad<T>(name: &'static str, value: &str, wanted: &'static str) -> Result<T, ParamError> {
    Err(ParamError::Bad { name, value: value.to_owned(), wanted })
}

fn number((name, value): Named<'_>) -> Result<u32, ParamError> {
    value.parse().or_else(|_| bad(name, value, "a whole number"))
}

/// The kernel reads options of a connect as numbers with a sign.
fn signed((name, value): Named<'_>) -> Result<u32, ParamError> {
    match number((name, value))? {
        count if i32::try_from(count).is_ok() => Ok(count),
        _ => bad(name, value, "a whole number, at most 2147483647"),
    }
}

/// What the node refuses as zero is refused here, where the class is read: no pod waits for such a volume.
fn positive((name, value): Named<'_>) -> Result<u32, ParamError> {
    match signed((name, value))? {
        0 => bad(name, value, "a whole number, at least 1"),
        count => Ok(count),
    }
}

/// The kernel keeps it as a number of milliseconds, and none is no time-out.
fn time_of_io((name, value): Named<'_>, time: Duration) -> Result<Duration, ParamError> {
    let is_kept = !time.is_zero() && u32::try_from(time.as_millis()).is_ok();
    if is_kept { Ok(time) } else { bad(name, value, "a time of more than nothing and less than 49 days") }
}

/// `repl`, wherever it is given.
pub(crate) fn replicas((name, value): Named<'_>) -> Result<u8, ParamError> {
    match value.parse() {
        Ok(count) if count >= 1 => Ok(count),
        _ => bad(name, value, "a number of replicas, at least 1"),
    }
}

fn boolean((name, value): Named<'_>) -> Result<bool, ParamError> {
    value.parse().or_else(|_| bad(name, value, "true or false"))
}

fn duration((name, value): Named<'_>) -> Result<Duration, ParamError> {
    const WANTED: &str = "a time such as 500ms, 30s or 2m";
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (count, unit) = value.split_at(digits);
    let Ok(count) = count.parse::<u32>() else { return bad(name, value, WANTED) };
    match unit.trim() {
        "ms" => Ok(Duration::from_millis(count.into())),
        "" | "s" => Ok(Duration::from_secs(count.into())),
        "m" | "min" => Ok(Duration::from_secs(u64::from(count) * 60)),
        "h" => Ok(Duration::from_secs(u64::from(count) * 3600)),
        _ => bad(name, value, WANTED),
    }
}

/// `key: value`, a line each.
fn labels((name, value): Named<'_>) -> Result<BTreeMap<String, String>, ParamError> {
    let lines = value.lines().map(str::trim).filter(|line| !line.is_empty());
    let found: Option<BTreeMap<_, _>> = lines
        .map(|line| {
            let (key, value) = line.split_once(':')?;
            let (key, value) = (key.trim(), value.trim());
            (!key.is_empty() && !value.is_empty()).then(|| (key.to_owned(), value.to_owned()))
        })
        .collect();
    match found {
        Some(found) if !found.is_empty() => Ok(found),
        _ => bad(name, value, "lines of `key: value`"),
    }
}

/// Keys, a line each.
fn keys((name, value): Named<'_>) -> Result<Vec<String>, ParamError> {
    let lines = value.lines().map(str::trim).filter(|line| !line.is_empty());
    let found: Vec<String> = lines.map(str::to_owned).collect();
    if found.is_empty() || found.iter().any(|key| key.contains([':', ' '])) {
        return bad(name, value, "keys, a line each");
    }
    Ok(found)
}

fn topology(given: &HashMap<String, String>) -> Result<Topology, ParamError> {
    let get = |name: &'static str| given.get(name).map(|value| (name, value.as_str()));
    let without_value = |keys: Vec<String>| keys.into_iter().map(|key| (key, String::new()));
    let mut pool = LabelledTopology::default();
    pool.inclusion.extend(get("poolAffinityTopologyLabel").map(labels).transpose()?.unwrap_or_default());
    pool.inclusion
        .extend(without_value(get("poolHasTopologyKey").map(keys).transpose()?.unwrap_or_default()));
    pool.affinitykey = get("poolAffinityTopologyKey").map(keys).transpose()?.unwrap_or_default();
    let mut node = LabelledTopology::default();
    node.inclusion.extend(get("nodeAffinityTopologyLabel").map(labels).transpose()?.unwrap_or_default());
    node.inclusion
        .extend(without_value(get("nodeHasTopologyKey").map(keys).transpose()?.unwrap_or_default()));
    node.exclusion
        .extend(without_value(get("nodeSpreadTopologyKey").map(keys).transpose()?.unwrap_or_default()));
    node.affinitykey = get("nodeAffinityTopologyKey").map(keys).transpose()?.unwrap_or_default();
    let given = |topology: LabelledTopology| (topology != LabelledTopology::default()).then_some(topology);
    Ok(Topology {
        node_topology: given(node).map(NodeTopology::Labelled),
        pool_topology: given(pool).map(PoolTopology::Labelled),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_class_without_parameters_asks_for_one_thick_replica() {
        let params = Params::parse(&HashMap::new()).unwrap();
        assert_eq!((params.replicas, params.thin, params.topology), (1, false, Topology::default()));
        assert_eq!(params.connect, ConnectParams::default());
    }

    #[test]
    fn every_parameter_is_read() {
        let params = Params::parse(&given(&[
            ("protocol", "nvmf"),
            ("repl", "3"),
            ("thin", "true"),
            ("fsType", "xfs"),
            ("nvmeIoTimeout", "2m"),
            ("nvmeNrIoQueues", "4"),
            ("nvmeCtrlLossTmo", "1980"),
            ("nvmeKeepAliveTmo", "5"),
            ("stsAffinityGroup", "true"),
            ("cloneFsIdAsVolumeId", "true"),
            ("maxSnapshots", "5"),
            ("poolAffinityTopologyLabel", "disk: ssd\nclass: hot\n"),
            ("poolHasTopologyKey", "rack\n"),
            ("poolAffinityTopologyKey", "row"),
            ("nodeAffinityTopologyLabel", "zone: a"),
            ("nodeHasTopologyKey", "kind"),
            ("nodeSpreadTopologyKey", "rack\nrow"),
            ("csi.storage.k8s.io/pvc/name", "data-db-0"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
        ]))
        .unwrap();
        assert_eq!((params.replicas, params.thin, params.fs_type), (3, true, Some(FileSystem::Xfs)));
        assert_eq!(
            params.connect,
            ConnectParams {
                io_timeout: Some(Duration::from_secs(120)),
                ctrl_loss_tmo: Some(1980),
                keep_alive_tmo: Some(5),
                nr_io_queues: Some(4)
            }
        );
        let map = |pairs: &[(&str, &str)]| given(pairs).into_iter().collect::<BTreeMap<_, _>>();
        let pool = LabelledTopology {
            inclusion: map(&[("disk", "ssd"), ("class", "hot"), ("rack", "")]),
            affinitykey: vec!["row".to_owned()],
            ..LabelledTopology::default()
        };
        assert_eq!(params.topology.pool_topology, Some(PoolTopology::Labelled(pool)));
        let node = LabelledTopology {
            inclusion: map(&[("zone", "a"), ("kind", "")]),
            exclusion: map(&[("rack", ""), ("row", "")]),
            affinitykey: vec![],
        };
        assert_eq!(params.topology.node_topology, Some(NodeTopology::Labelled(node)));
        assert_eq!(params.claim, Some(("shop".into(), "data-db-0".into())));
        assert_eq!(params.affinity_group(), Ok(Some("shop/data-db".into())));
    }

    #[test]
    fn allowed_topologies_are_labels_that_nodes_must_have_too() {
        let zone = || BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let kept = |pairs: &[(&str, &str)]| {
            let mut params = Params::parse(&given(pairs)).unwrap();
            params.keep_to(zone()).map(|()| params.topology.node_topology)
        };
        let only = LabelledTopology { inclusion: zone(), ..LabelledTopology::default() };
        let only = Some(NodeTopology::Labelled(only));
        assert_eq!(kept(&[]).unwrap(), only);
        assert_eq!(kept(&[("nodeHasTopologyKey", "zone")]).unwrap(), only);
        assert_eq!(kept(&[("nodeAffinityTopologyLabel", "zone: a")]).unwrap(), only);
        let error = kept(&[("nodeAffinityTopologyLabel", "zone: b")]).unwrap_err().to_string();
        assert!(error.contains("zone=a") && error.contains("zone=b"), "{error}");
        let Some(NodeTopology::Labelled(spread)) = kept(&[("nodeSpreadTopologyKey", "rack")]).unwrap() else {
            panic!("labels")
        };
        assert!(spread.exclusion.contains_key("rack") && spread.inclusion == zone());
        let mut params = Params::parse(&HashMap::new()).unwrap();
        params.keep_to(BTreeMap::new()).unwrap();
        assert_eq!(params.topology, Topology::default());
    }

    #[test]
    fn claims_of_one_template_and_set_are_a_group_and_others_are_none() {
        let group = |claim: &str| {
            let named = [
                ("stsAffinityGroup", "true"),
                ("csi.storage.k8s.io/pvc/name", claim),
                ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ];
            Params::parse(&given(&named)).unwrap().affinity_group().unwrap()
        };
        for (claim, expected) in [
            ("data-db-0", Some("shop/data-db")),
            ("data-db-17", Some("shop/data-db")),
            ("logs-db-0", Some("shop/logs-db")),
            ("a-1-2", Some("shop/a-1")),
            ("9-0", Some("shop/9")),
            ("data", None),
            ("data-db", None),
            ("data-db-", None),
            ("data-db-0x", None),
            ("data--0", None),
            ("-0", None),
            ("0", None),
            ("data.db-0", None),
        ] {
            assert_eq!(group(claim).as_deref(), expected, "{claim}");
        }
        let of = |pairs: &[(&str, &str)]| Params::parse(&given(pairs)).unwrap().affinity_group();
        let claim = ("csi.storage.k8s.io/pvc/name", "data-db-0");
        assert_eq!(of(&[claim, ("csi.storage.k8s.io/pvc/namespace", "shop")]), Ok(None), "not asked for");
        let unnamed = of(&[("stsAffinityGroup", "true")]).unwrap_err().to_string();
        assert!(unnamed.contains("--extra-create-metadata"), "{unnamed}");
    }

    #[test]
    fn what_is_unknown_or_wrong_is_refused_by_name() {
        for (name, value) in [
            ("replicas", "3"),
            ("protocol", "iscsi"),
            ("repl", "0"),
            ("repl", "many"),
            ("repl", "300"),
            ("thin", "yes"),
            ("fsType", "ntfs"),
            ("ioTimeout", "30s"),
            ("nvmeIoTimeout", "3 weeks"),
            ("ioTimeout", "0"),
            ("ioTimeout", "4294968"),
            ("nvmeIoTimeout", "0s"),
            ("nvmeIoTimeout", "1200h"),
            ("nvmeNrIoQueues", "-1"),
            ("nvmeNrIoQueues", "0"),
            ("nvmeKeepAliveTmo", "0"),
            ("nvmeCtrlLossTmo", "2147483648"),
            ("stsAffinityGroup", "yes"),
            ("poolAffinityTopologyLabel", "ssd"),
            ("poolAffinityTopologyKey", "zone: a"),
            ("nodeHasTopologyKey", "a: b"),
        ] {
            let error = Params::parse(&given(&[(name, value)])).expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
        for (text, milliseconds) in
            [("500ms", 500), ("30", 30_000), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)]
        {
            let params = Params::parse(&given(&[("nvmeIoTimeout", text)])).unwrap();
            assert_eq!(params.connect.io_timeout, Some(Duration::from_millis(milliseconds)), "{text}");
        }
        let both = Params::parse(&given(&[("ioTimeout", "30"), ("nvmeIoTimeout", "30s")]));
        assert!(both.unwrap_err().to_string().contains("ioTimeout and nvmeIoTimeout"));
    }

    /// A volume that no node could stage would be found with its first pod.
    #[test]
    fn what_a_class_may_ask_for_a_node_takes() {
        use crate::host::HostIdentity;
        use crate::node::Settings;

        let settings = Settings::new(HostIdentity::of_node("n1").expect("a name"));
        for (name, value) in [
            ("ioTimeout", "1"),
            ("ioTimeout", "4294967"),
            ("nvmeIoTimeout", "1ms"),
            ("nvmeNrIoQueues", "1"),
            ("nvmeKeepAliveTmo", "1"),
            ("nvmeCtrlLossTmo", "0"),
            ("nvmeCtrlLossTmo", "2147483647"),
        ] {
            let context = ConnectParams::parse(&given(&[(name, value)])).unwrap().context();
            assert_eq!(context.len(), 1, "{name}");
            settings.with_context(&context).unwrap_or_else(|error| panic!("{name}: {value}: {error}"));
        }
    }
}
