//! TLS to etcd: how a program knows etcd, and shows etcd who it is.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use etcd_client::{Certificate, Identity, TlsOptions};

/// Command-line options of every program that uses etcd.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsArgs {
    /// Certificates (PEM) of the authority that signed etcd's own; the endpoints then begin with https.
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// This program's certificate (PEM). Its common name is the user that etcd takes it for.
    #[arg(long, value_name = "FILE", requires = "etcd_ca", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// The key (PEM) of --etcd-cert.
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
}

/// Why etcd cannot be used as the options say.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the options.
    #[error("read {}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS is asked for, and an endpoint does without.
    #[error(
        "{endpoint} does without TLS and --etcd-ca is given: begin the endpoint with https://, or leave --etcd-ca out"
    )]
    Plain {
        /// The endpoint.
        endpoint: String,
    },
    /// An endpoint needs TLS.
    #[error("{endpoint} needs TLS: name the file with its authority's certificates, --etcd-ca")]
    NoAuthority {
        /// The endpoint.
        endpoint: String,
    },
}

impl TlsArgs {
    /// As they are given to a program.
    pub fn arguments(&self) -> Vec<OsString> {
        let named =
            [("--etcd-ca", &self.etcd_ca), ("--etcd-cert", &self.etcd_cert), ("--etcd-key", &self.etcd_key)];
        let given = named.into_iter().filter_map(|(name, file)| Some([name.into(), file.clone()?.into()]));
        given.flatten().collect()
    }

    /// Reads the files. `None` where etcd is used without TLS. An error where options and endpoints contradict.
    pub fn load(&self, endpoints: &[String]) -> Result<Option<Tls>, TlsError> {
        let is_secured = |endpoint: &&String| endpoint.starts_with("https://");
        let Some(authority) = &self.etcd_ca else {
            return match endpoints.iter().find(is_secured) {
                Some(endpoint) => Err(TlsError::NoAuthority { endpoint: endpoint.clone() }),
                None => Ok(None),
            };
        };
        if let Some(endpoint) = endpoints.iter().find(|endpoint| !is_secured(endpoint)) {
            return Err(TlsError::Plain { endpoint: endpoint.clone() });
        }
        let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read(authority)?));
        if let (Some(certificate), Some(key)) = (&self.etcd_cert, &self.etcd_key) {
            options = options.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(Some(Tls(options)))
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|source| TlsError::Read { file: file.to_owned(), source })
}

/// What [`TlsArgs::load`] read.
#[derive(Clone)]
pub struct Tls(TlsOptions);

impl Tls {
    /// For a client of etcd.
    pub fn options(&self) -> TlsOptions {
        self.0.clone()
    }
}

/// There is a private key in it.
impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_and_authority_go_together() {
        let endpoints = |given: &[&str]| given.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        let none = TlsArgs::default();
        assert!(none.load(&endpoints(&["http://a:2379"])).unwrap().is_none());
        let error = none.load(&endpoints(&["http://a:2379", "https://b:2379"])).unwrap_err();
        assert!(error.to_string().starts_with("https://b:2379 needs TLS"), "{error}");

        let with = TlsArgs { etcd_ca: Some("/nowhere/ca.crt".into()), ..TlsArgs::default() };
        let error = with.load(&endpoints(&["https://a:2379", "http://b:2379"])).unwrap_err();
        assert!(error.to_string().starts_with("http://b:2379 does without TLS"), "{error}");
        let error = with.load(&endpoints(&["https://a:2379"])).unwrap_err();
        assert_eq!(error.to_string(), "read /nowhere/ca.crt");
    }
}
