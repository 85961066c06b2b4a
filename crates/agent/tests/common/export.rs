//! The smallest NBD client: newstyle, one export, one request at a time.

use std::io::{Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub(crate) struct Export {
    stream: UnixStream,
    pub(crate) size: u64,
}

impl Export {
    pub(crate) fn connect(socket: &Path, name: &str) -> Result<Export> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend((name.len() as u32).to_be_bytes());
        hello.extend(name.as_bytes());
        stream.write_all(&hello)?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        let size = u64::from_be_bytes(answer[..8].try_into().unwrap());
        Ok(Export { stream, size })
    }

    fn request(&mut self, kind: u16, offset: u64, len: u32, data: &[u8]) -> Result<()> {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(kind.to_be_bytes());
        request.extend(7_u64.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        match u32::from_be_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(()),
            error => Err(std::io::Error::other(format!("NBD error {error}"))),
        }
    }

    /// Fills a block and waits for the answer.
    pub(crate) fn fill(&mut self, block: u64, byte: u8) -> Result<()> {
        self.request(1, block * 4096, 4096, &[byte; 4096])
    }

    /// Fills the first block with a number and waits for the answer.
    pub(crate) fn number(&mut self, number: u64) -> Result<()> {
        self.request(1, 0, 4096, &number.to_be_bytes().repeat(512))
    }

    /// Makes what was answered durable.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.request(3, 0, 0, &[])
    }

    pub(crate) fn read(&mut self, block: u64) -> Result<Vec<u8>> {
        self.request(0, block * 4096, 4096, &[])?;
        let mut data = vec![0; 4096];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }
}
