//! Managers on other hosts: whoever shows a certificate of our authority is served, nobody else is.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::start;
use common::stub::Stub;
use keyframe_agent::http::{Serving, Tls, bind, router, serve};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio_util::sync::CancellationToken;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for `localhost` and its key, signed by an authority, as files called `name`.
fn issue(dir: &Path, name: &str, by: &Authority) -> Tls {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, by).unwrap();
    let file = |kind: &str, text: String| {
        let path = dir.join(format!("{name}.{kind}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    Tls { cert: file("pem", cert.pem()), key: file("key", key.serialize_pem()), ca: file("ca", by.pem()) }
}

fn ask(address: SocketAddr, trusted: &Authority, mine: Option<&Tls>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = match mine {
        Some(mine) => {
            let certs = CertificateDer::pem_file_iter(&mine.cert).unwrap().map(Result::unwrap).collect();
            config.with_client_auth_cert(certs, PrivateKeyDer::from_pem_file(&mine.key).unwrap()).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    stream.write_all(b"GET /v1/vms HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}

#[test]
fn only_certificates_of_our_authority_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(dir.path(), &Arc::new(Stub::default()));
    let (ours, theirs) = (authority(), authority());
    let server = issue(dir.path(), "server", &ours);
    let manager = issue(dir.path(), "manager", &ours);
    let stranger = issue(dir.path(), "stranger", &theirs);
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stop = CancellationToken::new();
    let serving = {
        let _inside = runtime.enter();
        let unix = bind(&dir.path().join("other.sock")).unwrap();
        Serving { router: router(Arc::clone(agent.agent())), unix, remote: Some((address, server)) }
    };
    let served = runtime.spawn(serve(serving, stop.clone()));
    let until = Instant::now() + Duration::from_secs(10);
    // One that says nothing holds up nobody.
    let _silent = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    };
    let answer = ask(address, &ours, Some(&manager)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(ask(address, &ours, None).is_err());
    assert!(ask(address, &ours, Some(&stranger)).is_err());
    assert!(ask(address, &theirs, Some(&manager)).is_err(), "the manager checks the agent, too");
    stop.cancel();
    runtime.block_on(served).unwrap().unwrap();
}
