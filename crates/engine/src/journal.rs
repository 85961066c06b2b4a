//! The journal: groups of records in a ring of pre-written blocks.
//!
//! A group is written only after its predecessor is durable, so at most the last group in the ring may be incomplete, and a
//! damaged group that has a successor is corruption, never a crash. Each group carries the checksum of its predecessor's
//! header, so that a group left over from an earlier life is never taken for the next one. Positions count bytes and never
//! wrap; a group never wraps either: if it does not fit before the ring's end it starts at the ring's beginning.
//!
//! This file knows bytes and positions. It does no I/O.

use crate::buf::IoBuf;
use crate::disk::codec::{Reader, Writer};
use crate::disk::record::Record;

/// First bytes of a group.
const MAGIC: [u8; 8] = *b"KFJGROUP";
/// Bytes of a group's header.
const HEADER: usize = 64;

/// What a valid group says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub(crate) number: u64,
    pub(crate) first_record: u64,
    pub(crate) records: u32,
    pub(crate) payload: u32,
    pub(crate) chain: u32,
    /// Checksum of the header: the chain value its successor carries.
    pub(crate) crc: u32,
}

impl GroupHeader {
    /// Bytes of the ring that the group occupies.
    pub(crate) fn stored_len(&self, align: u64) -> u64 {
        (HEADER as u64 + u64::from(self.payload)).next_multiple_of(align)
    }
}

/// A sealed group on its way to the device.
pub(crate) struct Sealed {
    /// Byte offset within the ring.
    pub(crate) offset: u64,
    pub(crate) bytes: IoBuf,
}

/// Where the next group goes; part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) at: u64,
    pub(crate) group: u64,
    pub(crate) chain: u32,
}

/// The writing side.
pub(crate) struct Journal {
    uuid: [u8; 16],
    ring: u64,
    align: u64,
    head: Position,
    tail: u64,
    buffer: Vec<u8>,
    buffered: u32,
    next_record: u64,
    durable: u64,
    in_flight: Option<u64>,
}

impl Journal {
    pub(crate) fn new(uuid: [u8; 16], ring: u64, align: u64, head: Position, tail: u64, last_record: u64) -> Journal {
        Journal {
            uuid,
            ring,
            align,
            head,
            tail,
            buffer: Vec::new(),
            buffered: 0,
            next_record: last_record + 1,
            durable: last_record,
            in_flight: None,
        }
    }

    /// Records buffered beyond this many bytes ask for a commit of their own.
    pub(crate) fn group_limit(&self) -> u64 {
        self.ring / 16
    }

    /// Whether a record of `len` bytes fits, whatever the padding and the gap at the wrap.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        let buffered = self.buffer.len() as u64 + len as u64;
        let used = self.head.at - self.tail;
        buffered <= 2 * self.group_limit()
            && used + 2 * (buffered + HEADER as u64 + self.align) + self.group_limit() <= self.ring
    }

    /// How much of the ring is between the last checkpoint and the head, in percent.
    pub(crate) fn fill_percent(&self) -> u64 {
        (self.head.at - self.tail + self.buffer.len() as u64) * 100 / self.ring
    }

    /// Adds a record and returns its number. The caller has checked [`Journal::has_room`].
    pub(crate) fn append(&mut self, record: &Record) -> u64 {
        record.encode(&mut self.buffer);
        self.buffered += 1;
        self.next_record += 1;
        self.next_record - 1
    }

    /// The number of the last record added.
    pub(crate) fn last_record(&self) -> u64 {
        self.next_record - 1
    }
    /// The last record known to be durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }
    /// Bytes of records that no group holds yet.
    pub(crate) fn buffered_bytes(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// Takes the buffered records as the next group. `None` when there are none or a group is still on its way.
    pub(crate) fn seal(&mut self) -> Option<Sealed> {
        if self.buffered == 0 || self.in_flight.is_some() {
            return None;
        }
        let payload = std::mem::take(&mut self.buffer);
        let len = (HEADER + payload.len()).next_multiple_of(self.align as usize) as u64;
        let mut at = self.head.at;
        if at % self.ring + len > self.ring {
            at = at.next_multiple_of(self.ring);
        }
        let last_record = self.last_record();
        let first_record = self.next_record - u64::from(self.buffered);
        let (header, crc) =
            encode_header(&self.uuid, self.head.group, first_record, self.buffered, &payload, self.head.chain);
        let mut bytes = IoBuf::zeroed(len as usize);
        bytes[..HEADER].copy_from_slice(&header);
        bytes[HEADER..HEADER + payload.len()].copy_from_slice(&payload);
        self.buffered = 0;
        self.in_flight = Some(last_record);
        self.head = Position { at: at + len, group: self.head.group + 1, chain: crc };
        Some(Sealed { offset: at % self.ring, bytes })
    }

    /// The sealed group is durable.
    pub(crate) fn committed(&mut self) {
        if let Some(last) = self.in_flight.take() {
            self.durable = self.durable.max(last);
        }
    }

    /// A checkpoint made these records durable.
    pub(crate) fn note_durable(&mut self, record: u64) {
        self.durable = self.durable.max(record);
    }

    /// The position from which a checkpoint taken now must replay: records before it are part of the checkpoint.
    pub(crate) fn position(&self) -> Position {
        self.head
    }

    /// A checkpoint is durable: the ring is free up to its position. Records it contains need no group.
    pub(crate) fn advance_tail(&mut self, to: Position) {
        self.tail = to.at;
    }
}

fn encode_header(uuid: &[u8; 16], number: u64, first: u64, records: u32, payload: &[u8], chain: u32) -> (Vec<u8>, u32) {
    let mut w = Writer::default();
    w.bytes(&MAGIC).u64(number).u64(first).u32(records).u32(payload.len() as u32).u32(chain);
    w.u32(crc32c::crc32c(payload)).bytes(uuid);
    w.0.resize(HEADER - 4, 0);
    let crc = crc32c::crc32c(&w.0);
    w.u32(crc);
    (w.0, crc)
}

/// Reads the group that starts at `bytes[0]`, if there is a whole and valid one.
pub(crate) fn parse_group<'a>(uuid: &[u8; 16], bytes: &'a [u8]) -> Option<(GroupHeader, &'a [u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    if header[..8] != MAGIC {
        return None;
    }
    let crc = crc32c::crc32c(&header[..HEADER - 4]);
    let mut r = Reader(&header[8..]);
    let (number, first_record) = (r.u64().ok()?, r.u64().ok()?);
    let (records, payload, chain) = (r.u32().ok()?, r.u32().ok()?, r.u32().ok()?);
    let payload_crc = r.u32().ok()?;
    if r.take(16).ok()? != uuid || header[HEADER - 4..] != crc.to_le_bytes() {
        return None;
    }
    let body = rest.get(..payload as usize)?;
    (crc32c::crc32c(body) == payload_crc)
        .then_some((GroupHeader { number, first_record, records, payload, chain, crc }, body))
}

/// Why a journal cannot be replayed.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Broken {
    /// This group is damaged although a later one exists.
    Group(u64),
    /// A valid group holds a record that cannot be decoded.
    Record(u64),
}

/// A group to replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replayable {
    pub(crate) header: GroupHeader,
    pub(crate) records: Vec<Record>,
}

/// Finds the groups from `start` on, in order; also returns where the next group goes after each of them.
pub(crate) fn scan(
    uuid: &[u8; 16],
    ring: &[u8],
    align: u64,
    start: Position,
) -> Result<Vec<(Replayable, Position)>, Broken> {
    let len = ring.len() as u64;
    let mut at = start;
    let mut out = Vec::new();
    loop {
        let here = parse_group(uuid, &ring[(at.at % len) as usize..]).map(|g| (at.at, g));
        let wrapped = at.at.next_multiple_of(len);
        let candidates = [here, parse_group(uuid, ring).map(|g| (wrapped, g))];
        let next = candidates.into_iter().flatten().find(|(_, (h, _))| h.number == at.group && h.chain == at.chain);
        let Some((place, (header, body))) = next else { break };
        let mut reader = Reader(body);
        let mut records = Vec::with_capacity(header.records as usize);
        while !reader.is_empty() {
            records.push(Record::decode(&mut reader).map_err(|_| Broken::Record(header.number))?);
        }
        if records.len() != header.records as usize {
            return Err(Broken::Record(header.number));
        }
        at = Position { at: place + header.stored_len(align), group: header.number + 1, chain: header.crc };
        out.push((Replayable { header, records }, at));
    }
    // A later group proves that the one missing here was durable once.
    let later = (0..ring.len())
        .step_by(align as usize)
        .filter_map(|i| parse_group(uuid, &ring[i..]))
        .any(|(h, _)| h.number > at.group);
    if later { Err(Broken::Group(at.group)) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::VersionId;

    const UUID: [u8; 16] = [7; 16];
    const START: Position = Position { at: 0, group: 1, chain: 99 };

    struct Ring {
        journal: Journal,
        bytes: Vec<u8>,
        written: Vec<Vec<u64>>,
    }

    impl Ring {
        fn new(len: u64) -> Ring {
            let journal = Journal::new(UUID, len, 512, START, 0, 0);
            Ring { journal, bytes: vec![0; len as usize], written: vec![] }
        }
        fn write(&mut self, records: u32) -> u64 {
            let mut numbers = vec![];
            for i in 0..records {
                numbers.push(self.journal.append(&Record::Splice { ghost: VersionId(i) }));
            }
            let sealed = self.journal.seal().unwrap();
            let at = sealed.offset as usize;
            self.bytes[at..at + sealed.bytes.len()].copy_from_slice(&sealed.bytes);
            self.journal.committed();
            self.written.push(numbers);
            sealed.offset
        }
    }

    #[test]
    fn groups_come_back_in_order_over_the_wrap() {
        let mut ring = Ring::new(8192);
        let mut start = START;
        for round in 0..40 {
            start = ring.journal.position();
            ring.journal.advance_tail(start);
            ring.write(1 + round % 7 * 20);
            ring.write(3);
        }
        let found = scan(&UUID, &ring.bytes, 512, start).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].0.header.first_record, ring.written[78][0]);
        assert_eq!(found[1].0.records.len(), 3);
        assert_eq!(found[1].1, ring.journal.position());
    }

    #[test]
    fn a_torn_last_group_ends_the_journal() {
        let mut ring = Ring::new(8192);
        ring.write(3);
        let at = ring.write(200) as usize;
        ring.bytes[at + 600] ^= 1;
        let found = scan(&UUID, &ring.bytes, 512, START).unwrap();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn damage_before_a_valid_group_is_corruption() {
        let mut ring = Ring::new(8192);
        let at = ring.write(3) as usize;
        ring.write(3);
        ring.bytes[at + 70] ^= 1;
        assert_eq!(scan(&UUID, &ring.bytes, 512, START), Err(Broken::Group(1)));
    }

    #[test]
    fn a_group_of_another_life_is_not_taken() {
        let mut ring = Ring::new(8192);
        ring.write(3);
        let other = Position { chain: 98, ..START };
        assert_eq!(scan(&UUID, &ring.bytes, 512, other), Ok(vec![]));
    }
}
