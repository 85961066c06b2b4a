//! Numbers and envelopes of QEMU's migration protocol, as QEMU 10.0 writes and reads them.
//!
//! Sources, in QEMU's tree: `migration/savevm.h` and `migration/savevm.c` (sections, commands), `migration/ram.c` (flags of
//! a page, `ram_save_setup`, `ram_load_postcopy`), `migration/migration.c` (`enum mig_rp_message_type`,
//! `source_return_path_thread`). Everything is big-endian.

/// First bytes of a stream: `QEMU_VM_FILE_MAGIC` and `QEMU_VM_FILE_VERSION`.
pub(crate) const HEADER: [u8; 8] = *b"QEVM\0\0\0\x03";

/// First byte of a section (`QEMU_VM_*`).
pub(crate) mod section {
    pub(crate) const EOF: u8 = 0x00;
    pub(crate) const START: u8 = 0x01;
    pub(crate) const PART: u8 = 0x02;
    pub(crate) const END: u8 = 0x03;
    pub(crate) const FULL: u8 = 0x04;
    pub(crate) const SUBSECTION: u8 = 0x05;
    pub(crate) const DESCRIPTION: u8 = 0x06;
    pub(crate) const CONFIGURATION: u8 = 0x07;
    pub(crate) const COMMAND: u8 = 0x08;
    pub(crate) const FOOTER: u8 = 0x7e;
}

/// `RAM_SAVE_FLAG_*`: the low bits of the offset that stands before a page.
pub(crate) mod flag {
    pub(crate) const ZERO: u64 = 0x02;
    pub(crate) const BLOCKS: u64 = 0x04;
    pub(crate) const PAGE: u64 = 0x08;
    pub(crate) const EOS: u64 = 0x10;
    pub(crate) const SAME_BLOCK: u64 = 0x20;
    pub(crate) const ALL: u64 = 0xfff;
}

/// `MIG_CMD_*`: what the source tells the destination to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    OpenReturnPath = 1,
    Ping = 2,
    PostcopyAdvise = 3,
    PostcopyListen = 4,
    PostcopyRun = 5,
    RamDiscard = 6,
    Packaged = 7,
    PostcopyResume = 9,
    ReceivedBitmap = 10,
    /// Stands before the devices of a guest that stands still since 10.0, and says no more than that they come.
    SwitchoverStart = 11,
}

/// `MIG_RP_MSG_*`: what the destination tells the source.
pub(crate) mod answer {
    /// Ends the return path; 0 if all went well.
    pub(crate) const SHUT: u16 = 1;
    pub(crate) const PONG: u16 = 2;
    pub(crate) const REQUEST_NAMED: u16 = 3;
    pub(crate) const REQUEST: u16 = 4;
    pub(crate) const RECEIVED_BITMAP: u16 = 5;
    pub(crate) const RESUME_ACK: u16 = 6;
    /// Stands after a bitmap: `RAMBLOCK_RECV_BITMAP_ENDING`.
    pub(crate) const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;
    /// `MIGRATION_RESUME_ACK_VALUE`.
    pub(crate) const RESUME_VALUE: u32 = 1;
}

pub(crate) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

pub(crate) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// A name with one byte of length before it; names come from a stream, so they fit.
pub(crate) fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(u8::try_from(name.len()).expect("names are read with one byte of length"));
    out.extend_from_slice(name.as_bytes());
}

pub(crate) fn put_command(out: &mut Vec<u8>, command: Command, data: &[u8]) {
    out.push(section::COMMAND);
    out.extend_from_slice(&(command as u16).to_be_bytes());
    out.extend_from_slice(&u16::try_from(data.len()).expect("commands carry a few hundred bytes").to_be_bytes());
    out.extend_from_slice(data);
}

/// Ends a section of RAM: no more pages in it, and the footer.
pub(crate) fn put_ram_end(out: &mut Vec<u8>, section_id: u32) {
    put_u64(out, flag::EOS);
    out.push(section::FOOTER);
    put_u32(out, section_id);
}
