//! The manager's part of `keyframe.toml`, and what the environment says over it. The other sections are the agent's.
//!
//! ```toml
//! [log]
//! filter = "info"                 # KEYFRAME_LOG
//! json = false                    # KEYFRAME_LOG_JSON
//!
//! [manager]
//! listen = "127.0.0.1:7010"       # KEYFRAME_LISTEN; "off" for none
//! catalog = "catalog.db"          # KEYFRAME_CATALOG; a file, or postgres://…
//! agent = "run/agent.sock"        # KEYFRAME_AGENT; the local one's otherwise
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use keyframe_agent::config::{FILE, Log};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// What this manager is told.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ManagerConfig {
    pub(crate) log: Log,
    pub(crate) manager: Section,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Section {
    /// Plain HTTP; nothing when "off".
    #[serde(deserialize_with = "address")]
    pub(crate) listen: Option<SocketAddr>,
    /// A file, or a `postgres://` URL.
    pub(crate) catalog: String,
    /// The agent's socket.
    pub(crate) agent: Option<PathBuf>,
}

impl Default for Section {
    fn default() -> Section {
        Section { listen: Some(SocketAddr::from(([127, 0, 0, 1], 7010))), catalog: "catalog.db".into(), agent: None }
    }
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    parse_address(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn parse_address(text: &str) -> Result<Option<SocketAddr>, String> {
    match text {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("{text:?} is not ADDRESS:PORT or \"off\"")),
    }
}

impl ManagerConfig {
    /// The file in the data directory, if there is one, and the environment over it.
    pub(crate) fn load(data: &Path, env: impl Fn(&str) -> Option<String>) -> Result<ManagerConfig> {
        let path = data.join(FILE);
        let mut config = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => ManagerConfig::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        if let Some(filter) = set("KEYFRAME_LOG") {
            config.log.filter = filter;
        }
        if let Some(json) = set("KEYFRAME_LOG_JSON") {
            config.log.json = json.parse().context("KEYFRAME_LOG_JSON is true or false")?;
        }
        if let Some(listen) = set("KEYFRAME_LISTEN") {
            config.manager.listen = parse_address(&listen).map_err(anyhow::Error::msg).context("KEYFRAME_LISTEN")?;
        }
        config.manager.catalog = set("KEYFRAME_CATALOG").unwrap_or(config.manager.catalog);
        config.manager.agent = set("KEYFRAME_AGENT").map(PathBuf::from).or(config.manager.agent);
        config.manager.agent = config.manager.agent.map(|agent| data.join(agent));
        Ok(config)
    }

    /// As the catalog wants it; a file is relative to the data directory.
    pub(crate) fn catalog_url(&self, data: &Path) -> String {
        let catalog = &self.manager.catalog;
        if catalog.contains("://") { catalog.clone() } else { data.join(catalog).display().to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<ManagerConfig> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        ManagerConfig::load(dir.path(), |name| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn everything_has_a_default() {
        let config = load("[agent]\ncache = \"1G\"\n", &[]).unwrap();
        assert_eq!(config.manager.listen, Some("127.0.0.1:7010".parse().unwrap()));
        assert_eq!(config.catalog_url(Path::new("/d")), "/d/catalog.db");
        let postgres = load("[manager]\ncatalog = \"postgres:///kf\"\n", &[]).unwrap();
        assert_eq!(postgres.catalog_url(Path::new("/d")), "postgres:///kf");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let text = "[manager]\nlisten = \"off\"\ncatalog = \"a.db\"\n";
        assert_eq!(load(text, &[]).unwrap().manager.listen, None);
        let config = load(text, &[("KEYFRAME_LISTEN", "[::1]:1"), ("KEYFRAME_CATALOG", "b.db")]).unwrap();
        assert_eq!(config.manager.listen, Some("[::1]:1".parse().unwrap()));
        assert_eq!(config.manager.catalog, "b.db");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let check = |text: &str, env: &[(&str, &str)], part: &str| {
            let error = format!("{:#}", load(text, env).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        };
        check("[manager]\nlisten = \"here\"", &[], "\"here\" is not ADDRESS:PORT");
        check("[manager]\nport = 1", &[], "port");
        check("", &[("KEYFRAME_LISTEN", "7010")], "KEYFRAME_LISTEN");
    }
}
