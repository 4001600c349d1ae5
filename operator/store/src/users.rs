//! Who may do what in an etcd of our own.
//!
//! A user is the common name of a client's certificate; nobody has a password. Each may change only what is its own: an
//! engine or a cluster agent that was taken over cannot rewrite the registry.

use etcd_client::{Client, Error, Permission, UserAddOptions};

use crate::election::Role;
use crate::etcd::connect;
use crate::{EtcdOptions, Keys, StoreError};

/// May do anything. Etcd insists on the name.
pub const ROOT: &str = "root";
/// The registry, and all else of the installation.
pub const OPERATOR: &str = "operator";
/// The records of nexuses.
pub const IO_ENGINE: &str = "io-engine";
/// The log of switchovers and the lock of whoever works at it.
pub const HA_CLUSTER: &str = "ha-cluster";

fn permissions(user: &str, keys: &Keys) -> Vec<Permission> {
    match user {
        OPERATOR => vec![Permission::read_write(keys.root()).with_prefix()],
        IO_ENGINE => vec![
            Permission::read_write(keys.nexus_infos()).with_prefix(),
            Permission::read(keys.object("RegistryIdentity", "self")),
        ],
        HA_CLUSTER => vec![
            Permission::read_write(keys.kind("SwitchOver")).with_prefix(),
            // A watch is of a prefix, also of one key's.
            Permission::read_write(keys.election_of(Role::HaClusterAgent)).with_prefix(),
            Permission::read(keys.kind("VolumeSpec")).with_prefix(),
        ],
        _ => Vec::new(),
    }
}

/// Gives etcd its users and has it look at who calls from now on. Can be repeated; `options` name [`ROOT`]'s certificate.
pub async fn prepare(options: &EtcdOptions, keys: &Keys) -> Result<(), StoreError> {
    let mut client = connect(options).await?;
    let done = tokio::time::timeout(options.timeout * 4, give(&mut client, keys)).await;
    let refused = |reason: String| StoreError::Refused { reason };
    match done {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(_) => Err(refused(format!("no answer within {:?}", options.timeout * 4))),
    }
}

async fn give(client: &mut Client, keys: &Keys) -> Result<(), Error> {
    for user in [ROOT, OPERATOR, IO_ENGINE, HA_CLUSTER] {
        unless_there(client.role_add(user).await.map(drop))?;
        for permission in permissions(user, keys) {
            client.role_grant_permission(user, permission).await?;
        }
        let without_password = UserAddOptions::new().with_no_pwd();
        unless_there(client.user_add(user, "", Some(without_password)).await.map(drop))?;
        client.user_grant_role(user, user).await?;
    }
    client.auth_enable().await.map(drop)
}

/// Etcd gives no other sign than these words.
fn unless_there(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(Error::GRpcStatus(status)) if status.message().contains("already exists") => Ok(()),
        other => other,
    }
}
