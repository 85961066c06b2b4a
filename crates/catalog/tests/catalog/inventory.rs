//! No query without a test: each runs on both databases, because every test here does.

use std::path::Path;

#[test]
fn every_public_query_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |dir: &str| -> String {
        let files = std::fs::read_dir(root.join(dir)).unwrap();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    };
    let (source, tests) = (text("src"), text("tests/catalog"));
    let names = source.split("pub async fn ").skip(1).map(|rest| rest.split(['(', '<']).next().unwrap());
    let missing: Vec<&str> = names
        .filter(|name| !tests.contains(&format!(".{name}(")) && !tests.contains(&format!(".{name}::<")))
        .filter(|&name| name != "open")
        .collect();
    assert!(missing.is_empty(), "no test calls {missing:?}");
}
