//! Bytes that claim to be a migration stream: read without a panic and without memory beyond the limits, or refused.
//!
//! Pages lie inside the blocks that were announced, and the device sections inside the device state.
#![no_main]

use keyframe_memory::stream::{self, Head, Sink};
use keyframe_memory::{PAGE, PageAt, Result};
use libfuzzer_sys::fuzz_target;

#[derive(Default)]
struct Check {
    pages: Vec<u64>,
}

impl Sink for Check {
    fn start(&mut self, head: &Head) -> Result<()> {
        assert!(self.pages.is_empty(), "RAM starts once");
        self.pages = head.blocks.iter().map(|b| b.pages()).collect();
        Ok(())
    }
    fn page(&mut self, at: PageAt, _: &[u8; PAGE]) -> Result<()> {
        self.zero(at)
    }
    fn zero(&mut self, at: PageAt) -> Result<()> {
        assert!(at.page < self.pages[at.block]);
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let mut check = Check::default();
    if let Ok((head, devices)) = stream::read(input, &mut check) {
        assert_eq!(head.blocks.len(), check.pages.len());
        assert!(devices.sections < devices.bytes.len() && devices.bytes.len() <= input.len());
    }
});
