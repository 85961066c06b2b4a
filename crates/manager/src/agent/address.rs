//! Where an agent is, and how it and the manager prove who they are.

use std::path::PathBuf;

use crate::{Error, ErrorKind, Result};

/// Where an agent is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AgentAddress {
    /// On this host. Whoever may open the socket may use it.
    Unix(PathBuf),
    /// On another: TLS, in which both sides show certificates of the same authority.
    Tls {
        /// For example `host1.example:7741`; the name must be in the agent's certificate.
        authority: String,
        /// The authority's certificate, PEM.
        ca: PathBuf,
        /// The manager's certificate and key, PEM, in one file.
        identity: PathBuf,
    },
}

impl AgentAddress {
    /// The client that connects there, and what its URLs begin with.
    pub(super) fn client(&self) -> Result<(reqwest::Client, String)> {
        // Whoever was first has chosen; it is this one everywhere.
        drop(rustls::crypto::ring::default_provider().install_default());
        let builder = reqwest::Client::builder().no_proxy();
        let (builder, base) = match self {
            // The host's collection of authorities takes a while to read, and nobody is asked for a certificate here.
            AgentAddress::Unix(path) => {
                (builder.unix_socket(path.clone()).tls_certs_only([]), "http://agent".to_owned())
            }
            AgentAddress::Tls { authority, ca, identity } => {
                let ca = reqwest::Certificate::from_pem_bundle(&read(ca)?).map_err(|e| unusable(ca, e))?;
                let identity = reqwest::Identity::from_pem(&read(identity)?).map_err(|e| unusable(identity, e))?;
                let builder = builder.tls_certs_only(ca).identity(identity).https_only(true);
                (builder, format!("https://{authority}"))
            }
        };
        let client = builder.build().map_err(|e| Error {
            kind: ErrorKind::Internal,
            message: format!("cannot make a client for the agent at {self}"),
            source: Some(Box::new(e)),
        })?;
        Ok((client, base))
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| unusable(path, e))
}

fn unusable(path: &std::path::Path, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    let message = format!("cannot use the certificates in {}: {source}", path.display());
    Error { kind: ErrorKind::Invalid, message, source: Some(Box::new(source)) }
}

impl std::fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AgentAddress::Unix(path) => write!(f, "{}", path.display()),
            AgentAddress::Tls { authority, .. } => f.write_str(authority),
        }
    }
}
