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
//! agent = "run/agent.sock"        # KEYFRAME_AGENT; the local one's otherwise; HOST:PORT with agent_tls
//! agent_tls = { ca = "ca.pem", identity = "manager.pem" } # certificate and key in one file; for an agent elsewhere
//! compress_after = "1h"           # KEYFRAME_COMPRESS_AFTER; age at which stored memory is compressed, or "off"
//! snapshots_per_vm = 10000        # KEYFRAME_SNAPSHOTS_PER_VM; the most that a machine may have
//! reserve = "16M"                 # KEYFRAME_RESERVE; kept for a catalog in a file, for when its disk is full; 0 for none
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use keyframe_agent::config::{FILE, Log, in_a_line};
use keyframe_engine::units::Bytes;
use keyframe_manager::AgentAddress;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::size::parse_size;
use crate::span::{Span, parse_span};

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
    /// The agent's socket; with `agent_tls` a host and port.
    pub(crate) agent: Option<String>,
    /// What this manager and an agent on another host prove themselves with.
    pub(crate) agent_tls: Option<AgentTls>,
    /// How old a snapshot is when its memory is compressed; never when "off".
    #[serde(deserialize_with = "age")]
    pub(crate) compress_after: Option<Span>,
    /// Most snapshots of a machine.
    pub(crate) snapshots_per_vm: u32,
    /// Room for the catalog when its disk is full; none if 0.
    #[serde(deserialize_with = "size")]
    pub(crate) reserve: Bytes,
}

/// PEM files, relative to the data directory.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentTls {
    /// Of the authority that both sides' certificates are from.
    pub(crate) ca: PathBuf,
    /// The manager's certificate and its key.
    pub(crate) identity: PathBuf,
}

impl Default for Section {
    fn default() -> Section {
        Section {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 7010))),
            catalog: "catalog.db".into(),
            agent: None,
            agent_tls: None,
            compress_after: Some(Span::from_secs(3600)),
            snapshots_per_vm: 10_000,
            reserve: Bytes(16 << 20),
        }
    }
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    parse_address(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn age<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    parse_age(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    parse_size(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn parse_age(text: &str) -> Result<Option<Span>, String> {
    if text == "off" { Ok(None) } else { parse_span(text).map(Some) }
}

/// What the file may begin with; the agent knows the rest of them.
const SECTIONS: [&str; 5] = ["name", "log", "agent", "array", "manager"];

/// A section that nobody reads is a misspelt one.
fn parse(text: &str) -> Result<ManagerConfig> {
    let wrong = |error: toml::de::Error| anyhow::anyhow!(in_a_line(text, &error));
    let table: toml::Table = toml::from_str(text).map_err(wrong)?;
    if let Some(unknown) = table.keys().find(|key| !SECTIONS.contains(&key.as_str())) {
        anyhow::bail!("there is no section or option '{unknown}'; there are {}", SECTIONS.join(", "));
    }
    toml::from_str(text).map_err(wrong)
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
            Ok(text) => parse(&text).with_context(|| format!("cannot use {}", path.display()))?,
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
        if let Some(age) = set("KEYFRAME_COMPRESS_AFTER") {
            config.manager.compress_after =
                parse_age(&age).map_err(anyhow::Error::msg).context("KEYFRAME_COMPRESS_AFTER")?;
        }
        if let Some(most) = set("KEYFRAME_SNAPSHOTS_PER_VM") {
            config.manager.snapshots_per_vm = most.parse().context("KEYFRAME_SNAPSHOTS_PER_VM is a number")?;
        }
        if let Some(reserve) = set("KEYFRAME_RESERVE") {
            config.manager.reserve = parse_size(&reserve).map_err(anyhow::Error::msg).context("KEYFRAME_RESERVE")?;
        }
        config.manager.catalog = set("KEYFRAME_CATALOG").unwrap_or(config.manager.catalog);
        config.manager.agent = set("KEYFRAME_AGENT").or(config.manager.agent);
        if config.manager.agent_tls.is_some() && config.manager.agent.is_none() {
            anyhow::bail!("manager.agent_tls needs manager.agent, the HOST:PORT where that agent listens");
        }
        Ok(config)
    }

    /// Where the agent is; `local` is the socket of the one on this host.
    pub(crate) fn agent(&self, data: &Path, local: PathBuf) -> AgentAddress {
        match (&self.manager.agent, &self.manager.agent_tls) {
            (Some(authority), Some(AgentTls { ca, identity })) => {
                AgentAddress::Tls { authority: authority.clone(), ca: data.join(ca), identity: data.join(identity) }
            }
            (Some(socket), None) => AgentAddress::Unix(data.join(socket)),
            (None, _) => AgentAddress::Unix(local),
        }
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
        let text_of_numbers = "[manager]\ncompress_after = \"off\"\nsnapshots_per_vm = 5\nreserve = \"1M\"\n";
        let config = load(text_of_numbers, &[]).unwrap().manager;
        assert_eq!((config.compress_after, config.snapshots_per_vm, config.reserve), (None, 5, Bytes(1 << 20)));
        let config = load("", &[("KEYFRAME_COMPRESS_AFTER", "5m"), ("KEYFRAME_RESERVE", "0")]).unwrap().manager;
        assert_eq!(config.reserve, Bytes(0));
        assert_eq!((config.compress_after, config.snapshots_per_vm), (Some(Span::from_secs(300)), 10_000));
        let config = load(text, &[("KEYFRAME_LISTEN", "[::1]:1"), ("KEYFRAME_CATALOG", "b.db")]).unwrap();
        assert_eq!(config.manager.listen, Some("[::1]:1".parse().unwrap()));
        assert_eq!(config.manager.catalog, "b.db");
    }

    #[test]
    fn an_agent_is_a_socket_or_far_away() {
        let local = || PathBuf::from("/d/run/agent.sock");
        let agent = |text: &str| load(text, &[]).unwrap().agent(Path::new("/d"), local());
        assert_eq!(agent(""), AgentAddress::Unix(local()));
        assert_eq!(agent("[manager]\nagent = \"a.sock\""), AgentAddress::Unix("/d/a.sock".into()));
        let far = agent("[manager]\nagent = \"h:1\"\nagent_tls = { ca = \"ca.pem\", identity = \"/m.pem\" }");
        let (ca, identity) = ("/d/ca.pem".into(), "/m.pem".into());
        assert_eq!(far, AgentAddress::Tls { authority: "h:1".into(), ca, identity });
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let check = |text: &str, env: &[(&str, &str)], part: &str| {
            let error = format!("{:#}", load(text, env).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        };
        check("[manager]\nlisten = \"here\"", &[], "\"here\" is not ADDRESS:PORT");
        check("[manager]\nport = 1", &[], "port");
        check("[manager]\nagent_tls = { ca = \"a\", identity = \"b\" }", &[], "needs manager.agent");
        check("[managr]\nlisten = \"off\"", &[], "no section or option 'managr'");
        check("", &[("KEYFRAME_LISTEN", "7010")], "KEYFRAME_LISTEN");
    }

    /// The file that shows all that can be set.
    const SAMPLE: &str = include_str!("../../../contrib/keyframe.toml");

    fn load_agent(text: &str) -> keyframe_agent::config::Config {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        keyframe_agent::config::Config::load(dir.path(), |_| None).unwrap()
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        assert_eq!(load(SAMPLE, &[]).unwrap(), ManagerConfig::default());
        assert_eq!(load_agent(SAMPLE), load_agent(""));
        let option = |line: &'static str| match line.strip_prefix('#') {
            Some(text) if !text.starts_with(' ') => text,
            _ => line,
        };
        let all: String = SAMPLE.lines().flat_map(|line| [option(line), "\n"]).collect();
        let (manager, agent) = (load(&all, &[]).unwrap(), load_agent(&all));
        let section = Section {
            agent: manager.manager.agent.clone(),
            agent_tls: manager.manager.agent_tls.clone(),
            ..Section::default()
        };
        assert_eq!(manager, ManagerConfig { log: Log::default(), manager: section });
        let plain = load_agent("");
        assert_eq!((agent.log, agent.agent.cache, agent.arrays), (plain.log, plain.agent.cache, plain.arrays));
        assert!(agent.agent.listen.is_some() && agent.agent.tls.is_some() && agent.agent.images.is_some());
    }

    #[test]
    fn the_sample_shows_everything() {
        let options = |section: &str| {
            let text = format!("[{section}]\nno-such = 1");
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE), &text).unwrap();
            let refused = match section {
                "agent" => keyframe_agent::config::Config::load(dir.path(), |_| None).unwrap_err().to_string(),
                _ => format!("{:#}", load(&text, &[]).unwrap_err()),
            };
            let (_, known) = refused.split_once("expected one of ").or(refused.split_once("expected ")).unwrap();
            let known: Vec<String> = known.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            assert!(known.len() > 1, "{refused}");
            known
        };
        for section in ["log", "agent", "manager"] {
            let (_, after) = SAMPLE.split_once(&format!("\n[{section}]\n")).unwrap();
            let part = after.split_once("\n[").map_or(after, |(part, _)| part);
            for option in options(section) {
                assert!(part.contains(&format!("\n#{option} = ")), "{section}.{option} is not in the sample");
            }
        }
        let sources = [include_str!("manager_config.rs"), include_str!("../../agent/src/config.rs")];
        for variable in sources.iter().flat_map(|source| source.split("set(\"").chain(source.split("bytes(\"")).skip(1))
        {
            let variable = variable.split('"').next().unwrap();
            let known = !variable.starts_with("KEYFRAME_") || SAMPLE.contains(&format!("# {variable}"));
            assert!(known, "{variable} is not in the sample");
        }
    }
}
