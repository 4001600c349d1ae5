//! Commands as calls to the engine.

use engine_api::{
    AddChild, ApiError, CNTLID_RANGE, Call, ChildAction, ChildRef, CreateNexus, CreatePool, CreateReplica,
    DestroyReplica, Engine, ErrorKind, ImportPool, Nexus, PoolRef, PoolSelector, Share,
};
use uuid::Uuid;

use crate::arguments::{
    ChildCommand, ChildName, Command, HostCommand, Hosts, NexusCommand, PoolCommand, PoolName,
    RebuildCommand, ReplicaCommand,
};
use crate::failure::Failure;
use crate::size::Size;
use crate::view::{Rebuild, View};

/// One engine and how it is talked to.
pub(crate) struct Session<'a> {
    pub(crate) engine: &'a dyn Engine,
    pub(crate) call: Call,
    pub(crate) endpoint: &'a str,
}

impl From<Hosts> for Share {
    fn from(hosts: Hosts) -> Self {
        Self { allowed_hosts: hosts.allowed }
    }
}

impl Session<'_> {
    pub(crate) async fn run(&self, command: Command) -> Result<View, Failure> {
        match command {
            Command::Pool(command) => self.pool(command).await,
            Command::Replica(command) => self.replica(command).await,
            Command::Nexus(command) => self.nexus(command).await,
            Command::Child(command) => self.child(command).await,
            Command::Rebuild(command) => self.rebuild(command).await,
            Command::Host(command) => self.host(command).await,
        }
    }

    /// Says what was asked for when it fails.
    fn asked(&self, asked: impl Into<String>) -> impl FnOnce(ApiError) -> Failure {
        let (asked, endpoint) = (asked.into(), self.endpoint);
        move |error| Failure::new(asked, error, endpoint)
    }

    async fn pool(&self, command: PoolCommand) -> Result<View, Failure> {
        let Self { engine, call, .. } = *self;
        match command {
            PoolCommand::List => {
                engine.list_pools().await.map(View::Pools).map_err(self.asked("list the pools"))
            }
            PoolCommand::Create { name, disk, uuid, cluster_size, cluster } => {
                let asked = self.asked(format!("create pool {name} on {disk}"));
                let cluster_bytes = match cluster_size.map(|Size(bytes)| u32::try_from(bytes)) {
                    None => None,
                    Some(Ok(bytes)) => Some(bytes),
                    Some(Err(_)) => {
                        let why = "--cluster-size: a multiple of 1 MiB up to 1 GiB is needed";
                        return Err(asked(ApiError::invalid(why)));
                    }
                };
                let request = CreatePool { name, uuid, disk, cluster_bytes, cluster };
                let failed = |error: ApiError| {
                    let is_disk = matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::NotFound);
                    let failure = asked(error);
                    match is_disk {
                        true => failure.with_next(
                            "`host block-devices` lists the disks that a pool can be made on; --all says what the \
                             others hold",
                        ),
                        false => failure,
                    }
                };
                engine.create_pool(call, request).await.map(View::Pool).map_err(failed)
            }
            PoolCommand::Import { name, disk, uuid } => {
                let asked = self.asked(format!("import pool {name} from {disk}"));
                let request = ImportPool { name, uuid, disk };
                engine.import_pool(call, request).await.map(View::Pool).map_err(asked)
            }
            PoolCommand::Export(PoolName { name, uuid }) => {
                let asked = self.asked(format!("export pool {name}"));
                let pool = PoolRef { name: name.clone(), uuid };
                engine.export_pool(call, pool).await.map_err(asked)?;
                Ok(View::Done { kind: "pool", name, what: "exported" })
            }
            PoolCommand::Destroy(PoolName { name, uuid }) => {
                let asked = self.asked(format!("destroy pool {name}"));
                let pool = PoolRef { name: name.clone(), uuid };
                engine.destroy_pool(call, pool).await.map_err(asked)?;
                Ok(View::Done { kind: "pool", name, what: "destroyed" })
            }
        }
    }

    async fn replica(&self, command: ReplicaCommand) -> Result<View, Failure> {
        let Self { engine, call, .. } = *self;
        match command {
            ReplicaCommand::List => {
                engine.list_replicas().await.map(View::Replicas).map_err(self.asked("list the replicas"))
            }
            ReplicaCommand::Create { name, pool, size: Size(size_bytes), uuid, thin, share, hosts } => {
                let asked = self.asked(format!("create replica {name} in pool {pool}"));
                if !share && !hosts.allowed.is_empty() {
                    let why = "--allow-host says who may connect to an export: add --share";
                    return Err(asked(ApiError::invalid(why)));
                }
                let request = CreateReplica {
                    name,
                    uuid: uuid.unwrap_or_else(Uuid::new_v4),
                    pool,
                    size_bytes,
                    thin,
                    share: share.then(|| hosts.into()),
                    entity_id: None,
                };
                engine.create_replica(call, request).await.map(View::Replica).map_err(asked)
            }
            ReplicaCommand::Destroy { replica, pool, despite_reservation } => {
                let uuid = self.replica_id(&replica).await?;
                let asked = self.asked(format!("destroy replica {replica}"));
                let pool = pool.map(|text| match text.parse() {
                    Ok(uuid) => PoolSelector::Uuid(uuid),
                    Err(_) => PoolSelector::Name(text),
                });
                let request = DestroyReplica { uuid, pool, despite_reservation };
                engine.destroy_replica(call, request).await.map_err(asked)?;
                Ok(View::Done { kind: "replica", name: replica, what: "destroyed" })
            }
            ReplicaCommand::Share { replica, hosts } => {
                let uuid = self.replica_id(&replica).await?;
                let asked = self.asked(format!("share replica {replica}"));
                engine.share_replica(call, uuid, hosts.into()).await.map(View::Replica).map_err(asked)
            }
            ReplicaCommand::Resize { replica, size: Size(size_bytes) } => {
                let uuid = self.replica_id(&replica).await?;
                let asked = self.asked(format!("resize replica {replica}"));
                engine.resize_replica(call, uuid, size_bytes).await.map(View::Replica).map_err(asked)
            }
            ReplicaCommand::Unshare { replica } => {
                let uuid = self.replica_id(&replica).await?;
                let asked = self.asked(format!("unshare replica {replica}"));
                engine.unshare_replica(call, uuid).await.map(View::Replica).map_err(asked)
            }
        }
    }

    async fn nexus(&self, command: NexusCommand) -> Result<View, Failure> {
        let Self { engine, call, .. } = *self;
        match command {
            NexusCommand::List => {
                engine.list_nexuses().await.map(View::Nexuses).map_err(self.asked("list the nexuses"))
            }
            NexusCommand::Create { name, size: Size(size_bytes), children, uuid, info_key, given_up } => {
                let asked = self.asked(format!("create nexus {name}"));
                let request = CreateNexus {
                    name,
                    uuid: uuid.unwrap_or_else(Uuid::new_v4),
                    size_bytes,
                    cntlids: CNTLID_RANGE,
                    reservation: None,
                    standby: false,
                    children,
                    info_key,
                    given_up,
                };
                engine.create_nexus(call, request).await.map(View::Nexus).map_err(asked)
            }
            NexusCommand::Destroy(name) => {
                let uuid = self.nexus_id(&name.nexus).await?;
                let asked = self.asked(format!("destroy nexus {}", name.nexus));
                engine.destroy_nexus(call, uuid).await.map_err(asked)?;
                Ok(View::Done { kind: "nexus", name: name.nexus, what: "destroyed" })
            }
            NexusCommand::Shutdown(name) => {
                let uuid = self.nexus_id(&name.nexus).await?;
                let asked = self.asked(format!("shut down nexus {}", name.nexus));
                engine.shutdown_nexus(call, uuid).await.map(View::Nexus).map_err(asked)
            }
            NexusCommand::Publish { nexus: name, hosts } => {
                let uuid = self.nexus_id(&name.nexus).await?;
                let asked = self.asked(format!("publish nexus {}", name.nexus));
                engine.publish_nexus(call, uuid, hosts.into()).await.map(View::Nexus).map_err(asked)
            }
            NexusCommand::Resize { nexus: name, size: Size(size_bytes) } => {
                let uuid = self.nexus_id(&name.nexus).await?;
                let asked = self.asked(format!("resize nexus {}", name.nexus));
                let failed = |error: ApiError| match error.kind() {
                    ErrorKind::InvalidArgument => asked(error)
                        .with_next("its replicas are grown first: `replica resize` on each engine"),
                    _ => asked(error),
                };
                engine.resize_nexus(call, uuid, size_bytes).await.map(View::Nexus).map_err(failed)
            }
            NexusCommand::Unpublish(name) => {
                let uuid = self.nexus_id(&name.nexus).await?;
                let asked = self.asked(format!("unpublish nexus {}", name.nexus));
                engine.unpublish_nexus(call, uuid).await.map(View::Nexus).map_err(asked)
            }
        }
    }

    async fn child(&self, command: ChildCommand) -> Result<View, Failure> {
        let Self { engine, call, .. } = *self;
        let answer = match command {
            ChildCommand::Add { nexus, uri, no_rebuild } => {
                let asked = self.asked(format!("add a child to nexus {nexus}"));
                let request = AddChild { nexus: self.nexus_id(&nexus).await?, uri, rebuild: !no_rebuild };
                engine.add_child(call, request).await.map_err(asked)
            }
            ChildCommand::Remove(name) => {
                let child = self.child_ref(&name).await?;
                engine.remove_child(call, child).await.map_err(self.asked_of("remove", &name))
            }
            ChildCommand::Fault(name) => {
                let child = self.child_ref(&name).await?;
                engine.fault_child(call, child).await.map_err(self.asked_of("fault", &name))
            }
            ChildCommand::Online(name) => {
                let child = self.child_ref(&name).await?;
                let asked = self.asked_of("bring back", &name);
                engine.child_operation(call, child, ChildAction::Online).await.map_err(asked)
            }
            ChildCommand::Offline(name) => {
                let child = self.child_ref(&name).await?;
                let asked = self.asked_of("take out", &name);
                engine.child_operation(call, child, ChildAction::Offline).await.map_err(asked)
            }
        };
        answer.map(View::Nexus)
    }

    fn asked_of(&self, verb: &str, name: &ChildName) -> impl FnOnce(ApiError) -> Failure {
        self.asked(format!("{verb} child {} of nexus {}", name.child, name.nexus))
    }

    async fn rebuild(&self, command: RebuildCommand) -> Result<View, Failure> {
        let engine = self.engine;
        match command {
            RebuildCommand::List => {
                let asked = self.asked("list the rebuilds");
                self.running_rebuilds().await.map(View::Rebuilds).map_err(asked)
            }
            RebuildCommand::Stats(name) => {
                let child = self.child_ref(&name).await?;
                let asked = self.asked_of("show the rebuild of", &name);
                let not_running =
                    |error| asked(error).with_next("`rebuild list` shows the rebuilds that run");
                engine.rebuild_stats(child).await.map(View::RebuildStats).map_err(not_running)
            }
            RebuildCommand::History { last } => {
                let asked = self.asked("list the finished rebuilds");
                let mut records = engine.rebuild_history().await.map_err(asked)?;
                if let Some(last) = last {
                    let last = usize::try_from(last.get()).unwrap_or(usize::MAX);
                    records.drain(..records.len().saturating_sub(last));
                }
                Ok(View::History(records))
            }
        }
    }

    /// A rebuild that ends between the two looks is not running any more.
    async fn running_rebuilds(&self) -> Result<Vec<Rebuild>, ApiError> {
        let mut running = Vec::new();
        for nexus in self.engine.list_nexuses().await? {
            for child in nexus.children.iter().filter(|child| child.rebuild_percent.is_some()) {
                let name = ChildRef { nexus: nexus.uuid, uri: child.uri.clone() };
                match self.engine.rebuild_stats(name).await {
                    Ok(stats) => running.push(Rebuild {
                        nexus: nexus.name.clone(),
                        nexus_uuid: nexus.uuid,
                        child_uri: child.uri.clone(),
                        stats,
                    }),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(running)
    }

    async fn host(&self, command: HostCommand) -> Result<View, Failure> {
        let engine = self.engine;
        match command {
            HostCommand::Info => engine.info().await.map(View::Info).map_err(self.asked("ask who it is")),
            HostCommand::BlockDevices { all } => {
                let asked = self.asked("list the block devices");
                engine.list_block_devices(all).await.map(View::BlockDevices).map_err(asked)
            }
            HostCommand::Usage => {
                engine.resource_usage().await.map(View::Usage).map_err(self.asked("ask for its usage"))
            }
        }
    }

    /// The id of a replica given by name or id.
    async fn replica_id(&self, text: &str) -> Result<Uuid, Failure> {
        if let Ok(uuid) = text.parse() {
            return Ok(uuid);
        }
        let asked = format!("find replica {text}");
        let replicas = self.engine.list_replicas().await.map_err(self.asked(&*asked))?;
        let found = replicas.iter().find(|replica| replica.name == text);
        found.map(|replica| replica.uuid).ok_or_else(|| {
            let error = ApiError::not_found("no loaded pool has a replica of that name");
            Failure::new(asked, error, self.endpoint)
                .with_next("`replica list` shows names and uuids; `pool list` whether its pool is loaded")
        })
    }

    async fn nexus_id(&self, text: &str) -> Result<Uuid, Failure> {
        self.find_nexus(text).await.map(|nexus| nexus.uuid)
    }

    /// The nexus of that name, else of that id: names are often uuids themselves, those of their volumes.
    async fn find_nexus(&self, text: &str) -> Result<Nexus, Failure> {
        let asked = format!("find nexus {text}");
        let nexuses = self.engine.list_nexuses().await.map_err(self.asked(&*asked))?;
        let uuid: Option<Uuid> = text.parse().ok();
        let by_name = nexuses.iter().position(|nexus| nexus.name == text);
        let found = by_name.or_else(|| nexuses.iter().position(|nexus| Some(nexus.uuid) == uuid));
        found.map(|at| nexuses[at].clone()).ok_or_else(|| {
            let error = ApiError::not_found("this engine has no nexus of that name or uuid");
            Failure::new(asked, error, self.endpoint).with_next("`nexus list` shows names and uuids")
        })
    }

    /// The one child that is meant: a URI is long, and a uuid or an address in it is enough.
    async fn child_ref(&self, name: &ChildName) -> Result<ChildRef, Failure> {
        let nexus = self.find_nexus(&name.nexus).await?;
        let uris: Vec<&str> = nexus.children.iter().map(|child| child.uri.as_str()).collect();
        let exact = uris.iter().copied().find(|uri| *uri == name.child);
        let parts: Vec<&str> = uris.iter().copied().filter(|uri| uri.contains(&name.child)).collect();
        match (exact, &parts[..]) {
            (Some(uri), _) | (None, &[uri]) => Ok(ChildRef { nexus: nexus.uuid, uri: uri.to_owned() }),
            (None, found) => {
                let why = match found.len() {
                    0 => format!("nexus {} has no such child", nexus.name),
                    several => format!("{several} children of nexus {} match", nexus.name),
                };
                let asked = format!("find child {}", name.child);
                let next = format!("name one of them: {}", uris.join(", "));
                Err(Failure::new(asked, ApiError::not_found(why), self.endpoint).with_next(next))
            }
        }
    }
}
