//! Sizes as people write them: `10G`, `512M`, `1.5T`, `10 GiB`, plain bytes. Units are powers of 1024, as everywhere in
//! QEMU's tools; `GB` is refused because half its readers mean something else.

use keyframe_engine::units::{BLOCK, Bytes};

/// Parses a size. A size with a fraction is rounded up to whole blocks, because nobody who writes `1.3G` counts bytes.
pub(crate) fn parse_size(text: &str) -> Result<Bytes, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = unit_shift(unit.trim_start()).ok_or_else(|| how_to_write(unit))?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    let whole: u64 = whole.parse().map_err(|_| how_to_write(number))?;
    let bytes = whole.checked_mul(1 << shift).ok_or("is larger than any volume or pool can be")?;
    match fraction {
        None => Ok(Bytes(bytes)),
        Some(_) if shift == 0 => Err("a number of bytes has no fraction".into()),
        Some(fraction) => {
            let rest = fraction_of(fraction, shift).ok_or_else(|| how_to_write(number))?;
            let bytes = bytes.checked_add(rest).and_then(|sum| sum.checked_next_multiple_of(BLOCK));
            bytes.map(Bytes).ok_or_else(|| "is larger than any volume or pool can be".into())
        }
    }
}

fn how_to_write(what: &str) -> String {
    format!("{what:?} is not understood; write a size as 10G, 512M, 1.5T or as plain bytes")
}

fn unit_shift(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_uppercase();
    let letter = unit.strip_suffix("IB").unwrap_or(&unit);
    match letter {
        "" | "B" if letter.len() == unit.len() => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        "P" => Some(50),
        "E" => Some(60),
        _ => None,
    }
}

/// The bytes of `0.digits` in units of two to the `shift`, rounded up. Nine digits decide more than a byte of a pebibyte
/// needs for rounding to blocks.
fn fraction_of(digits: &str, shift: u32) -> Option<u64> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    let numerator: u128 = digits.parse().ok()?;
    let denominator = 10u128.pow(digits.len() as u32);
    u64::try_from((numerator << shift).div_ceil(denominator)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(parse_size(text).ok(), expected.map(Bytes), "{text:?}");
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        check("0", Some(0));
        check("4096", Some(4096));
        check("4096B", Some(4096));
        check("1k", Some(1024));
        check("512M", Some(512 << 20));
        check("10G", Some(10 << 30));
        check("10g", Some(10 << 30));
        check("10GiB", Some(10 << 30));
        check("10 GiB", Some(10 << 30));
        check("1.5T", Some(3 << 39));
        check("1.50 KiB", Some(4096));
        check("0.3G", Some(322_125_824));
        check("16383P", Some(16383 << 50));
        check("18446744073709551615", Some(u64::MAX));
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in
            ["", "G", "-1", "1.5", "1.", ".5G", "1.2.3G", "1e9", "10GB", "10X", "ten", "1G5", "0x10", "IB", "1IB"]
        {
            check(text, None);
        }
        check("16E", None);
        check("18446744073709551616", None);
        check("15.9999999999E", None);
    }

    #[test]
    fn printed_sizes_can_be_typed_again() {
        for bytes in [0, 4096, 1 << 20, 10 << 30, 3 << 39] {
            check(&Bytes(bytes).to_string(), Some(bytes));
        }
    }
}
