//! A user's kubeconfig, changed so that its server is reached by another way.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A kubeconfig with credentials, readable for its owner only. Dropping it removes it: the folder of a run that failed
/// stays, and is handed around.
#[derive(Debug)]
pub struct Secret(PathBuf);

impl Secret {
    /// Writes `config` to a new file.
    pub fn write(path: PathBuf, config: &Value) -> Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.with_context(|| format!("make {}", path.display()))?;
        let secret = Self(path);
        // JSON is YAML.
        file.write_all(config.to_string().as_bytes()).context("write the kubeconfig")?;
        Ok(secret)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("cannot remove {}, which holds credentials: {error}", self.0.display());
        }
    }
}

/// `host:port` of the only cluster's server.
pub fn server(config: &Value) -> Result<String> {
    let url = Url::of(cluster(config)?)?;
    Ok(format!("{}:{}", url.host, url.port))
}

/// Has the server reached at `address`; its certificate is checked against the name that it had.
pub fn redirect(config: &mut Value, address: SocketAddr) -> Result<()> {
    let found = cluster(config)?;
    ensure!(
        found.get("proxy-url").is_none(),
        "the cluster is reached through a proxy, which the laboratory cannot use"
    );
    let url = Url::of(found)?;
    let is_named = found.get("tls-server-name").is_some();
    let is_checked = found.get("insecure-skip-tls-verify").and_then(Value::as_bool) != Some(true);
    let changed = config.pointer_mut("/clusters/0/cluster").context("there is a cluster")?;
    changed["server"] = format!("{}://{address}{}", url.scheme, url.path).into();
    if url.scheme == "https" && is_checked && !is_named {
        changed["tls-server-name"] = url.host.trim_matches(['[', ']']).into();
    }
    Ok(())
}

fn cluster(config: &Value) -> Result<&Value> {
    config.pointer("/clusters/0/cluster").context("the kubeconfig's current context names no cluster")
}

struct Url {
    scheme: String,
    /// With brackets where it is an address of IPv6.
    host: String,
    port: u16,
    path: String,
}

impl Url {
    fn of(cluster: &Value) -> Result<Self> {
        let text = cluster.get("server").and_then(Value::as_str).context("the cluster names no server")?;
        let parts = || {
            let (scheme, rest) = text.split_once("://")?;
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
                _ => (authority, if scheme == "http" { 80 } else { 443 }),
            };
            Some(Self { scheme: scheme.to_owned(), host: host.to_owned(), port, path: path.to_owned() })
        };
        parts().with_context(|| format!("the cluster's server is {text:?}, which is no URL"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(cluster: Value) -> Value {
        json!({ "clusters": [{ "name": "c", "cluster": cluster }], "users": [] })
    }

    #[test]
    fn a_server_is_reached_by_another_way_under_its_own_name() {
        let address: SocketAddr = "10.77.0.254:4000".parse().unwrap();
        for (url, server_is, redirected, name) in [
            ("https://k8s.example:6443", "k8s.example:6443", "https://10.77.0.254:4000", "k8s.example"),
            ("https://k8s.example/k/c", "k8s.example:443", "https://10.77.0.254:4000/k/c", "k8s.example"),
            ("https://[fd00::1]:6443", "[fd00::1]:6443", "https://10.77.0.254:4000", "fd00::1"),
            ("https://[fd00::1]", "[fd00::1]:443", "https://10.77.0.254:4000", "fd00::1"),
        ] {
            let mut config = config(json!({ "server": url }));
            assert_eq!(server(&config).unwrap(), server_is);
            redirect(&mut config, address).unwrap();
            let changed = &config["clusters"][0]["cluster"];
            assert_eq!((&changed["server"], &changed["tls-server-name"]), (&json!(redirected), &json!(name)));
        }
    }

    #[test]
    fn what_the_user_said_of_the_certificate_stays() {
        let address: SocketAddr = "10.77.0.254:4000".parse().unwrap();
        let mut named = config(json!({ "server": "https://1.2.3.4", "tls-server-name": "n" }));
        redirect(&mut named, address).unwrap();
        assert_eq!(named["clusters"][0]["cluster"]["tls-server-name"], "n");
        let mut unchecked = config(json!({ "server": "https://h", "insecure-skip-tls-verify": true }));
        redirect(&mut unchecked, address).unwrap();
        assert_eq!(unchecked["clusters"][0]["cluster"].get("tls-server-name"), None);
        let mut behind = config(json!({ "server": "https://h", "proxy-url": "http://p" }));
        assert!(redirect(&mut behind, address).is_err());
    }

    #[test]
    fn credentials_do_not_outlive_their_use() {
        let dir = tempfile::tempdir().unwrap();
        let secret = Secret::write(dir.path().join("config"), &json!({})).unwrap();
        let path = secret.path().to_owned();
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        drop(secret);
        assert!(!path.exists());
    }
}
