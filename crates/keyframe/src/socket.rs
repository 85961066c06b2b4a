//! Unix sockets with paths of any length. The kernel has room for 107 bytes (unix(7)); a longer path leads through a file
//! descriptor of its folder.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// `sun_path` of `sockaddr_un`, without the final zero.
const SUN_PATH: usize = 107;

/// Listens there.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    at(path, |path| UnixListener::bind(path))
}

/// Connects to who listens there.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    at(path, |path| UnixStream::connect(path))
}

/// Does it with a path that is short enough, and leads there as long as that takes.
fn at<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return act(path) };
    if path.as_os_str().len() <= SUN_PATH {
        return act(path);
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    act(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_as_good_as_a_short_one() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [dir.path().to_owned(), dir.path().join("x".repeat(150))] {
            std::fs::create_dir_all(&folder).unwrap();
            let path = folder.join("socket");
            let _listener = bind(&path).unwrap();
            assert!(path.exists(), "it is somewhere else");
            connect(&path).unwrap();
        }
        let gone = connect(&dir.path().join("y".repeat(150)).join("socket"));
        assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
