//! When a memory image is whole, seen from outside: it gets its name then.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// Looks for the next image in a folder.
pub struct Watch {
    done: Arc<AtomicBool>,
    watcher: JoinHandle<Result<Option<Instant>>>,
}

impl Watch {
    /// Begins; what is there already does not count.
    pub fn begin(folder: &Path) -> Result<Watch> {
        let (folder, known, done) = (folder.to_owned(), images_in(folder)?, Arc::new(AtomicBool::new(false)));
        let end = Arc::clone(&done);
        let watcher = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if !images_in(&folder)?.is_subset(&known) {
                    return Ok(Some(Instant::now()));
                }
                std::thread::sleep(LOOK);
            }
            Ok(None)
        });
        Ok(Watch { done, watcher })
    }

    /// Ends; when the first new image was there, if there was one.
    pub fn end(self) -> Result<Option<Instant>> {
        self.done.store(true, Ordering::Relaxed);
        self.watcher.join().map_err(|_| anyhow!("the watcher panicked"))?
    }
}

fn images_in(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "kfm") {
            found.insert(path);
        }
    }
    Ok(found)
}
