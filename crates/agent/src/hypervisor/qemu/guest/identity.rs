//! A copied guest learns who it is now: its addresses, its name, the time.
//!
//! Each part is tried on its own; a guest without an agent, or with one that refuses, leads to complaints and not to an
//! error, because the copy itself is in order.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keyframe_agent_api::{FixedIdentity, GuestIdentity};
use serde_json::{Value, json};

use super::super::qga::{Agent, AgentError};
use super::super::{Live, Slot, command};
use crate::Result;

/// Sets a host name for now and for the next boot.
const NAME: &str = r#"if command -v hostnamectl >/dev/null && hostnamectl set-hostname "$1"; then exit 0; fi
printf '%s\n' "$1" >/etc/hostname && hostname "$1""#;
/// Sets an address; some drivers take one only while the interface is down.
const ADDRESS: &str = r#"ip link set dev "$1" address "$2" && exit 0
ip link set dev "$1" down && ip link set dev "$1" address "$2"; done=$?; ip link set dev "$1" up; exit $done"#;

pub(in super::super) fn fix(slot: &Slot, identity: &GuestIdentity, deadline: Duration) -> Result<FixedIdentity> {
    let _turn = slot.turn();
    let live = slot.live()?;
    let until = Instant::now() + deadline;
    let mut fixed = FixedIdentity::default();
    // A copy has to be told, so an agent that is about to start is waited for.
    let copied = identity.host_name.is_some() || !identity.macs.is_empty();
    let agent = match copied || listens(slot, &live)? {
        true => Agent::connect(&slot.place.agent(), until).map_err(|e| e.to_string()),
        false => Err("no agent runs in the guest".to_owned()),
    };
    let mut agent = match agent {
        Ok(agent) => agent,
        Err(why) => {
            fixed.host_name = identity.host_name.as_ref().map(|_| false);
            fixed.macs = (!identity.macs.is_empty()).then_some(false);
            fixed.clock = identity.clock.then_some(false);
            fixed.complaints.push(why);
            return Ok(fixed);
        }
    };
    fixed.agent = true;
    let mut note = |what: &str, done: std::result::Result<(), String>| {
        if let Err(why) = &done {
            fixed.complaints.push(format!("{what}: {why}"));
        }
        Some(done.is_ok())
    };
    if identity.clock {
        fixed.clock = note("clock", clock(&mut agent, until));
    }
    if !identity.macs.is_empty() {
        fixed.macs = note("addresses", addresses(&mut agent, &identity.macs, until));
    }
    if let Some(name) = &identity.host_name {
        fixed.host_name = note("host name", run(&mut agent, NAME, &[name], until));
    }
    if copied && fixed.macs != Some(false) {
        plug(slot, &live)?;
        fixed.plugged = true;
    }
    Ok(fixed)
}

/// Whether somebody in the guest has the agent's port open.
fn listens(slot: &Slot, live: &Live) -> Result<bool> {
    let found = live.qmp.execute("query-chardev", json!({})).map_err(slot.monitor("ask for its guest agent"))?;
    let port = found.as_array().and_then(|all| all.iter().find(|one| one["label"] == command::AGENT_PORT));
    Ok(port.is_some_and(|port| port["frontend-open"] == true))
}

/// The cables that were to be in; until now they were out.
fn plug(slot: &Slot, live: &Live) -> Result<()> {
    let plugged: Vec<u8> =
        live.record.lock().machine.nics.iter().filter(|nic| nic.link_up).map(|nic| nic.slot).collect();
    for number in plugged {
        let arguments = json!({ "name": command::nic_id(number), "up": true });
        live.qmp.execute("set_link", arguments).map_err(slot.monitor("plug its cables"))?;
    }
    Ok(())
}

fn clock(agent: &mut Agent, until: Instant) -> std::result::Result<(), String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?;
    let nanos = u64::try_from(now.as_nanos()).map_err(|e| e.to_string())?;
    agent.execute("guest-set-time", &json!({ "time": nanos }), until).map(drop).map_err(|e| e.to_string())
}

fn addresses(agent: &mut Agent, macs: &[(String, String)], until: Instant) -> std::result::Result<(), String> {
    let found =
        agent.execute("guest-network-get-interfaces", &json!({}), until).map_err(|e: AgentError| e.to_string())?;
    let mut missing = Vec::new();
    for (old, new) in macs {
        match (interface(&found, old), interface(&found, new)) {
            (Some(name), _) => run(agent, ADDRESS, &[name, new], until).map_err(|why| format!("{name}: {why}"))?,
            // Done by an earlier call.
            (None, Some(_)) => {}
            (None, None) => missing.push(old.as_str()),
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("no interface has {}", missing.join(", "))) }
}

/// The name of the interface with that address.
fn interface<'a>(found: &'a Value, mac: &str) -> Option<&'a str> {
    let has = |item: &&Value| item["hardware-address"].as_str().is_some_and(|is| is.eq_ignore_ascii_case(mac));
    found.as_array()?.iter().find(has)?["name"].as_str()
}

fn run(agent: &mut Agent, script: &str, arguments: &[&str], until: Instant) -> std::result::Result<(), String> {
    let words: Vec<&str> = ["-c", script, "keyframe"].iter().chain(arguments).copied().collect();
    match agent.run("/bin/sh", &words, until) {
        Ok(Some(0)) => Ok(()),
        Ok(Some(code)) => Err(format!("the guest's command ended with {code}")),
        Ok(None) => Err("the guest's command was killed".into()),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_its_address() {
        let found = json!([{ "name": "lo", "hardware-address": "00:00:00:00:00:00" },
            { "name": "sit0" }, { "name": "eth0", "hardware-address": "52:54:00:AB:00:01" }]);
        assert_eq!(interface(&found, "52:54:00:ab:00:01"), Some("eth0"));
        assert_eq!(interface(&found, "52:54:00:ab:00:02"), None);
        assert_eq!(interface(&json!({ "name": 7 }), "52:54:00:ab:00:01"), None);
    }
}
