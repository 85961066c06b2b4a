//! Finding the zeroes that need not be stored.

use std::ops::Range;

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Calls with each longest run of pieces of `grain` bytes that are not all zero.
pub(super) fn each_run<E>(
    bytes: &[u8],
    grain: usize,
    mut visit: impl FnMut(Range<usize>) -> Result<(), E>,
) -> Result<(), E> {
    let mut run = 0..0;
    for (index, piece) in bytes.chunks(grain).enumerate() {
        let start = index * grain;
        if !is_zero(piece) {
            if run.is_empty() {
                run.start = start;
            }
            run.end = start + piece.len();
        } else if !run.is_empty() {
            visit(std::mem::replace(&mut run, 0..0))?;
        }
    }
    if run.is_empty() { Ok(()) } else { visit(run) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_skip_zero_pieces() {
        let check = |bytes: &[u8], expected: &[(usize, usize)]| {
            let mut runs = Vec::new();
            each_run::<()>(bytes, 2, |run| {
                runs.push((run.start, run.end));
                Ok(())
            })
            .unwrap();
            assert_eq!(runs, expected, "{bytes:?}");
        };
        check(&[], &[]);
        check(&[0; 8], &[]);
        check(&[0, 1, 0, 0, 1, 0, 0, 1], &[(0, 2), (4, 8)]);
        check(&[1, 1, 1], &[(0, 3)]);
        check(&[0, 0, 0, 0, 5], &[(4, 5)]);
    }

    #[test]
    fn zero_is_zero_to_the_last_byte() {
        for at in [0, 255, 256, 4095] {
            let mut bytes = [0; 4096];
            assert!(is_zero(&bytes));
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
        }
    }
}
