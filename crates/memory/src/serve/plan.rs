//! What the page server sends next: a pure core, without a socket and without a clock.
//!
//! Whatever the guest asks for, and in whatever order: every page that holds something is sent exactly once (QEMU takes a
//! second copy for an error), a page of zeros only when it is asked for. What was asked for comes before everything else;
//! the chunk around it comes with it, and the background goes on from there.

use std::collections::VecDeque;

use crate::PageAt;
use crate::image::layout::CHUNK_PAGES;
use crate::image::{ChunkAt, Image};

pub(super) struct Plan {
    blocks: Vec<Pages>,
    /// For each chunk how many of its pages hold something and were not sent.
    left: Vec<u8>,
    /// Where the background goes on, as a number of a chunk.
    cursor: usize,
    wanted: VecDeque<PageAt>,
    pages_left: u64,
}

struct Pages {
    first_chunk: usize,
    sent: Vec<bool>,
}

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Send this page, then what is left of its chunk.
    Wanted(PageAt),
    /// Send what is left of this chunk.
    Background(ChunkAt),
    /// Nothing is left.
    Done,
}

impl Plan {
    pub(super) fn new(image: &Image) -> Plan {
        let blocks = image.blocks().iter();
        let pages = blocks.clone().map(|b| Pages { first_chunk: b.first_chunk, sent: vec![false; b.sums.len()] });
        let chunks = blocks.flat_map(|b| b.sums.chunks(CHUNK_PAGES));
        let left = chunks.map(|sums| sums.iter().filter(|sum| **sum != 0).count() as u8).collect();
        Plan { blocks: pages.collect(), left, cursor: 0, wanted: VecDeque::new(), pages_left: image.stored_pages() }
    }

    /// The guest waits for this page.
    pub(super) fn want(&mut self, at: PageAt) {
        if !self.blocks[at.block].sent[at.page as usize] {
            self.wanted.push_back(at);
        }
    }

    /// Pages that hold something and were not sent.
    pub(super) fn pages_left(&self) -> u64 {
        self.pages_left
    }

    pub(super) fn next(&mut self) -> Step {
        while let Some(at) = self.wanted.pop_front() {
            if !self.blocks[at.block].sent[at.page as usize] {
                self.cursor = self.chunk_number(at);
                return Step::Wanted(at);
            }
        }
        let ahead = self.left[self.cursor..].iter().position(|left| *left > 0).map(|i| self.cursor + i);
        match ahead.or_else(|| self.left[..self.cursor].iter().position(|left| *left > 0)) {
            Some(number) => {
                self.cursor = number;
                Step::Background(self.chunk(number))
            }
            None => Step::Done,
        }
    }

    /// Whether this page is still to be sent; from now on it counts as sent. `holds` says whether it is not zero.
    pub(super) fn send(&mut self, at: PageAt, holds: bool) -> bool {
        let sent = &mut self.blocks[at.block].sent[at.page as usize];
        if std::mem::replace(sent, true) {
            return false;
        }
        if holds {
            let number = self.chunk_number(at);
            self.left[number] -= 1;
            self.pages_left -= 1;
        }
        true
    }

    fn chunk_number(&self, at: PageAt) -> usize {
        self.blocks[at.block].first_chunk + at.page as usize / CHUNK_PAGES
    }

    fn chunk(&self, number: usize) -> ChunkAt {
        let block = self.blocks.partition_point(|b| b.first_chunk <= number) - 1;
        ChunkAt { block, index: number - self.blocks[block].first_chunk }
    }
}
