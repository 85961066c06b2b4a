//! The fake guest's disks: a client of the exports that a real guest would use (NBD, fixed newstyle without options).
//!
//! Source: the NetworkBlockDevice project, `doc/proto.md`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use crate::hypervisor::BlockAddress;

const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const EXPORT_NAME: u32 = 1;
const FIXED_NO_ZEROES: u32 = 3;
/// A stamp takes the first eight bytes of the last block.
const BLOCK: u64 = 4096;

/// One open disk.
#[derive(Debug)]
pub(super) struct Disk {
    stream: UnixStream,
    size: u64,
}

impl Disk {
    pub(super) fn open(at: &BlockAddress) -> io::Result<Disk> {
        let mut stream = UnixStream::connect(&at.socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an NBD server"));
        }
        let name = at.export.as_bytes();
        let mut hello = FIXED_NO_ZEROES.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(EXPORT_NAME.to_be_bytes());
        hello.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes());
        hello.extend(name);
        stream.write_all(&hello)?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        let size = u64::from_be_bytes(first(&answer));
        Ok(Disk { stream, size })
    }

    /// The disk's size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn place(&self) -> u64 {
        self.size.saturating_sub(BLOCK) / BLOCK * BLOCK
    }

    /// Writes a stamp; returns when it is written, which a gate may delay.
    pub(super) fn write(&mut self, stamp: u64) -> io::Result<()> {
        let mut block = vec![0; 512];
        block[..8].copy_from_slice(&stamp.to_le_bytes());
        self.request(WRITE, &block)
    }

    /// Reads the stamp.
    pub(super) fn read(&mut self) -> io::Result<u64> {
        self.request(READ, &[])?;
        let mut block = [0; 512];
        self.stream.read_exact(&mut block)?;
        Ok(u64::from_le_bytes(first(&block)))
    }

    fn request(&mut self, command: u16, data: &[u8]) -> io::Result<()> {
        let mut request = REQUEST.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend(7_u64.to_be_bytes());
        request.extend(self.place().to_be_bytes());
        request.extend(512_u32.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let word = |at: usize| u32::from_be_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
        match (word(0), word(4)) {
            (REPLY, 0) => Ok(()),
            (REPLY, error) => Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(5))),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not an NBD reply")),
        }
    }
}

fn first(bytes: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[..8]);
    out
}
