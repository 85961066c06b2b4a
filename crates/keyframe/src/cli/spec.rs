//! Disks, network interfaces and what becomes of them, as they are typed: `KEY=VALUE,KEY=VALUE,WORD`. A comma in a value is
//! written twice, as QEMU has it.

use std::path::PathBuf;
use std::str::FromStr;

use crate::size::parse_size;

/// A disk to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct DiskText {
    pub(crate) size: Option<u64>,
    pub(crate) image: Option<PathBuf>,
    pub(crate) name: Option<String>,
    pub(crate) array: Option<String>,
    pub(crate) read_only: bool,
}

/// Where a network interface leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cable {
    User,
    None,
    Bridge { name: String, vlan: Option<u16> },
    Isolated(String),
}

/// A network interface to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NicText {
    pub(crate) cable: Cable,
    pub(crate) mac: Option<String>,
    pub(crate) down: bool,
}

/// What becomes of a clone's network interfaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NicPolicyText {
    Keep,
    Disconnect,
    Vlan(u16),
    Isolated(Option<String>),
}

/// What is between the commas; nothing is said twice.
fn parts(text: &str) -> Result<Vec<(String, Option<String>)>, String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    let pair = |part: String| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (part, None),
    };
    let pairs: Vec<_> = parts.into_iter().map(pair).collect();
    let twice = |at: &usize| pairs[..*at].iter().any(|(key, _)| *key == pairs[*at].0);
    match (1..pairs.len()).find(twice) {
        Some(at) => Err(format!("{:?} is there twice", pairs[at].0)),
        None => Ok(pairs),
    }
}

/// A size may have its key or not.
fn set_size(disk: &mut DiskText, size: &str) -> Result<(), String> {
    match disk.size.replace(parse_size(size)?.0) {
        Some(_) => Err(format!("{size:?} is a second size")),
        None => Ok(()),
    }
}

fn vlan(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|id| (1..=4094).contains(id));
    number.ok_or_else(|| format!("{text:?} is not a VLAN; they go from 1 to 4094"))
}

impl FromStr for DiskText {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskText, String> {
        let mut disk = DiskText::default();
        for (key, value) in &parts(text)? {
            match (key.as_str(), value.as_deref()) {
                ("size", Some(size)) => set_size(&mut disk, size)?,
                ("image", Some(file)) => disk.image = Some(file.into()),
                ("name", Some(name)) => disk.name = Some(name.into()),
                ("array", Some(array)) => disk.array = Some(array.into()),
                ("read-only", None) => disk.read_only = true,
                (size, None) if size.starts_with(|c: char| c.is_ascii_digit()) => set_size(&mut disk, size)?,
                (key, _) => {
                    let known = "size=SIZE, image=FILE, name=NAME, array=NAME, read-only";
                    return Err(format!(
                        "{key:?} is not understood; known are {known}; a comma in a value is written twice"
                    ));
                }
            }
        }
        match (disk.size, &disk.image) {
            (None, None) => Err("a disk needs a size or an image".into()),
            _ => Ok(disk),
        }
    }
}

impl FromStr for NicText {
    type Err = String;

    fn from_str(text: &str) -> Result<NicText, String> {
        let (mut cable, mut mac, mut down) = (None, None, false);
        for (key, value) in &parts(text)? {
            match ((key.as_str(), value.as_deref()), &mut cable) {
                (("user", None), None) => cable = Some(Cable::User),
                (("none", None), None) => cable = Some(Cable::None),
                (("bridge", Some(name)), None) => cable = Some(Cable::Bridge { name: name.into(), vlan: None }),
                (("isolated", Some(name)), None) => cable = Some(Cable::Isolated(name.into())),
                (("vlan", Some(id)), Some(Cable::Bridge { vlan: of_bridge, .. })) => *of_bridge = Some(vlan(id)?),
                (("user" | "none" | "bridge" | "isolated", _), Some(_)) => {
                    return Err(format!("{key:?} is a second place; a network interface leads to one"));
                }
                (("mac", Some(address)), _) => mac = Some(address.to_owned()),
                (("down", None), _) => down = true,
                ((key, _), _) => {
                    let known = "user, none, bridge=NAME,vlan=ID, isolated=NAME, mac=ADDRESS, down";
                    return Err(format!("{key:?} is not understood here; known are {known}"));
                }
            }
        }
        let cable = cable.ok_or("say where it leads: user, none, bridge=NAME or isolated=NAME")?;
        Ok(NicText { cable, mac, down })
    }
}

impl FromStr for NicPolicyText {
    type Err = String;

    fn from_str(text: &str) -> Result<NicPolicyText, String> {
        match text.split_once('=') {
            None if text == "keep" => Ok(NicPolicyText::Keep),
            None if text == "disconnect" => Ok(NicPolicyText::Disconnect),
            None if text == "isolated" => Ok(NicPolicyText::Isolated(None)),
            Some(("isolated", name)) if !name.is_empty() => Ok(NicPolicyText::Isolated(Some(name.into()))),
            Some(("vlan", id)) => vlan(id).map(NicPolicyText::Vlan),
            _ => Err(format!("{text:?} is not understood; say keep, disconnect, vlan=ID or isolated[=NAME]")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_sizes_or_more() {
        let size = |size| DiskText { size: Some(size), ..DiskText::default() };
        assert_eq!("20G".parse(), Ok(size(20 << 30)));
        let whole = "image=/a/b.qcow2,size=1M,name=data,array=local,read-only".parse();
        let expected = DiskText {
            size: Some(1 << 20),
            image: Some("/a/b.qcow2".into()),
            name: Some("data".into()),
            array: Some("local".into()),
            read_only: true,
        };
        assert_eq!(whole, Ok(expected));
        let comma = "image=/a,,b,,,,c.raw,name=x".parse::<DiskText>().unwrap();
        assert_eq!((comma.image, comma.name.as_deref()), (Some("/a,b,,c.raw".into()), Some("x")));
        assert!("image=/a,b.raw".parse::<DiskText>().unwrap_err().contains("written twice"));
        for wrong in ["", "name=x", "size=ten", "file=/x", "20G,", "read-only=1"] {
            assert!(wrong.parse::<DiskText>().is_err(), "{wrong}");
        }
        for twice in ["1G,2G", "size=1G,2G", "1G,size=2G"] {
            assert!(twice.parse::<DiskText>().unwrap_err().contains("a second size"), "{twice}");
        }
        for twice in ["size=1G,size=1G", "1G,name=a,name=b", "image=/a,image=/b", "1G,read-only,read-only"] {
            assert!(twice.parse::<DiskText>().unwrap_err().contains("is there twice"), "{twice}");
        }
    }

    #[test]
    fn interfaces_lead_to_one_place() {
        let nic = |cable| Ok(NicText { cable, mac: None, down: false });
        assert_eq!("user".parse(), nic(Cable::User));
        assert_eq!("bridge=br0,vlan=7".parse(), nic(Cable::Bridge { name: "br0".into(), vlan: Some(7) }));
        let down = NicText { cable: Cable::Isolated("lab".into()), mac: Some("52:54:00:00:00:01".into()), down: true };
        assert_eq!("isolated=lab,mac=52:54:00:00:00:01,down".parse(), Ok(down));
        for wrong in ["", "user,none", "user,vlan=7", "bridge=br0,vlan=0", "bridge=br0,vlan=4095", "down", "tap=1"] {
            assert!(wrong.parse::<NicText>().is_err(), "{wrong}");
        }
        assert_eq!("bridge=a,bridge=b".parse::<NicText>(), Err("\"bridge\" is there twice".to_owned()));
        let second = "\"isolated\" is a second place; a network interface leads to one";
        assert_eq!("bridge=a,isolated=b".parse::<NicText>(), Err(second.to_owned()));
    }

    #[test]
    fn policies_are_four() {
        assert_eq!("keep".parse(), Ok(NicPolicyText::Keep));
        assert_eq!("vlan=4094".parse(), Ok(NicPolicyText::Vlan(4094)));
        assert_eq!("isolated".parse(), Ok(NicPolicyText::Isolated(None)));
        assert_eq!("isolated=x".parse(), Ok(NicPolicyText::Isolated(Some("x".into()))));
        for wrong in ["", "vlan", "vlan=x", "isolated=", "drop", "keep=1"] {
            assert!(wrong.parse::<NicPolicyText>().is_err(), "{wrong}");
        }
    }
}
