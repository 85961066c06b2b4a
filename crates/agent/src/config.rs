//! The agent's part of `keyframe.toml`, and what the environment says over it. Everything has a default; what the file
//! does not know is refused, because a misspelt option is worse than none. Sections of others are left to them.
//!
//! ```toml
//! name = "host-1"                 # KEYFRAME_NAME; the host's own name otherwise
//!
//! [log]
//! filter = "info"                 # KEYFRAME_LOG; for example "info,keyframe_agent::instant=debug"
//! json = false                    # KEYFRAME_LOG_JSON
//!
//! [agent]
//! listen = "0.0.0.0:7443"         # KEYFRAME_AGENT_LISTEN; nothing otherwise
//! tls = { cert = "agent.pem", key = "agent.key", ca = "ca.pem" }
//! pool_size = "500G"              # KEYFRAME_POOL_SIZE; of a new pool, four fifths of the free space otherwise
//! cache = "256M"                  # KEYFRAME_CACHE; memory for the pool's map
//! qemu = "qemu-system-x86_64"     # KEYFRAME_QEMU
//! images = ["/srv/images"]        # KEYFRAME_IMAGES, with colons between; images and kernels come from these folders only,
//!                                 # from anywhere otherwise
//!
//! [[array]]                       # without any: one called "local" in pool.kf
//! name = "local"
//! driver = "engine"
//! pool = "pool.kf"                # relative to the data directory
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use keyframe_agent_api::{Bytes, Fault, FaultKind};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::Result;
use crate::http::Tls;

/// The name of the file in the data directory.
pub const FILE: &str = "keyframe.toml";

/// Everything that can be set.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The host's name.
    pub name: Option<String>,
    /// What is logged, and how.
    pub log: Log,
    /// The agent itself.
    pub agent: AgentConfig,
    /// What makes volumes.
    #[serde(rename = "array")]
    pub arrays: Vec<ArrayConfig>,
}

/// What is logged, and how.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A level, and levels of modules.
    pub filter: String,
    /// One JSON object for each line.
    pub json: bool,
}

impl Default for Log {
    fn default() -> Log {
        Log { filter: "info".into(), json: false }
    }
}

/// The agent itself.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Where managers on other hosts reach it.
    pub listen: Option<SocketAddr>,
    /// Who it is and whom it trusts; required with `listen`.
    pub tls: Option<Tls>,
    /// Size of a new pool.
    #[serde(deserialize_with = "optional_size")]
    pub pool_size: Option<Bytes>,
    /// Memory for the pool's map.
    #[serde(deserialize_with = "size")]
    pub cache: Bytes,
    /// The hypervisor's program.
    pub qemu: Option<PathBuf>,
    /// The only folders that images and kernels may come from; absolute.
    pub images: Option<Vec<PathBuf>>,
}

impl Default for AgentConfig {
    fn default() -> AgentConfig {
        AgentConfig { listen: None, tls: None, pool_size: None, cache: Bytes::mib(256), qemu: None, images: None }
    }
}

/// An array.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ArrayConfig {
    /// As others call it.
    pub name: String,
    /// What it is, with the options of its driver.
    #[serde(flatten)]
    pub driver: Driver,
}

/// What an array is.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Driver {
    /// A pool of the built-in engine.
    Engine {
        /// Its file or block device.
        pool: PathBuf,
    },
    /// Plain files, slow and simple; for trying things out.
    Fake {
        /// A folder.
        dir: PathBuf,
    },
}

/// What is wrong with a text, and in which line.
pub fn in_a_line(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1));
    format!("{}{}", line.unwrap_or_default(), error.message().trim_end().replace('\n', "; "))
}

impl Config {
    /// The file in the data directory, if there is one, and the environment over it.
    pub fn load(data: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Config> {
        let path = data.join(FILE);
        let refuse = |why: String| Fault::new(FaultKind::Invalid, format!("cannot use {}: {why}", path.display()));
        let mut config = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str::<Config>(&text).map_err(|error| refuse(in_a_line(&text, &error)))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Config::default(),
            Err(error) => return Err(refuse(error.to_string())),
        };
        config.override_by(env)?;
        if config.arrays.is_empty() {
            let driver = Driver::Engine { pool: "pool.kf".into() };
            config.arrays.push(ArrayConfig { name: "local".into(), driver });
        }
        config.check()?;
        Ok(config)
    }

    fn override_by(&mut self, env: impl Fn(&str) -> Option<String>) -> Result<()> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let bytes = |name: &str| set(name).map(|text| parsed(name, parse_size(&text))).transpose();
        self.name = set("KEYFRAME_NAME").or(self.name.take());
        if let Some(filter) = set("KEYFRAME_LOG") {
            self.log.filter = filter;
        }
        if let Some(json) = set("KEYFRAME_LOG_JSON") {
            self.log.json = parsed("KEYFRAME_LOG_JSON", bool::from_str(&json))?;
        }
        if let Some(listen) = set("KEYFRAME_AGENT_LISTEN") {
            self.agent.listen = Some(parsed("KEYFRAME_AGENT_LISTEN", listen.parse())?);
        }
        self.agent.pool_size = bytes("KEYFRAME_POOL_SIZE")?.or(self.agent.pool_size);
        self.agent.cache = bytes("KEYFRAME_CACHE")?.unwrap_or(self.agent.cache);
        self.agent.qemu = set("KEYFRAME_QEMU").map(PathBuf::from).or(self.agent.qemu.take());
        if let Some(folders) = set("KEYFRAME_IMAGES") {
            self.agent.images = Some(std::env::split_paths(&folders).collect());
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let refuse = |why: String| Err(Fault::new(FaultKind::Invalid, why));
        if self.agent.listen.is_some() && self.agent.tls.is_none() {
            return refuse("agent.listen needs agent.tls: without certificates anybody could command this host".into());
        }
        if let Some(folder) = self.agent.images.iter().flatten().find(|folder| !folder.is_absolute()) {
            return refuse(format!("agent.images: {} is not an absolute path", folder.display()));
        }
        for (index, array) in self.arrays.iter().enumerate() {
            crate::array::check_name("array", &array.name)?;
            if self.arrays[..index].iter().any(|other| other.name == array.name) {
                return refuse(format!("two arrays are called {:?}", array.name));
            }
        }
        Ok(())
    }
}

fn parsed<T, E: std::fmt::Display>(name: &str, result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| Fault::new(FaultKind::Invalid, format!("{name}: {error}")))
}

/// `500G`, `1.5T`, or plain bytes; units are powers of 1024.
fn parse_size(text: &str) -> std::result::Result<Bytes, String> {
    let refuse = || format!("not a size: {text:?}; write 10G, 512M or plain bytes");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        "P" | "p" => 50,
        _ => return Err(refuse()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| refuse())?;
    let bytes = number * (1_u64 << shift) as f64;
    if !(0.0..9e18).contains(&bytes) {
        return Err(refuse());
    }
    Ok(Bytes(bytes as u64))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Bytes, D::Error> {
    match Size::deserialize(deserializer)? {
        Size::Number(bytes) => Ok(Bytes(bytes)),
        Size::Text(text) => parse_size(&text).map_err(D::Error::custom),
    }
}

fn optional_size<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Bytes>, D::Error> {
    size(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        Config::load(dir.path(), |name| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn everything_has_a_default() {
        let config = Config::load(Path::new("/nonexistent"), |_| None).unwrap();
        assert_eq!(config.log.filter, "info");
        assert_eq!(config.agent.cache, Bytes::mib(256));
        let local = ArrayConfig { name: "local".into(), driver: Driver::Engine { pool: "pool.kf".into() } };
        assert_eq!(config.arrays, [local]);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let text = "name = \"a\"\n[agent]\npool_size = \"1G\"\n[log]\nfilter = \"debug\"\n[api]\nx = 1\n";
        let config = load(text, &[("KEYFRAME_POOL_SIZE", "1.5T"), ("KEYFRAME_LOG_JSON", "true")]).unwrap();
        assert_eq!(config.name.as_deref(), Some("a"));
        assert_eq!(config.agent.pool_size, Some(Bytes(3 << 39)));
        assert_eq!(config.log, Log { filter: "debug".into(), json: true });
        assert_eq!(load(text, &[]).unwrap().agent.pool_size, Some(Bytes(1 << 30)));
        let folders = load("[agent]\nimages = [\"/a\"]", &[("KEYFRAME_IMAGES", "/b:/c")]).unwrap().agent.images;
        assert_eq!(folders, Some(vec!["/b".into(), "/c".into()]));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let check = |text: &str, env: &[(&str, &str)], part: &str| {
            let error = load(text, env).unwrap_err();
            assert!(error.message.contains(part), "{text}: {error}");
        };
        check("[agent]\npoolsize = 1", &[], "poolsize");
        check("[agent]\ncache = \"x\"", &[], "not a size");
        check("[agent]\nlisten = \"0.0.0.0:1\"", &[], "agent.tls");
        check("[agent]\nimages = [\"/a\", \"b\"]", &[], "agent.images: b");
        check("[[array]]\nname = \"a\"\ndriver = \"tape\"", &[], "tape");
        check("[[array]]\nname = \"a\"\ndriver = \"engine\"\npool = \"p\"\nsiez = 1", &[], "siez");
        check("[[array]]\nname = \"a/b\"\ndriver = \"engine\"\npool = \"p\"", &[], "a/b");
        let one = "[[array]]\nname = \"a\"\ndriver = \"engine\"\npool = \"p\"\n";
        check(&format!("{one}{one}"), &[], "two arrays");
        check("", &[("KEYFRAME_CACHE", "-1")], "KEYFRAME_CACHE");
    }
}
