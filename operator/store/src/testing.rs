//! A real etcd, started by a test in a folder and on ports of its own, and gone with it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::{EtcdOptions, EtcdStore, Store, TlsArgs, users};

/// A running etcd of one member.
#[derive(Debug)]
pub struct Etcd {
    child: Option<Child>,
    folder: TempDir,
    client_port: u16,
    peer_port: u16,
    /// Where it knows its clients by their certificates: the folder with everybody's.
    certificates: Option<PathBuf>,
}

/// Signs certificates.
#[derive(Debug)]
struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Leaves `ca.crt` in the folder.
    fn new(folder: &Path) -> io::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.self_signed(&key).map_err(io::Error::other)?;
        std::fs::write(folder.join("ca.crt"), certificate.pem())?;
        Ok(Self { issuer: Issuer::new(params, key) })
    }

    /// Leaves `<name>.crt` and `<name>.key` in the folder.
    fn sign(&self, folder: &Path, name: &str) -> io::Result<()> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).map_err(io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        std::fs::write(folder.join(format!("{name}.crt")), certificate.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())
    }
}

/// How long an etcd may take to answer on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

impl Etcd {
    /// Starts Debian's `etcd` and waits until it answers.
    pub async fn start() -> io::Result<Self> {
        let (client_port, peer_port) = free_ports()?;
        let mut etcd =
            Self { child: None, folder: TempDir::new()?, client_port, peer_port, certificates: None };
        etcd.resume().await?;
        Ok(etcd)
    }

    /// Starts one that speaks TLS and takes a client for the user that its certificate names. Whom it lets do what is
    /// for [`users::prepare`](crate::users::prepare).
    pub async fn start_secured() -> io::Result<Self> {
        let folder = TempDir::new()?;
        let authority = Authority::new(folder.path())?;
        for name in ["server", users::ROOT, users::OPERATOR, users::IO_ENGINE, users::HA_CLUSTER] {
            authority.sign(folder.path(), name)?;
        }
        let certificates = folder.path().to_owned();
        Self::start_with(folder, certificates).await
    }

    /// The same with certificates of somebody else, in a folder: `ca.crt`, and `<name>.crt` and `<name>.key` of the server,
    /// which is `localhost`, and of each user.
    pub async fn start_with_certificates(certificates: &Path) -> io::Result<Self> {
        Self::start_with(TempDir::new()?, certificates.to_owned()).await
    }

    async fn start_with(folder: TempDir, certificates: PathBuf) -> io::Result<Self> {
        let (client_port, peer_port) = free_ports()?;
        let certificates = Some(certificates);
        let mut etcd = Self { child: None, folder, client_port, peer_port, certificates };
        etcd.resume().await?;
        Ok(etcd)
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> String {
        let of = if self.certificates.is_some() { "https://localhost" } else { "http://127.0.0.1" };
        format!("{of}:{}", self.client_port)
    }

    /// What a program of this user is started with. Nothing where etcd has no TLS.
    pub fn tls(&self, user: &str) -> TlsArgs {
        let Some(certificates) = &self.certificates else { return TlsArgs::default() };
        let file = |name: String| Some(certificates.join(name));
        TlsArgs {
            etcd_ca: file("ca.crt".into()),
            etcd_cert: file(format!("{user}.crt")),
            etcd_key: file(format!("{user}.key")),
        }
    }

    /// How a client that is this user reaches it.
    pub fn options(&self, user: &str) -> EtcdOptions {
        let endpoints = vec![self.endpoint()];
        let tls = self.tls(user).load(&endpoints).expect("the files are there");
        EtcdOptions { endpoints, timeout: Duration::from_secs(5), tls }
    }

    /// Kills it with SIGKILL. What it has committed stays in its folder.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same folder and ports.
    pub async fn resume(&mut self) -> io::Result<()> {
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = File::create(self.folder.path().join("log"))?;
        let child = Command::new("etcd")
            .env_remove("ETCD_UNSUPPORTED_ARCH")
            .args(["--name", "test", "--log-level", "error", "--initial-cluster-state", "new"])
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .arg("--initial-cluster")
            .arg(format!("test={peer}"))
            // A lease can be as short as one and a half election time-outs; tests want short ones.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(self.certificates.iter().flat_map(|folder| {
                let file = |name: &str| folder.join(name).into_os_string();
                let named = [
                    ("--trusted-ca-file", "ca.crt"),
                    ("--cert-file", "server.crt"),
                    ("--key-file", "server.key"),
                ];
                let named = named.into_iter().flat_map(move |(option, name)| [option.into(), file(name)]);
                named.chain([OsString::from("--client-cert-auth")])
            }))
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        self.wait_until_it_answers().await
    }

    /// A client of it.
    pub async fn store(&self) -> EtcdStore {
        EtcdStore::connect(&self.options(users::ROOT)).await.expect("the endpoint is well-formed")
    }

    async fn wait_until_it_answers(&mut self) -> io::Result<()> {
        let store = self.store().await;
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        let probe = ["probe".to_owned()];
        loop {
            let Err(error) = store.read(&probe).await else { return Ok(()) };
            let ended = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || tokio::time::Instant::now() >= deadline {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("etcd did not start: {error}; its log: {log}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_ports() -> io::Result<(u16, u16)> {
    let (a, b) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((a.local_addr()?.port(), b.local_addr()?.port()))
}
