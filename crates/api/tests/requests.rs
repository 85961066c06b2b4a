//! Requests against the whole interface in process: a real manager and catalog, a real agent with fake arrays and machines.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures_util::StreamExt as _;
use keyframe_agent::hypervisor::fake::{Fake, FakeOptions};
use keyframe_agent::testing::{TestAgent, TestOptions};
use keyframe_api::{Peer, router};
use keyframe_catalog::Catalog;
use keyframe_manager::{AgentAddress, Config, Manager};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// An installation in a folder.
struct World {
    routes: Router,
    manager: Arc<Manager>,
    agent: Option<TestAgent>,
    _dir: TempDir,
}

/// What was answered.
struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Got {
    #[track_caller]
    fn is(self, status: u16) -> Got {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self
    }

    /// A refusal of this kind whose detail has these words.
    #[track_caller]
    fn refuses(self, status: u16, kind: &str, words: &str) {
        let got = self.is(status);
        assert_eq!(got.headers["content-type"], "application/problem+json");
        assert_eq!((got.body["kind"].as_str(), &got.body["status"]), (Some(kind), &json!(status)), "{}", got.body);
        assert!(got.body["detail"].as_str().unwrap().contains(words), "{}", got.body);
    }

    #[track_caller]
    fn header(&self, name: &str) -> String {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap().to_owned()
    }
}

/// The owner of the socket.
fn owner() -> Peer {
    Peer::Local(Some(rustix::process::geteuid().as_raw()))
}

fn stranger() -> Peer {
    Peer::Remote("192.0.2.1:1".parse().unwrap())
}

impl World {
    async fn new() -> World {
        let dir = tempfile::Builder::new().prefix("kf").tempdir().unwrap();
        let path = dir.path().to_owned();
        let agent = tokio::task::spawn_blocking(move || {
            let fake = Arc::new(Fake::new(path.join("machines"), FakeOptions::default()));
            TestAgent::start(&path, fake, &TestOptions::default()).unwrap()
        });
        let agent = agent.await.unwrap();
        let catalog = Catalog::open(dir.path().join("catalog.db").to_str().unwrap()).await.unwrap();
        let manager = Manager::start(Config::new(catalog, AgentAddress::Unix(agent.socket()))).await.unwrap();
        let routes = router(Arc::clone(&manager), CancellationToken::new());
        World { routes, manager, agent: Some(agent), _dir: dir }
    }

    async fn end(mut self) {
        self.manager.stop().await;
        let agent = self.agent.take();
        tokio::task::spawn_blocking(move || drop(agent)).await.unwrap();
    }

    async fn send(&self, peer: Peer, method: Method, path: &str, headers: &[(&str, &str)], body: Body) -> Got {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 1 << 24).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Got { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Got {
        self.send(owner(), Method::GET, path, &[], Body::empty()).await
    }

    async fn post(&self, path: &str, body: Value) -> Got {
        self.with(Method::POST, path, &[], body).await
    }

    async fn with(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Value) -> Got {
        let headers = [headers, &[("content-type", "application/json")]].concat();
        self.send(owner(), method, path, &headers, Body::from(body.to_string())).await
    }

    /// A machine, and when it is there its identifier.
    async fn make(&self, name: &str) -> String {
        let wish = json!({"name": name, "disks": [{"size": 1 << 20}]});
        let job = self.post("/v1/vms?wait=60", wish).await.is(200).body;
        assert_eq!(job["state"], "succeeded", "{job}");
        job["vms"][0].as_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_is_known_may_ask() {
    let world = World::new().await;
    let ask = |peer: Peer, token: Option<String>| {
        let world = &world;
        async move {
            let token = token.map(|token| format!("Bearer {token}"));
            let headers: Vec<(&str, &str)> = token.iter().map(|token| ("authorization", token.as_str())).collect();
            world.send(peer, Method::GET, "/v1/vms", &headers, Body::empty()).await
        }
    };
    ask(owner(), None).await.is(200);
    ask(stranger(), None).await.refuses(401, "forbidden", "show a token");
    assert_eq!(ask(stranger(), None).await.header("www-authenticate"), "Bearer");
    ask(Peer::Local(Some(4_000_000)), None).await.refuses(401, "forbidden", "user 4000000 does not own");
    ask(Peer::Local(None), None).await.refuses(401, "forbidden", "show a token");
    ask(owner(), Some("kf_wrong".into())).await.refuses(401, "forbidden", "not known");
    let made = world.post("/v1/tokens", json!({"name": "ci"})).await.is(201).body;
    let secret = made["secret"].as_str().unwrap().to_owned();
    ask(stranger(), Some(secret.clone())).await.is(200);
    let listed = world.get("/v1/tokens").await.is(200).body;
    assert_eq!(listed[0]["name"], "ci");
    assert!(!listed.to_string().contains(&secret), "{listed}");
    world.post("/v1/tokens", json!({"name": "ci"})).await.refuses(409, "taken", "ci");
    world.send(owner(), Method::DELETE, "/v1/tokens/ci", &[], Body::empty()).await.is(204);
    ask(stranger(), Some(secret)).await.refuses(401, "forbidden", "not known");
    let short = world.post("/v1/tokens", json!({"name": "short", "valid_for": 0})).await.is(201).body;
    ask(stranger(), Some(short["secret"].as_str().unwrap().into())).await.refuses(401, "forbidden", "no longer");
    // What needs no name, and what is nowhere.
    world.send(stranger(), Method::GET, "/v1/about", &[], Body::empty()).await.is(200);
    assert_eq!(
        world.send(stranger(), Method::GET, "/v1/openapi.json", &[], Body::empty()).await.is(200).body["openapi"],
        "3.1.0"
    );
    world.send(stranger(), Method::GET, "/docs/", &[], Body::empty()).await.is(200);
    world.send(stranger(), Method::GET, "/v1/secrets", &[], Body::empty()).await.refuses(404, "not-found", "nothing");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_made_found_and_changed() {
    let world = World::new().await;
    let id = world.make("web").await;
    let found = world.get("/v1/vms/web").await.is(200);
    assert_eq!((&found.body["id"], &found.body["state"]["power"]), (&json!(id), &json!("stopped")), "{}", found.body);
    let tag = found.header("etag");
    assert_eq!(world.get(&format!("/v1/vms/{id}")).await.is(200).header("etag"), tag);
    let same = [("if-none-match", tag.as_str())];
    world.send(owner(), Method::GET, "/v1/vms/web", &same, Body::empty()).await.is(304);
    let change = json!({"description": "front"});
    let stale = [("if-match", "\"999\"")];
    world.with(Method::PATCH, "/v1/vms/web", &stale, change.clone()).await.is(412);
    world
        .with(Method::PATCH, "/v1/vms/web", &[("if-match", "web")], change.clone())
        .await
        .refuses(400, "invalid", "ETag");
    let fresh = [("if-match", tag.as_str())];
    assert_eq!(
        world.with(Method::PATCH, "/v1/vms/web", &fresh, change.clone()).await.is(200).body["description"],
        "front"
    );
    world.with(Method::PATCH, "/v1/vms/web", &fresh, change).await.is(412);
    world.make("db").await;
    let first = world.get("/v1/vms?limit=1").await.is(200);
    assert_eq!(first.body["items"][0]["name"], "web");
    let link = first.header("link");
    let next = link.strip_prefix('<').unwrap().split('>').next().unwrap();
    let second = world.get(next).await.is(200);
    assert_eq!(second.body["items"][0]["name"], "db");
    assert!(second.body["next"].is_null(), "{}", second.body);
    assert_eq!(world.get("/v1/search?text=front").await.is(200).body["vms"][0]["name"], "web");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_go_round() {
    let world = World::new().await;
    world.make("web").await;
    let started = world.post("/v1/vms/web/start?wait=60", Value::Null).await;
    assert_eq!(started.status, StatusCode::BAD_REQUEST, "null is not an object");
    world.with(Method::POST, "/v1/vms/web/start?wait=60", &[], json!({})).await.is(200);
    let wish = json!({"name": "one", "kind": "disk+memory", "tags": ["gold"]});
    let ordered = world.post("/v1/vms/web/snapshots", wish).await.is(202);
    let job = ordered.header("location");
    assert_eq!(job, format!("/v1/jobs/{}", ordered.body["id"].as_str().unwrap()));
    assert_eq!(world.get(&format!("{job}?wait=60")).await.is(200).body["state"], "succeeded");
    assert_eq!(world.get("/v1/snapshots/web@one").await.is(200).body["kind"], "disk+memory");
    let tree = world.get("/v1/vms/web/tree?space=true").await.is(200).body;
    assert_eq!((&tree["nodes"][0]["name"], &tree["current"]), (&json!("one"), &tree["nodes"][0]["id"]), "{tree}");
    let plan = world.post("/v1/snapshots/web@one/apply", json!({"dry_run": true})).await.is(200).body;
    assert_eq!((&plan["plan"], &plan["memory"]), (&json!("apply"), &json!({"memory": "used"})), "{plan}");
    let locked = world.with(Method::PATCH, "/v1/snapshots/web@one", &[], json!({"locked": true})).await.is(200);
    assert_eq!(locked.body["locked"], true);
    let delete = |path: &'static str| world.send(owner(), Method::DELETE, path, &[], Body::empty());
    delete("/v1/snapshots/web@one").await.refuses(423, "locked", "unlock it first");
    world.with(Method::PATCH, "/v1/snapshots/web@one", &[], json!({"locked": false})).await.is(200);
    assert_eq!(delete("/v1/snapshots/web@one?dry_run=true").await.is(200).body["removed"][0]["name"], "one");
    assert_eq!(delete("/v1/snapshots/web@one?wait=60").await.is(200).body["state"], "succeeded");
    world.get("/v1/snapshots/web@one").await.is(404);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_orders_once() {
    let world = World::new().await;
    let key = [("idempotency-key", "k1")];
    let wish = json!({"name": "web", "disks": [{"size": 1 << 20}]});
    let first = world.with(Method::POST, "/v1/vms?wait=60", &key, wish.clone()).await.is(200).body;
    let again = world.with(Method::POST, "/v1/vms?wait=60", &key, wish).await.is(200).body;
    assert_eq!(first["id"], again["id"]);
    let other = json!({"name": "db", "disks": [{"size": 1 << 20}]});
    world.with(Method::POST, "/v1/vms", &key, other).await.refuses(409, "taken", "idempotency key");
    assert_eq!(world.get("/v1/vms").await.is(200).body["items"].as_array().unwrap().len(), 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_by_name() {
    let world = World::new().await;
    world.get("/v1/vms/nobody").await.refuses(404, "not-found", "nobody");
    world.get("/v1/vms?stat=running").await.refuses(400, "invalid", "'stat' is not known here");
    world.get("/v1/vms?limit=0").await.refuses(400, "invalid", "1 to 1000");
    world.get("/v1/vms?limit=many").await.refuses(400, "invalid", "");
    world.get("/v1/jobs/x").await.refuses(404, "not-found", "there is no job 'x'");
    world.get("/v1/jobs?wait=1").await.refuses(400, "invalid", "'wait' is not known here");
    world.get("/v1/vms/web/console").await.is(426);
    world.post("/v1/vms", json!({"name": "a/b"})).await.refuses(400, "invalid", "'/' in it");
    world.post("/v1/vms", json!({"name": "a", "cpu": 2})).await.refuses(400, "invalid", "unknown field `cpu`");
    world.post("/v1/vms?wait=301", json!({"name": "a"})).await.refuses(400, "invalid", "at most 300");
    let send = |headers: &'static [(&str, &str)], body: Vec<u8>| {
        world.send(owner(), Method::POST, "/v1/vms", headers, Body::from(body))
    };
    send(&[("content-type", "application/json")], b"{".to_vec()).await.refuses(400, "invalid", "not understood");
    send(&[("content-type", "text/plain")], b"{}".to_vec()).await.refuses(415, "invalid", "application/json");
    send(&[("content-type", "application/json")], vec![b' '; (1 << 20) + 1]).await.refuses(413, "invalid", "at most");
    world.send(owner(), Method::PUT, "/v1/vms", &[], Body::empty()).await.refuses(405, "invalid", "PUT");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_from_where_the_reader_was() {
    let world = World::new().await;
    let id = world.make("web").await;
    let mut request = Request::get("/v1/events?kind=vm").header("last-event-id", "0").body(Body::empty()).unwrap();
    request.extensions_mut().insert(ConnectInfo(owner()));
    let response = world.routes.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut stream = response.into_body().into_data_stream();
    let first = String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(first.contains("event: vm\n") && first.contains(&id) && first.contains("id: "), "{first}");
    drop(stream);
    world.get("/v1/events?after=x").await.refuses(400, "invalid", "");
    world.end().await;
}
