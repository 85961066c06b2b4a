//! Asking the manager over its REST interface; the only way in which commands on machines reach anything, but for machines that
//! no manager knows ([`crate::strangers`]).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use keyframe_api::Problem;
use keyframe_manager::request::JobView;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::agent::data_dir;
use crate::cli::RemoteArgs;

/// Where a manager answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Server {
    Socket(PathBuf),
    Http(String),
}

/// Something that was answered, as it came.
pub(crate) struct Answer {
    pub(crate) value: Value,
    /// The `ETag`, to be sent back as `If-Match`.
    pub(crate) tag: Option<String>,
}

/// A connection to a manager, for commands that do one thing after the other.
pub(crate) struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    base: Url,
    server: Server,
    token: Option<String>,
}

impl Server {
    /// Options win over the environment, and that over the usual place.
    pub(crate) fn find(args: &RemoteArgs) -> Result<Server> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let named = args.server.clone().or_else(|| if args.data.is_none() { set("KEYFRAME_SERVER") } else { None });
        match named {
            Some(url) if url.starts_with("http://") => Ok(Server::Http(url)),
            Some(url) if url.starts_with("https://") => {
                bail!("{url}: this version speaks http only; put a proxy of your own before it")
            }
            Some(host) if !host.contains('/') && host.contains(':') => {
                bail!("{host} is neither a socket's path nor an address; say http://{host}")
            }
            Some(path) => Ok(Server::Socket(path.into())),
            None => Ok(Server::Socket(socket(&data_dir(args.data.as_deref())?))),
        }
    }
}

/// The kernel does not let this user connect.
fn is_denied(error: &reqwest::Error) -> bool {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|e| e.kind() == ErrorKind::PermissionDenied)
}

/// Where the manager of a data directory takes requests.
pub(crate) fn socket(data: &Path) -> PathBuf {
    keyframe_agent::paths::Paths::of(data).run.join("manager.sock")
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Server::Socket(path) => path.display().fmt(f),
            Server::Http(url) => f.write_str(url),
        }
    }
}

impl Client {
    pub(crate) fn of(args: &RemoteArgs) -> Result<Client> {
        Client::to(Server::find(args)?)
    }

    pub(crate) fn to(server: Server) -> Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        // Whoever was first has chosen; it is this one everywhere.
        drop(rustls::crypto::ring::default_provider().install_default());
        let builder = reqwest::Client::builder();
        let (builder, base) = match &server {
            // The host's collection of authorities takes a while to read, and nobody is asked for a certificate here.
            Server::Socket(path) => (builder.unix_socket(path.as_path()).tls_certs_only([]), "http://localhost"),
            Server::Http(url) => (builder, url.as_str()),
        };
        let base = Url::parse(base).with_context(|| format!("{server} is not an address"))?;
        let http = builder.build().context("prepare requests")?;
        let token = std::env::var("KEYFRAME_TOKEN").ok().filter(|token| !token.is_empty());
        Ok(Client { runtime, http, base, server, token })
    }

    /// The address of a resource below `/v1`.
    pub(crate) fn url(&self, path: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Sends a request, and returns its answer unless that is a failure.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| self.unreached(error))?;
        let status = response.status();
        if !status.is_client_error() && !status.is_server_error() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        Err(match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => Refused { status, problem, of_job: false }.into(),
            Err(_) => anyhow!("{} answered {status}; is it a manager?", self.server),
        })
    }

    fn unreached(&self, error: reqwest::Error) -> anyhow::Error {
        if !error.is_connect() {
            return anyhow::Error::new(error).context(format!("lost the manager at {}", self.server));
        }
        match &self.server {
            Server::Socket(path) if is_denied(&error) => {
                anyhow!(
                    "the manager at {} takes no requests from this user: permission denied; ask as its owner, or at its \
                     http:// address with a token (--server, KEYFRAME_TOKEN)",
                    path.display()
                )
            }
            Server::Socket(path) => {
                anyhow!(
                    "no manager answers at {}; start it with `keyframe up`, or name another with --server",
                    path.display()
                )
            }
            Server::Http(url) => anyhow!("no manager answers at {url}; is it up, and listening there?"),
        }
    }

    /// Asks, and reads the answer.
    pub(crate) fn ask(&self, request: RequestBuilder) -> Result<Answer> {
        self.block_on(async {
            let response = self.send(request).await?;
            let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
            let text = response.text().await.context("lost the manager")?;
            let value = if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text) };
            Ok(Answer { value: value.context(NOT_UNDERSTOOD)?, tag })
        })
    }

    pub(crate) fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Answer> {
        self.ask(self.request(Method::GET, self.url(path, query)))
    }

    pub(crate) fn post(&self, path: &[&str], body: &impl serde::Serialize) -> Result<Answer> {
        self.ask(self.request(Method::POST, self.url(path, &[])).json(body))
    }

    pub(crate) fn patch(&self, path: &[&str], body: &impl serde::Serialize, tag: Option<&str>) -> Result<Answer> {
        let request = self.request(Method::PATCH, self.url(path, &[])).json(body);
        self.ask(match tag {
            Some(tag) => request.header("if-match", tag),
            None => request,
        })
    }

    pub(crate) fn delete(&self, path: &[&str], query: &[(&str, String)]) -> Result<Answer> {
        self.ask(self.request(Method::DELETE, self.url(path, query)))
    }

    /// A list, page by page, until it ends or there is enough of it.
    pub(crate) fn list(&self, path: &[&str], query: &[(&str, String)], limit: Option<usize>) -> Result<Vec<Value>> {
        let wanted = limit.unwrap_or(usize::MAX);
        let mut items: Vec<Value> = Vec::new();
        let mut after: Option<String> = None;
        while items.len() < wanted {
            let mut query = query.to_vec();
            query.push(("limit", (wanted - items.len()).min(PAGE).to_string()));
            query.extend(after.take().map(|after| ("after", after)));
            let mut page = self.get(path, &query)?.value;
            let Value::Array(found) = page["items"].take() else { bail!(NOT_UNDERSTOOD) };
            items.extend(found);
            match page["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => break,
            }
        }
        Ok(items)
    }

    /// A job, when it has ended or a moment has passed. The job goes on without us, and after a restart of the manager: that
    /// is waited for.
    pub(crate) fn watch_job(&self, job: &str) -> Result<Answer> {
        let until = Instant::now() + AWAY;
        loop {
            match self.get(&["jobs", job], &[("wait", "1".into())]) {
                Err(error) if !error.is::<Refused>() && Instant::now() < until => std::thread::sleep(AGAIN),
                Err(error) if !error.is::<Refused>() => {
                    return Err(error.context(format!(
                        "the manager is gone; job {job} goes on when it is back: keyframe job wait {job}"
                    )));
                }
                other => return other,
            }
        }
    }

    /// Ends without waiting for a read of the terminal that nobody will finish.
    pub(crate) fn abandon(self) {
        self.runtime.shutdown_background();
    }

    /// The identifier of a machine, template or snapshot.
    pub(crate) fn id<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Result<T> {
        let found = self.get(&[kind, name], &[])?;
        typed(&found.value["id"])
    }
}

const PAGE: usize = 500;
/// How long a manager that went away is waited for, and how long until the next look.
const AWAY: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(200);
const NOT_UNDERSTOOD: &str = "the manager's answer is not understood; is it of another version?";

/// An answer as what it should be.
pub(crate) fn typed<T: DeserializeOwned>(value: &Value) -> Result<T> {
    T::deserialize(value).context(NOT_UNDERSTOOD)
}

/// Whether an answer is a job rather than what was asked for.
pub(crate) fn as_job(value: &Value) -> Option<JobView> {
    let job = value.get("progress").is_some() && value.get("cancellable").is_some();
    job.then(|| typed(value).ok()).flatten()
}

/// The manager said no.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) problem: Problem,
    /// It is what became of a job, which was ordered as it should be.
    pub(crate) of_job: bool,
}

impl Refused {
    /// What became of a job.
    pub(crate) fn by(problem: Problem) -> Refused {
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Refused { status, problem, of_job: true }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem.detail)?;
        if self.status == StatusCode::UNAUTHORIZED {
            f.write_str(" (it is taken from KEYFRAME_TOKEN)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}
