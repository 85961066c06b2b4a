//! Where the agent listens: a Unix socket for its user, and TCP for managers on other hosts, who show a certificate that
//! our authority signed.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use keyframe_agent_api::{Fault, FaultKind};
use rustix::fs::Mode;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::fault::{chain, of_io};

/// A client that has not shown who it is by then is cut.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that have, and were not taken up yet.
const BACKLOG: usize = 64;
/// How long requests under way may take when the agent stops.
const GRACE: Duration = Duration::from_secs(10);

/// Files in PEM, relative to the data directory.
#[derive(Clone, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The agent's certificate, with those between it and the authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that signs managers' certificates.
    pub ca: PathBuf,
}

impl Tls {
    /// The same files, found from anywhere.
    pub fn within(&self, data: &Path) -> Tls {
        Tls { cert: data.join(&self.cert), key: data.join(&self.key), ca: data.join(&self.ca) }
    }
}

/// A bound Unix socket that only this user may open. One that a killed agent left is replaced.
pub fn bind(path: &Path) -> Result<UnixListener> {
    let bound = bind_private(path).or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse if is_stale(path) => {
            std::fs::remove_file(path)?;
            bind_private(path)
        }
        _ => Err(error),
    });
    bound.map_err(|error| of_io(format_args!("listen on {}", path.display()), &error))
}

/// The umask closes the moment between making the socket and setting its mode.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(mask);
    listener
}

fn is_stale(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(|error| refused(&error))
}

/// What is served.
pub struct Serving {
    /// The calls.
    pub router: Router,
    /// For this host.
    pub unix: UnixListener,
    /// For others, with what proves who they are.
    pub remote: Option<(SocketAddr, Tls)>,
}

/// Serves until `stop`, then gives requests under way a little time. Streams end with it.
pub async fn serve(serving: Serving, stop: CancellationToken) -> Result<()> {
    let Serving { router, unix, remote } = serving;
    let remote = match remote {
        Some((address, tls)) => Some(listen_tls(address, &tls, stop.clone()).await?),
        None => None,
    };
    let here = axum::serve(unix, router.clone()).with_graceful_shutdown(stop.clone().cancelled_owned());
    let local = within_grace(here.into_future(), stop.clone());
    let Some(remote) = remote else { return local.await };
    let there = axum::serve(remote, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let (local, remote) = tokio::join!(local, within_grace(there.into_future(), stop));
    local.and(remote)
}

/// Waits for a server; after `stop` only for as long as grace lasts, because streams of events never end by themselves.
async fn within_grace(server: impl Future<Output = io::Result<()>>, stop: CancellationToken) -> Result<()> {
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = server => served.map_err(|error| of_io("serve calls", &error)),
        () = late => Ok(()),
    }
}

/// Connections whose clients have proved who they are.
struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The agent stops; nobody else comes.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn listen_tls(address: SocketAddr, tls: &Tls, stop: CancellationToken) -> Result<TlsListener> {
    let config = server_config(tls)?;
    let failed = |error: io::Error| of_io(format_args!("listen on {address}"), &error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "listening for managers on other hosts");
    let (sender, ready) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                // Each in a task of its own: a slow handshake holds up nobody else.
                Ok((stream, from)) => drop(tokio::spawn(shake(acceptor.clone(), stream, from, sender.clone()))),
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(TlsListener { ready, address })
}

async fn shake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        // Nobody takes it up any more when the agent stops.
        Ok(Ok(stream)) => ready.send((stream, from)).await.unwrap_or(()),
        Ok(Err(error)) => tracing::warn!(%from, "refused a connection: {error}"),
        Err(_) => tracing::warn!(%from, "cut a connection that did not say who it is"),
    }
}

fn server_config(tls: &Tls) -> Result<ServerConfig> {
    let refuse = |path: &Path, error: &dyn std::error::Error| {
        Fault::new(FaultKind::Invalid, format!("cannot use {}: {}", path.display(), chain(error)))
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        read.map_err(|error: rustls::pki_types::pem::Error| refuse(path, &error))
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.ca)? {
        roots.add(certificate).map_err(|error| refuse(&tls.ca, &error))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|error| refuse(&tls.ca, &error))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| refuse(&tls.key, &error))?;
    ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&tls.cert)?, key)
        .map_err(|error| refuse(&tls.cert, &error))
}
