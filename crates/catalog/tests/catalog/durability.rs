//! What was committed is there after the process was killed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use keyframe_catalog::Catalog;

/// Names the catalog that the child of the test below writes to.
const CHILD: &str = "KEYFRAME_CATALOG_TEST_CHILD";

#[tokio::test]
async fn a_commit_outlives_a_kill() {
    if let Ok(path) = std::env::var(CHILD) {
        return write_for_ever(&path).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    for _ in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durability::a_commit_outlives_a_kill", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut committed = lines.filter_map(|line| line.strip_prefix("committed ")?.parse::<u64>().ok());
        let last = committed.by_ref().nth(20).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let last = committed.last().unwrap_or(last);
        let catalog = Catalog::open(path.to_str().unwrap()).await.unwrap();
        let found = catalog.read().await.unwrap().setting::<u64>("count").await.unwrap().unwrap();
        assert!(found == last || found == last + 1, "{last} was committed, {found} is there");
        catalog.close().await;
    }
}

async fn write_for_ever(path: &str) {
    let catalog = Catalog::open(path).await.unwrap();
    let mut count = catalog.read().await.unwrap().setting::<u64>("count").await.unwrap().unwrap_or(0);
    loop {
        count += 1;
        let mut tx = catalog.write().await.unwrap();
        tx.put_setting("count", &count).await.unwrap();
        tx.commit().await.unwrap();
        println!("\ncommitted {count}");
    }
}
