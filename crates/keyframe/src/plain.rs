//! Text for terminals that others had a word in: guests, their agents, and whoever describes what is theirs.

use std::borrow::Cow;
use std::fmt::Write;

/// Control characters but line breaks and tabs act on a terminal; they are shown instead, as Rust writes them.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match acts(c) {
            // Writing to a string does not fail.
            true => write!(shown, "{}", c.escape_default()).unwrap_or(()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_acts_on_the_terminal() {
        let check = |text: &str, expected: &str| assert_eq!(plain(text), expected);
        check("VM   STATE\n\tü 名前 ─ ⏎\n", "VM   STATE\n\tü 名前 ─ ⏎\n");
        check("red \u{1b}[31m, back\r, bell\u{7}, zero\0", "red \\u{1b}[31m, back\\r, bell\\u{7}, zero\\u{0}");
        check("delete\u{7f}, of eight bits \u{9b}31m", "delete\\u{7f}, of eight bits \\u{9b}31m");
    }
}
