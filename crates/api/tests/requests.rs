//! Requests against the whole interface in process: a real manager and catalog, a real agent with fake arrays and machines.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures_util::StreamExt as _;
use keyframe_agent::hypervisor::fake::{Fake, FakeOptions};
use keyframe_agent::testing::{TestAgent, TestOptions};
use keyframe_api::{Listen, Peer, Server, router};
use keyframe_catalog::Catalog;
use keyframe_manager::{AgentAddress, Config, Manager};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// An installation in a folder.
struct World {
    routes: Router,
    manager: Arc<Manager>,
    agent: Option<TestAgent>,
    dir: TempDir,
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
        World { routes, manager, agent: Some(agent), dir }
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

    /// A job that succeeds.
    async fn done(&self, path: &str, body: Value) -> Value {
        let job = self.post(&format!("{path}?wait=60"), body).await.is(200).body;
        assert_eq!(job["state"], "succeeded", "{path}: {job}");
        job
    }

    /// The names of what is listed, or its kinds where it has none.
    async fn names(&self, path: &str) -> Vec<String> {
        let found = self.get(path).await.is(200).body;
        let name = |item: &Value| item.get("name").or(item.get("kind")).unwrap().as_str().unwrap().to_owned();
        found["items"].as_array().unwrap().iter().map(name).collect()
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
async fn a_machine_is_reverted() {
    let world = World::new().await;
    world.make("web").await;
    let revert = |wish: Value| world.with(Method::POST, "/v1/vms/web/revert?wait=60", &[], wish);
    revert(json!({})).await.refuses(409, "state", "web has no snapshot to go back to");
    for name in ["one", "two"] {
        let taken = world.post("/v1/vms/web/snapshots?wait=60", json!({"name": name})).await.is(200).body;
        assert_eq!(taken["state"], "succeeded", "{taken}");
    }
    let discard = json!({"discard_current": true});
    world.post("/v1/snapshots/web@one/apply?wait=60", discard.clone()).await.is(200);
    let plan = revert(json!({"dry_run": true})).await.is(200).body;
    assert_eq!((&plan["plan"], &plan["snapshot"]["name"]), (&json!("apply"), &json!("one")), "{plan}");
    let job = revert(discard).await.is(200).body;
    assert_eq!((&job["title"], &job["state"]), (&json!("apply one to web"), &json!("succeeded")), "{job}");
    let tree = world.get("/v1/vms/web/tree").await.is(200).body;
    assert_eq!((&tree["nodes"][0]["name"], &tree["current"]), (&json!("one"), &tree["nodes"][0]["id"]), "{tree}");
    assert_eq!(tree["nodes"].as_array().unwrap().len(), 2, "{tree}");
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
    world.get("/v1/vms/%ff").await.refuses(400, "invalid", "the address is not understood: Invalid UTF-8");
    world.get("/v1/vms/web/disks/%ff").await.refuses(400, "invalid", "the address is not understood: Invalid UTF-8");
    world.get("/v1/jobs/x").await.refuses(404, "not-found", "job 'x' is not there; `keyframe job list` shows what is");
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
async fn who_never_finishes_a_request_does_not_keep_the_manager_from_stopping() {
    let world = World::new().await;
    let socket = world.dir.path().join("requests.sock");
    let listen = Listen { socket: socket.clone(), tcp: Some("127.0.0.1:0".parse().unwrap()) };
    let server = Server::bind(&listen).await.unwrap();
    let (stop, address) = (CancellationToken::new(), server.tcp().unwrap());
    let served = tokio::spawn(server.run(Arc::clone(&world.manager), stop.clone()));
    let mut head = tokio::net::TcpStream::connect(address).await.unwrap();
    head.write_all(b"GET /v1/vms HTT").await.unwrap();
    let mut body = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let begun = "POST /v1/vms HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-type: application/json\r\n\
                 content-length: 50\r\n\r\n";
    body.write_all(begun.as_bytes()).await.unwrap();
    // It is being read.
    let mut answer = [0; 12];
    body.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    stop.cancel();
    let served = tokio::time::timeout(Duration::from_secs(60), served).await;
    served.expect("it still waits for them").unwrap().unwrap();
    assert!(!socket.exists(), "its socket is left");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_is_answered_whatever_became_of_the_names_in_it() {
    let world = World::new().await;
    let key = |key: &'static str| [("idempotency-key", key)];
    let wish = json!({"name": "web", "disks": [{"size": 1 << 20}]});
    let send = |method: Method, path: &'static str, word: &'static str, body: Value| {
        let world = &world;
        async move { world.with(method, path, &key(word), body).await.is(200).body }
    };
    // All at once, with one key.
    let orders = (0..8).map(|_| world.with(Method::POST, "/v1/vms", &[("idempotency-key", "make")], wish.clone()));
    let mut jobs = std::collections::BTreeSet::new();
    for got in futures_util::future::join_all(orders).await {
        assert!(matches!(got.status.as_u16(), 200 | 202), "{} {}", got.status, got.body);
        jobs.insert(got.body["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(jobs.len(), 1);
    world.get(&format!("/v1/jobs/{}?wait=60", jobs.first().unwrap())).await.is(200);

    let changed = json!({"name": "www", "cpus": 2});
    let renamed = send(Method::PATCH, "/v1/vms/web?wait=60", "rename", changed.clone()).await;
    assert_eq!(send(Method::PATCH, "/v1/vms/web?wait=60", "rename", changed).await["id"], renamed["id"]);
    let taken = json!({"name": "one"});
    let snapshot = send(Method::POST, "/v1/vms/www/snapshots?wait=60", "take", taken.clone()).await;
    send(Method::POST, "/v1/vms/www/disks?wait=60", "disk", json!({"name": "more", "size": 1 << 20})).await;
    let source = json!({"type": "snapshot", "snapshot": snapshot["snapshot"]});
    send(Method::POST, "/v1/templates?wait=60", "template", json!({"name": "gold", "source": source})).await;
    for (path, word) in [
        ("/v1/vms/www/disks/more?wait=60", "no disk"),
        ("/v1/snapshots/www@one?wait=60", "no snapshot"),
        ("/v1/templates/gold?wait=60", "no template"),
        ("/v1/vms/www?wait=60", "no machine"),
    ] {
        let first = send(Method::DELETE, path, word, Value::Null).await;
        assert_eq!(first["state"], "succeeded", "{path}: {first}");
        world.with(Method::DELETE, path, &key("another"), Value::Null).await.is(404);
        assert_eq!(send(Method::DELETE, path, word, Value::Null).await["id"], first["id"], "{path}");
    }
    // Its name is another's now, who is not deleted by a repetition.
    world.make("www").await;
    send(Method::DELETE, "/v1/vms/www?wait=60", "no machine", Value::Null).await;
    world.get("/v1/vms/www").await.is(200);
    // And what was said with a machine that is gone is still answered.
    assert_eq!(send(Method::POST, "/v1/vms/www/snapshots?wait=60", "take", taken).await["id"], snapshot["id"]);
    world.end().await;
}

/// The part of a tag that `If-Match` looks at, as a tag.
fn bare(tag: &str) -> String {
    format!("{}\"", tag.split('-').next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_guarded_by_the_tag_of_what_it_is_about() {
    let world = World::new().await;
    let vm = world.make("web").await;
    let taken = world.post("/v1/vms/web/snapshots?wait=60", json!({"name": "one"})).await.is(200).body;
    let snapshot = taken["snapshot"].clone();
    let from_snapshot = json!({"type": "snapshot", "snapshot": snapshot});
    world.post("/v1/templates?wait=60", json!({"name": "gold", "source": from_snapshot})).await.is(200);
    let template = world.get("/v1/templates/gold").await.is(200).body["id"].clone();
    // So that no two generations are equal by chance.
    for (path, times) in [("/v1/snapshots/web@one", 20), ("/v1/templates/gold", 40)] {
        for number in 0..times {
            world.with(Method::PATCH, path, &[], json!({"description": format!("{number}")})).await.is(200);
        }
    }
    let (of_vm, of_snapshot, of_template) = ("/v1/vms/web", "/v1/snapshots/web@one", "/v1/templates/gold");
    let ask = async |method: Method, path: &str, of: &str, body: &Value| {
        let tag = world.get(of).await.is(200).header("etag");
        world.with(method, path, &[("if-match", tag.as_str())], body.clone()).await
    };
    let clone = |name: &str, source: Value| json!({"name": name, "source": source});
    let from_vm = json!({"type": "vm", "vm": vm});
    let from_template = json!({"type": "template", "template": template});
    let made = |name: &str| json!({"name": name, "source": from_snapshot});
    for (method, path, mine, others, body) in [
        (Method::POST, "/v1/snapshots/web@one/apply?wait=60", of_snapshot, of_vm, json!({})),
        (Method::POST, "/v1/vms/web/revert?wait=60", of_vm, of_snapshot, json!({})),
        (Method::POST, "/v1/snapshots/web@one/verify?wait=60", of_snapshot, of_vm, json!({})),
        (Method::POST, "/v1/clones?wait=60", of_vm, of_snapshot, clone("a", from_vm)),
        (Method::POST, "/v1/clones?wait=60", of_snapshot, of_vm, clone("b", from_snapshot.clone())),
        (Method::POST, "/v1/clones?wait=60", of_template, of_vm, clone("c", from_template)),
        (Method::POST, "/v1/templates?wait=60", of_snapshot, of_vm, made("silver")),
        (Method::POST, "/v1/vms?wait=60", of_snapshot, of_vm, made("d")),
        (Method::DELETE, "/v1/vms/web/snapshots?wait=60", of_vm, of_template, json!({})),
        (Method::DELETE, "/v1/templates/gold?wait=60", of_template, of_vm, json!({})),
    ] {
        let refused = ask(method.clone(), path, others, &body).await;
        assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED, "{path} {others}: {}", refused.body);
        let job = ask(method, path, mine, &body).await;
        assert_eq!((job.status, &job.body["state"]), (StatusCode::OK, &json!("succeeded")), "{path}: {}", job.body);
    }
    let none = world.with(Method::POST, "/v1/vms", &[("if-match", "\"1\"")], json!({"name": "e"})).await;
    none.refuses(400, "invalid", "no generation to compare with");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_always_sent_again() {
    let world = World::new().await;
    world.make("web").await;
    let take = |name: &str| world.post("/v1/vms/web/snapshots?wait=60", json!({"name": name}));
    take("one").await.is(200);
    let read = async |path: &str, tag: &str| {
        world.send(owner(), Method::GET, path, &[("if-none-match", tag)], Body::empty()).await
    };
    let one = world.get("/v1/snapshots/web@one").await.is(200);
    let tag = one.header("etag");
    assert_eq!(one.body["current"], true);
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}")] {
        assert_eq!(read("/v1/snapshots/web@one", &known).await.is(304).header("etag"), tag);
    }
    assert_eq!(read("/v1/snapshots/web@one?space=true", &tag).await.is(200).body["generation"], one.body["generation"]);
    take("two").await.is(200);
    let now = read("/v1/snapshots/web@one", &tag).await.is(200);
    assert_eq!((&now.body["current"], &now.body["generation"]), (&json!(false), &one.body["generation"]));
    assert_eq!(bare(&now.header("etag")), bare(&tag), "nothing of the snapshot itself has changed");

    // The machine's view has the name of a snapshot, whose change is none of the machine's.
    let web = world.get("/v1/vms/web").await.is(200).header("etag");
    read("/v1/vms/web", &web).await.is(304);
    let described = json!({"name": "deux"});
    let changed = [("if-none-match", tag.as_str()), ("if-match", "*")];
    world.with(Method::PATCH, "/v1/snapshots/web@two", &changed, described).await.is(200);
    let now = read("/v1/vms/web", &web).await.is(200);
    assert_eq!((&now.body["current_name"], bare(&now.header("etag"))), (&json!("deux"), bare(&web)));
    // Both the whole tag of an older view and the generation alone still say which machine is meant.
    for tag in [web.clone(), bare(&now.header("etag"))] {
        world.with(Method::POST, "/v1/vms/web/revert", &[("if-match", &tag)], json!({"dry_run": true})).await.is(200);
    }
    world.with(Method::PATCH, "/v1/vms/web", &[("if-match", &web)], json!({"description": "x"})).await.is(200);
    world.with(Method::PATCH, "/v1/vms/web", &[("if-match", &web)], json!({"description": "y"})).await.is(412);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_and_snapshots_by_all_that_can_be_asked_for() {
    let world = World::new().await;
    let vm = world.make("web").await;
    // Disks.
    let misspelt = json!({"name": "data", "size": 1 << 20, "readonly": true});
    world.post("/v1/vms/web/disks", misspelt).await.refuses(400, "invalid", "unknown field `readonly`");
    world.done("/v1/vms/web/disks", json!({"name": "data", "size": 1 << 20, "slot": 3})).await;
    world.done("/v1/vms/web/disks/data/resize", json!({"size": 2 << 20})).await;
    let disk = world.get("/v1/vms/web/disks/data").await.is(200).body;
    assert_eq!((&disk["size"], &disk["slot"], &disk["attached"]), (&json!(2 << 20), &json!(3), &json!(true)), "{disk}");
    assert_eq!(world.get("/v1/vms/web/disks").await.is(200).body.as_array().unwrap().len(), 2);
    // Snapshots: two, compared, compressed, verified, gone back to.
    world.done("/v1/vms/web/start", json!({})).await;
    world.done("/v1/vms/web/snapshots", json!({"name": "one", "kind": "disk+memory"})).await;
    let detached = world.with(Method::DELETE, "/v1/vms/web/disks/data?wait=60", &[], Value::Null).await.is(200).body;
    assert_eq!((&detached["state"], &detached["kind"]), (&json!("succeeded"), &json!("disk-detach")), "{detached}");
    world.done("/v1/vms/web/snapshots", json!({"name": "two", "tags": ["gold"]})).await;
    let diff = world.get("/v1/snapshots/web@two/diff?from=web@one").await.is(200).body;
    let presence: Vec<_> = diff["disks"].as_array().unwrap().iter().map(|disk| disk["presence"].clone()).collect();
    assert_eq!(
        (presence, &diff["memory_left_out"]),
        (vec![json!("both"), json!("only-before")], &json!(true)),
        "{diff}"
    );
    world.done("/v1/snapshots/web@one/compress", json!({})).await;
    world.done("/v1/snapshots/web@one/verify", json!({})).await;
    world.done("/v1/vms/web/revert", json!({})).await;
    let kept = world.get("/v1/vms/web/snapshots?automatic=true").await.is(200).body;
    assert_eq!(kept["items"].as_array().unwrap().len(), 1, "{kept}");
    // Lists, by all that they can be asked for.
    assert_eq!(world.names("/v1/snapshots?kind=disk&automatic=false").await, ["two"]);
    assert_eq!(world.names("/v1/snapshots?kind=disk%2Bmemory&automatic=false").await, ["one"]);
    assert_eq!(world.names("/v1/snapshots?tag=gold&state=ready").await, ["two"]);
    assert_eq!(world.names("/v1/snapshots?state=deleting").await, [""; 0]);
    assert_eq!(world.names("/v1/jobs?kind=snapshot-create").await, ["snapshot-create"; 2]);
    assert_eq!(world.names(&format!("/v1/jobs?vm={vm}&kind=vm-start&state=succeeded")).await, ["vm-start"]);
    assert_eq!(world.names("/v1/jobs?active=true").await, [""; 0]);
    world.get("/v1/snapshots?state=gone").await.refuses(400, "invalid", "'gone' is no state");
    world.get("/v1/jobs?kind=nothing").await.refuses(400, "invalid", "nothing");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_jobs_and_hosts_by_all_that_can_be_asked_for() {
    let world = World::new().await;
    let vm = world.make("web").await;
    world.done("/v1/vms/web/start", json!({})).await;
    let one = world.done("/v1/vms/web/snapshots", json!({"name": "one", "kind": "disk+memory"})).await;
    world.done("/v1/vms/web/stop", json!({"hard": true})).await;
    world.done("/v1/templates", json!({"name": "gold", "source": {"type": "vm", "vm": vm}})).await;
    let change = json!({"name": "best", "description": "the one to use"});
    let template = world.with(Method::PATCH, "/v1/templates/gold", &[], change).await.is(200).body;
    assert_eq!(world.get("/v1/templates/best").await.is(200).body, template);
    assert_eq!(world.names("/v1/templates?search=use").await, ["best"]);
    let fork = json!({"type": "snapshot", "snapshot": one["snapshot"]});
    world.done("/v1/clones", json!({"name": "fork-{n}", "count": 2, "memory": "yes", "source": fork})).await;
    world.done("/v1/clones", json!({"name": "thin", "source": {"type": "template", "template": template["id"]}})).await;
    world.done("/v1/clones", json!({"name": "twin", "start": true, "source": {"type": "vm", "vm": vm}})).await;
    assert_eq!(world.names("/v1/vms?state=running").await, ["fork-1", "fork-2", "twin"]);
    for name in ["pause", "resume", "reset"] {
        world.done(&format!("/v1/vms/twin/{name}"), json!({})).await;
    }
    // A job that is wished undone.
    world.agent.as_ref().unwrap().array("fake").faults().slow(std::time::Duration::from_millis(300));
    let wish = json!({"name": "late", "disks": [{"size": 1 << 20}, {"size": 1 << 20}, {"size": 1 << 20}]});
    let job = world.post("/v1/vms", wish).await.is(202).header("location");
    let cancelled = world.post(&format!("{job}/cancel?wait=60"), json!({})).await.is(200).body;
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    world.post(&format!("{job}/cancel"), json!({})).await.refuses(409, "state", "has ended already: cancelled");
    world.get("/v1/vms/late").await.is(404);
    // Hosts.
    let hosts = world.get("/v1/hosts").await.is(200).body;
    assert_eq!((&hosts[0]["name"], &hosts[0]["status"]), (&json!("local"), &json!("up")), "{hosts}");
    assert_eq!(world.get("/v1/hosts/local").await.is(200).body["name"], "local");
    world.get("/v1/hosts/other").await.is(404);
    world.end().await;
}
