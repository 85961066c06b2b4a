//! A catalog on a full disk, beside somebody who takes whatever room there is.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use keyframe_agent_api::Bytes;
use keyframe_catalog::Catalog;
use keyframe_lab::mounted::Mounted;

/// Names the catalog that the child of the test below writes to.
const CHILD: &str = "KEYFRAME_CATALOG_FULL_CHILD";
const RESERVE: Bytes = Bytes(8 << 20);

#[tokio::test]
async fn a_full_disk_has_room_for_the_catalog() {
    if let Ok(path) = std::env::var(CHILD) {
        return write_for_ever(&path).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(_small) = Mounted::over(dir.path(), "48m").unwrap() else { return };
    let path = dir.path().join("catalog.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "full::a_full_disk_has_room_for_the_catalog", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut commits = lines.filter_map(|line| line.strip_prefix("committed ").map(str::to_owned));
    assert_eq!(commits.by_ref().nth(20).as_deref(), Some("with room"));
    let mut guest = File::create(dir.path().join("guest")).unwrap();
    fill(&mut guest);
    let mut next = || commits.next().expect("it is at an end");
    while next() == "with room" {}
    for _ in 0..300 {
        fill(&mut guest);
        assert_eq!(next(), "short of room");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    fill(&mut guest);

    let catalog = Catalog::open(path.to_str().unwrap()).await.unwrap();
    catalog.set_reserve(RESERVE);
    catalog.tend_reserve().await.unwrap();
    assert!(catalog.is_short_of_room());
    for n in 0..20 {
        put(&catalog, n).await.unwrap();
        fill(&mut guest);
    }
    std::fs::remove_file(dir.path().join("guest")).unwrap();
    drop(guest);
    assert!(!catalog.is_short_of_room(), "seen at once, whoever tends the reserve and when");
    catalog.tend_reserve().await.unwrap();
    assert!(!catalog.is_short_of_room());
    catalog.close().await;
}

/// Takes all the room that there is.
fn fill(guest: &mut File) {
    while guest.write_all(&[7; 4096]).is_ok() {}
}

/// Changes things more than it adds any.
async fn put(catalog: &Catalog, n: u64) -> keyframe_catalog::Result<()> {
    let mut tx = catalog.write().await?;
    tx.put_setting(&format!("n{}", n % 500), &"x".repeat(2000)).await?;
    tx.commit().await
}

async fn write_for_ever(path: &str) {
    let catalog = Catalog::open(path).await.unwrap();
    catalog.set_reserve(RESERVE);
    catalog.tend_reserve().await.unwrap();
    for n in 0.. {
        // Only what was under way when the disk became full may fail.
        let with_room = !catalog.is_short_of_room();
        match put(&catalog, n).await {
            Err(_) if with_room => {}
            done => done.unwrap(),
        }
        println!("\ncommitted {}", if catalog.is_short_of_room() { "short of room" } else { "with room" });
    }
}
