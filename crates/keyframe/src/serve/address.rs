//! NBD addresses as they are typed: `unix:PATH` and `tcp:ADDRESS:PORT`.

use std::net::ToSocketAddrs;

use keyframe_nbd::Address;

pub(crate) fn parse(text: &str) -> Result<Address, String> {
    match text.split_once(':') {
        Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
        Some(("tcp", address)) => match address.to_socket_addrs().map(|mut found| found.next()) {
            Ok(Some(address)) => Ok(Address::Tcp(address)),
            Ok(None) => Err(format!("{address} has no address")),
            Err(error) => Err(format!("{address} is not ADDRESS:PORT: {error}")),
        },
        _ => Err("write unix:PATH or tcp:ADDRESS:PORT".into()),
    }
}

pub(crate) fn print(address: &Address) -> String {
    match address {
        Address::Unix(path) => format!("unix:{}", path.display()),
        Address::Tcp(address) => format!("tcp:{address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        let check = |text: &str| assert_eq!(parse(text).map(|address| print(&address)).as_deref(), Ok(text));
        check("unix:/run/keyframe/nbd");
        check("tcp:127.0.0.1:10809");
        check("tcp:[::1]:10809");
        for text in ["", "unix:", "tcp:", "tcp:10809", "tcp:127.0.0.1", "tcp:127.0.0.1:99999", "/run/nbd", "udp:1:2"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
