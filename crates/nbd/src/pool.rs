//! Buffers for reuse: one worker's stock, in powers of two, so that a steady load allocates nothing.
//!
//! A buffer keeps the bytes of its last request, possibly of another client. That is safe because a buffer is filled by a
//! finished read or a complete payload before anybody sees it.

use keyframe_engine::IoBuf;

use crate::limits::{MAX_PAYLOAD, POOL_BYTES};

const SMALLEST: usize = 4096;
const CLASSES: usize = (MAX_PAYLOAD as usize / SMALLEST).ilog2() as usize + 1;

pub(crate) struct Pool {
    free: [Vec<IoBuf>; CLASSES],
    bytes: usize,
}

impl Pool {
    pub(crate) fn new() -> Pool {
        Pool { free: std::array::from_fn(|_| Vec::new()), bytes: 0 }
    }

    /// Memory that a buffer of `len` bytes will hold.
    pub(crate) fn cost(len: usize) -> usize {
        len.next_power_of_two().max(SMALLEST)
    }

    /// A buffer of `len` bytes with arbitrary content, `len` at most the largest payload.
    pub(crate) fn take(&mut self, len: usize) -> IoBuf {
        let cost = Pool::cost(len);
        let mut buf = match self.free[class(cost)].pop() {
            Some(buf) => {
                self.bytes -= buf.capacity();
                buf
            }
            None => IoBuf::zeroed(cost),
        };
        buf.set_len(len);
        buf
    }

    /// Keeps a buffer, unless the stock is full or the buffer is not one of its sizes.
    pub(crate) fn put(&mut self, buf: IoBuf) {
        let capacity = buf.capacity();
        let ours = capacity.is_power_of_two() && (SMALLEST..=MAX_PAYLOAD as usize).contains(&capacity);
        if ours && self.bytes + capacity <= POOL_BYTES {
            self.bytes += capacity;
            self.free[class(capacity)].push(buf);
        }
    }
}

fn class(cost: usize) -> usize {
    (cost / SMALLEST).ilog2() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_in_their_class() {
        let mut pool = Pool::new();
        let check = |len: usize, cost: usize| assert_eq!(Pool::cost(len), cost);
        check(512, 4096);
        check(4096, 4096);
        check(4608, 8192);
        check(32 << 20, 32 << 20);
        let first = pool.take(5000);
        let address = first.as_ptr();
        assert_eq!((first.len(), first.capacity()), (5000, 8192));
        pool.put(first);
        assert_eq!(pool.take(4096).capacity(), 4096);
        assert_eq!(pool.take(8192).as_ptr(), address);
    }

    #[test]
    fn the_stock_is_bounded() {
        let mut pool = Pool::new();
        for _ in 0..3 {
            pool.put(IoBuf::zeroed(32 << 20));
        }
        assert_eq!(pool.bytes, 32 << 20);
        pool.put(IoBuf::zeroed(12288));
        assert_eq!(pool.bytes, 32 << 20);
    }
}
