//! Which pool is meant, and whether to open it or to ask the server that holds it.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::cli::ReachArgs;

/// The pool of a host whose arrays nobody has configured.
const HOST_POOL: &str = "pool.kf";

/// How a pool is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// The file, opened by this process.
    Offline(PathBuf),
    /// The control socket of a server.
    Online(PathBuf),
}

/// Nobody said which pool, or said it twice.
#[derive(Debug)]
pub(crate) enum Unclear {
    Nothing,
    Both,
}

impl fmt::Display for Unclear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unclear::Nothing => {
                "no pool is named: give --pool FILE or --control SOCKET, or set KEYFRAME_POOL or KEYFRAME_CONTROL; of a \
                 running `keyframe up`, whose directory is in KEYFRAME_DATA, `keyframe pool` finds it by itself"
            }
            Unclear::Both => "both --pool and --control are given: name one of them",
        })
    }
}

impl std::error::Error for Unclear {}

/// Options win over the environment, and there a server over a file: the file of a served pool is locked anyway.
pub(crate) fn reach(args: &ReachArgs, env: impl Fn(&str) -> Option<OsString>) -> Result<Reach, Unclear> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let option = match (&args.pool, &args.control) {
        (Some(_), Some(_)) => return Err(Unclear::Both),
        (Some(file), None) => Some(Reach::Offline(file.clone())),
        (None, Some(socket)) => Some(Reach::Online(socket.clone())),
        (None, None) => None,
    };
    option
        .or_else(|| set("KEYFRAME_CONTROL").map(Reach::Online))
        .or_else(|| set("KEYFRAME_POOL").map(Reach::Offline))
        .ok_or(Unclear::Nothing)
}

/// The same; where nobody says which, the pool that `keyframe up` has in that data directory, if it is up.
pub(crate) fn reach_or_host(
    args: &ReachArgs,
    env: impl Fn(&str) -> Option<OsString>,
    data: Option<PathBuf>,
) -> Result<Reach, Unclear> {
    reach(args, env).or_else(|unclear| {
        let control = data.map(|data| crate::serve::default_control(&data.join(HOST_POOL)));
        match (unclear, control) {
            (Unclear::Nothing, Some(control)) if control.exists() => Ok(Reach::Online(control)),
            (unclear, _) => Err(unclear),
        }
    })
}

/// The pool file, for commands that can only work on a file.
pub(crate) fn pool_file(args: &ReachArgs, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Unclear> {
    args.pool.clone().or_else(|| env("KEYFRAME_POOL").map(PathBuf::from)).ok_or(Unclear::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_of_the_host_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("pool.kf.control");
        let reach = |pool: Option<&str>, set: &str| {
            let args = ReachArgs { pool: pool.map(PathBuf::from), control: None };
            let env = |name: &str| (name == "KEYFRAME_POOL").then(|| set.into());
            reach_or_host(&args, env, Some(dir.path().into())).ok()
        };
        assert_eq!(reach(None, ""), None, "it is not up");
        std::fs::write(&control, "").unwrap();
        assert_eq!(reach(None, ""), Some(Reach::Online(control)));
        assert_eq!(reach(None, "P"), Some(Reach::Offline("P".into())));
        assert_eq!(reach(Some("p"), "P"), Some(Reach::Offline("p".into())));
        let args = ReachArgs { pool: None, control: None };
        assert!(reach_or_host(&args, |_| None, None).is_err());
    }

    #[test]
    fn options_win_over_the_environment() {
        let check = |pool: &str, server: &str, env_pool: &str, env_server: &str, expected: Option<Reach>| {
            let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
            let args = ReachArgs { pool: path(pool), control: path(server) };
            let env = |name: &str| Some(if name == "KEYFRAME_POOL" { env_pool.into() } else { env_server.into() });
            assert_eq!(reach(&args, env).ok(), expected);
        };
        let (offline, online) =
            (|path: &str| Some(Reach::Offline(path.into())), |path: &str| Some(Reach::Online(path.into())));
        check("p", "", "P", "S", offline("p"));
        check("", "s", "P", "S", online("s"));
        check("", "", "P", "S", online("S"));
        check("", "", "P", "", offline("P"));
        check("", "", "", "", None);
        check("p", "s", "", "", None);
    }
}
