//! `qemu-img`'s progress: `    (12.34/100%)` and a carriage return, over and over.

/// The last percentage in what was printed, as parts of ten thousand.
pub(super) fn last_percent(printed: &str) -> Option<u64> {
    let end = printed.rfind("/100%)")?;
    let start = printed[..end].rfind('(')? + 1;
    let (whole, hundredths) = printed[start..end].split_once('.')?;
    let whole: u64 = whole.parse().ok()?;
    let hundredths: u64 = (hundredths.len() == 2).then(|| hundredths.parse().ok())??;
    (whole <= 100).then_some(whole * 100 + hundredths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_percentage_counts() {
        let check = |printed: &str, expected: Option<u64>| assert_eq!(last_percent(printed), expected, "{printed:?}");
        check("    (0.00/100%)\r", Some(0));
        check("    (1.04/100%)\r    (12.34/100%)\r    (13.", Some(1234));
        check("    (100.00/100%)\r\n", Some(10_000));
        check("", None);
        check("/100%)", None);
        check("(x/100%)", None);
    }
}
