//! The data of handshake options, parsed without copying, and the encoding of option replies.

use crate::limits::MAX_STRING;
use crate::wire::{self, Fields};

/// Why the data of an option is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadOption {
    /// Lengths contradict each other, or text is not UTF-8.
    Malformed,
    /// A string exceeds what "Conventions" allows.
    TooLong,
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct InfoQuery<'a> {
    pub(crate) name: &'a str,
    pub(crate) wants_name: bool,
    pub(crate) wants_description: bool,
}

/// Data of the two meta context options.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct MetaQuery<'a> {
    pub(crate) name: &'a str,
    /// No query at all, which lists everything and selects nothing.
    pub(crate) empty: bool,
    /// `base:allocation` was named.
    pub(crate) exact: bool,
    /// The wildcard `base:` was named.
    pub(crate) wildcard: bool,
}

/// A string of the protocol ("Conventions"): UTF-8, no NUL, at most 4096 bytes.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, BadOption> {
    if bytes.len() > MAX_STRING {
        return Err(BadOption::TooLong);
    }
    if bytes.contains(&0) {
        return Err(BadOption::Malformed);
    }
    std::str::from_utf8(bytes).map_err(|_| BadOption::Malformed)
}

fn sized_text<'a>(fields: &mut Fields<'a>) -> Result<&'a str, BadOption> {
    let len = fields.u32().ok_or(BadOption::Malformed)?;
    text(fields.bytes(len as usize).ok_or(BadOption::Malformed)?)
}

/// "Option types", `NBD_OPT_INFO`.
pub(crate) fn info_query(data: &[u8]) -> Result<InfoQuery<'_>, BadOption> {
    let mut fields = Fields(data);
    let name = sized_text(&mut fields)?;
    let count = fields.u16().ok_or(BadOption::Malformed)?;
    let mut query = InfoQuery { name, wants_name: false, wants_description: false };
    for _ in 0..count {
        match fields.u16().ok_or(BadOption::Malformed)? {
            wire::info::NAME => query.wants_name = true,
            wire::info::DESCRIPTION => query.wants_description = true,
            _ => {}
        }
    }
    if fields.is_empty() { Ok(query) } else { Err(BadOption::Malformed) }
}

/// "Option types", `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
pub(crate) fn meta_query(data: &[u8]) -> Result<MetaQuery<'_>, BadOption> {
    let mut fields = Fields(data);
    let name = sized_text(&mut fields)?;
    let count = fields.u32().ok_or(BadOption::Malformed)?;
    let mut query = MetaQuery { name, empty: count == 0, exact: false, wildcard: false };
    for _ in 0..count {
        match sized_text(&mut fields)? {
            wire::BASE_ALLOCATION => query.exact = true,
            "base:" => query.wildcard = true,
            // Other namespaces and unknown leaves must be ignored.
            _ => {}
        }
    }
    if fields.is_empty() { Ok(query) } else { Err(BadOption::Malformed) }
}

/// Appends one option reply ("Fixed newstyle negotiation") whose data is the concatenation of `parts`.
pub(crate) fn reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_queries() {
        let check = |data: &[u8], expected| assert_eq!(info_query(data), expected, "{data:x?}");
        let plain = InfoQuery { name: "vm", wants_name: false, wants_description: false };
        check(b"\0\0\0\x02vm\0\0", Ok(plain));
        let all = InfoQuery { name: "", wants_name: true, wants_description: true };
        check(b"\0\0\0\0\0\x03\0\x01\0\x02\0\x03", Ok(all));
        check(b"", Err(BadOption::Malformed));
        check(b"\0\0\0\x03vm\0\0", Err(BadOption::Malformed));
        check(b"\xff\xff\xff\xffvm\0\0", Err(BadOption::Malformed));
        check(b"\0\0\0\x02vm\0\x01", Err(BadOption::Malformed));
        check(b"\0\0\0\x02vm\0\0\0", Err(BadOption::Malformed));
        check(b"\0\0\0\x02\xc3\x28\0\0", Err(BadOption::Malformed));
        check(b"\0\0\0\x02v\0\0\0", Err(BadOption::Malformed));
        let mut long = 4097u32.to_be_bytes().to_vec();
        long.extend([b'a'; 4097]);
        long.extend([0, 0]);
        check(&long, Err(BadOption::TooLong));
    }

    #[test]
    fn meta_queries() {
        let check = |data: &[u8], expected| assert_eq!(meta_query(data), expected, "{data:x?}");
        let query = |empty, exact, wildcard| Ok(MetaQuery { name: "", empty, exact, wildcard });
        check(b"\0\0\0\0\0\0\0\0", query(true, false, false));
        check(b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation", query(false, true, false));
        check(b"\0\0\0\0\0\0\0\x02\0\0\0\x05base:\0\0\0\x04qemu", query(false, false, true));
        check(b"\0\0\0\0\0\0\0\x01", Err(BadOption::Malformed));
        check(b"\0\0\0\0\xff\xff\xff\xff", Err(BadOption::Malformed));
        check(b"\0\0\0\0\0\0\0\x01\0\0\0\x10base:allocation", Err(BadOption::Malformed));
        check(b"\0\0\0\0\0\0\0\0\0", Err(BadOption::Malformed));
    }
}
