use keyframe_agent_api::{Generation, HostId, Timestamp};
use keyframe_catalog::{Catalog, Change, ErrorKind, EventKind, Host, PageOf, TemplateFilter, Token, TokenHash};
use uuid::Uuid;

use crate::world::{Place, on_both, snapshot, template, vm};

on_both! { templates hosts tokens events settings dumps }

async fn templates(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let mut t = template("debian", &[]);
    tx.insert_template(&t).await.unwrap();
    tx.insert_template(&template("fedora", &[])).await.unwrap();
    assert_eq!(tx.template(t.id).await.unwrap(), t);
    assert_eq!(tx.find_template(&t.name).await.unwrap(), Some(t.clone()));
    let mut old = t.clone();
    t.name = "debian-13".parse().unwrap();
    tx.update_template(&mut t).await.unwrap();
    assert_eq!((tx.template(t.id).await.unwrap(), t.generation), (t.clone(), Generation(2)));
    assert_eq!(tx.update_template(&mut old).await.unwrap_err().kind, ErrorKind::Stale);
    for (name, search, count) in
        [(None, None, 2), (Some("fedora"), None, 1), (None, Some("GOLD"), 2), (None, Some("13"), 1)]
    {
        let filter = TemplateFilter { name: name.map(Into::into), search: search.map(Into::into) };
        let page = tx.templates(&filter, &PageOf::first(1)).await.unwrap();
        assert_eq!((page.total, page.more), (count, count > 1), "{filter:?}");
    }
    assert_eq!(tx.delete_template(t.id, Generation(1)).await.unwrap_err().kind, ErrorKind::Stale);
    tx.delete_template(t.id, t.generation).await.unwrap();
    assert_eq!(tx.template(t.id).await.unwrap_err().kind, ErrorKind::NotFound);
    let taken = tx.insert_template(&template("fedora", &[])).await.unwrap_err();
    assert_eq!(taken.to_string(), "there is a template named fedora already; choose another name");
}

async fn hosts(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let host = |name: &str| Host {
        id: HostId::new(),
        name: name.into(),
        address: "/run/agent.sock".into(),
        generation: Generation(1),
        info: None,
        seen: None,
    };
    let (mut b, a) = (host("b"), host("a"));
    tx.insert_host(&b).await.unwrap();
    tx.insert_host(&a).await.unwrap();
    b.seen = Some(Timestamp(7));
    let mut old = b.clone();
    tx.update_host(&mut b).await.unwrap();
    assert_eq!(tx.update_host(&mut old).await.unwrap_err().kind, ErrorKind::Stale);
    assert_eq!(tx.host(b.id).await.unwrap(), b);
    assert_eq!(tx.find_host("a").await.unwrap(), Some(a.clone()));
    assert_eq!(tx.hosts().await.unwrap(), [a.clone(), b.clone()]);
    tx.delete_host(a.id, a.generation).await.unwrap();
    assert_eq!(tx.delete_host(a.id, a.generation).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(tx.insert_host(&host("b")).await.unwrap_err().kind, ErrorKind::Taken);
}

async fn tokens(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    // The example of FIPS 180-2, appendix B.1.
    let hash = TokenHash::of("abc");
    assert_eq!(hash.as_str(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let (id, name) = (Uuid::now_v7(), "admin".to_owned());
    let mut token =
        Token { id, name, hash, owner: None, created: Timestamp(1), expires: Some(Timestamp(9)), used: None };
    tx.insert_token(&token).await.unwrap();
    tx.touch_token(id, Timestamp(5)).await.unwrap();
    token.used = Some(Timestamp(5));
    assert_eq!(tx.token_by_hash(&TokenHash::of("abc")).await.unwrap(), Some(token.clone()));
    assert_eq!(tx.token_by_hash(&TokenHash::of("abd")).await.unwrap(), None);
    let other = Token {
        id: Uuid::now_v7(),
        name: "ann".into(),
        hash: TokenHash::of("x"),
        owner: Some("ann".into()),
        expires: None,
        ..token.clone()
    };
    tx.insert_token(&other).await.unwrap();
    assert_eq!(tx.tokens().await.unwrap(), [token.clone(), other]);
    tx.delete_token(id).await.unwrap();
    assert_eq!(tx.delete_token(id).await.unwrap_err().kind, ErrorKind::NotFound);
}

async fn events(place: Place) {
    let mut changes = place.catalog.changes();
    assert_eq!(*changes.borrow_and_update(), 0);
    let mut tx = place.catalog.write().await.unwrap();
    assert_eq!((tx.last_event().await.unwrap(), tx.oldest_event().await.unwrap()), (0, 1));
    let mut m = vm("m");
    tx.insert_vm(&m).await.unwrap();
    tx.update_vm(&mut m).await.unwrap();
    tx.commit().await.unwrap();
    changes.changed().await.unwrap();
    assert_eq!(*changes.borrow_and_update(), 2);
    // Nothing is heard of what was not committed, nor does it take a number.
    let mut tx = place.catalog.write().await.unwrap();
    tx.insert_vm(&vm("never")).await.unwrap();
    drop(tx);
    let mut tx = place.catalog.write().await.unwrap();
    tx.delete_vm(m.id, m.generation).await.unwrap();
    for n in 0..1200 {
        tx.put_setting("n", &n).await.unwrap();
    }
    tx.commit().await.unwrap();
    let mut tx = place.catalog.write().await.unwrap();
    let events = tx.events_after(0, 4).await.unwrap();
    let seen: Vec<_> = events.iter().map(|e| (e.seq, e.kind, e.change, e.generation.0)).collect();
    let of = EventKind::Vm;
    let setting = (4, EventKind::Setting, Change::Changed, 0);
    assert_eq!(seen, [(1, of, Change::Made, 1), (2, of, Change::Changed, 2), (3, of, Change::Gone, 3), setting]);
    assert_eq!((events[0].id.clone(), events[3].id.as_str()), (m.id.to_string(), "n"));
    assert_eq!(tx.events_after(1200, 100).await.unwrap().len(), 3);
    assert_eq!(tx.prune_events(10).await.unwrap(), 1193);
    assert_eq!((tx.last_event().await.unwrap(), tx.oldest_event().await.unwrap()), (1203, 1194));
    tx.prune_events(0).await.unwrap();
    assert_eq!((tx.last_event().await.unwrap(), tx.oldest_event().await.unwrap()), (1203, 1204));
    tx.commit().await.unwrap();
    let again = Catalog::open(&place.url).await.unwrap();
    assert_eq!(*again.changes().borrow(), 1203);
}

async fn settings(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    assert_eq!(tx.setting::<u32>("a").await.unwrap(), None);
    tx.put_setting("a", &1_u32).await.unwrap();
    tx.put_setting("a", &2_u32).await.unwrap();
    assert_eq!(tx.setting::<u32>("a").await.unwrap(), Some(2));
    assert_eq!(tx.setting::<String>("a").await.unwrap_err().kind, ErrorKind::Corrupt);
    tx.delete_setting("a").await.unwrap();
    tx.delete_setting("a").await.unwrap();
    assert_eq!(tx.setting::<u32>("a").await.unwrap(), None);
}

async fn dumps(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let m = vm("m");
    tx.insert_vm(&m).await.unwrap();
    tx.insert_snapshot(&snapshot(&m, "s", None)).await.unwrap();
    tx.insert_template(&template("t", &["v"])).await.unwrap();
    let dump = tx.dump().await.unwrap();
    for (part, count) in [("vms", 1), ("snapshots", 1), ("templates", 1), ("volumes", 1), ("locks", 0), ("hosts", 0)] {
        assert_eq!(dump[part].as_array().unwrap().len(), count, "{part}");
    }
    assert_eq!(dump["vms"][0]["name"], "m");
}
