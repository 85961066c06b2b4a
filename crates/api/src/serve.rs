//! Sockets, and the way down in order.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::{Router, middleware};
use keyframe_manager::Manager;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use utoipa_swagger_ui::SwaggerUi;

use crate::auth::Peer;
use crate::body::MAX_BODY;
use crate::{State, document, guard, resource};

/// How long requests under way may take when the manager stops. Of some nothing more ever comes.
const GRACE: Duration = Duration::from_secs(5);

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listen {
    /// A Unix socket of mode 0600; what is at this path is replaced, so the caller must be the only one to use it.
    pub socket: PathBuf,
    /// Plain HTTP; every request needs a token.
    pub tcp: Option<SocketAddr>,
}

/// Bound sockets, not yet served.
pub struct Server {
    unix: UnixListener,
    socket: PathBuf,
    tcp: Option<TcpListener>,
}

/// All routes, guarded. Streams end with `stop`.
pub fn router(manager: Arc<Manager>, stop: CancellationToken) -> Router {
    let state = State { manager, stop };
    let (routes, description) = resource::routes().split_for_parts();
    let description = document::with_problems(description);
    let pages = SwaggerUi::new("/docs").url("/v1/openapi.json", description);
    let pages: Router<State> = pages.into();
    routes
        .merge(pages)
        .fallback(guard::nowhere)
        .layer(middleware::from_fn_with_state(state.clone(), guard::guard))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(state)
}

impl Server {
    /// Binds all sockets.
    pub async fn bind(listen: &Listen) -> io::Result<Server> {
        let unix = bind_private(&listen.socket)?;
        let tcp = match listen.tcp {
            Some(address) => {
                Some(TcpListener::bind(address).await.map_err(|error| named(error, &address.to_string()))?)
            }
            None => None,
        };
        Ok(Server { unix, socket: listen.socket.clone(), tcp })
    }

    /// The address that TCP was bound to, with the port that was given for port 0.
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Serves until `stop`, then answers what was asked already, if that does not take long.
    pub async fn run(self, manager: Arc<Manager>, stop: CancellationToken) -> io::Result<()> {
        let service = router(manager, stop.clone()).into_make_service_with_connect_info::<Peer>();
        let unix = axum::serve(self.unix, service.clone()).with_graceful_shutdown(stop.clone().cancelled_owned());
        let (tcp, stopped) = (self.tcp, stop.clone());
        let all = async {
            match tcp {
                Some(tcp) => {
                    let tcp = axum::serve(tcp, service).with_graceful_shutdown(stopped.cancelled_owned());
                    tokio::try_join!(unix.into_future(), tcp.into_future()).map(drop)
                }
                None => unix.await,
            }
        };
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        let served = tokio::select! {
            served = all => served,
            () = late => Ok(()),
        };
        // Somebody may have removed it already.
        std::fs::remove_file(&self.socket).unwrap_or(());
        served
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(error, &path.display().to_string())),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|error| named(error, &path.display().to_string()))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

fn named(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {what}: {error}"))
}
