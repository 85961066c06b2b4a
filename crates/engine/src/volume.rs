//! An open handle on a head or a snapshot, with blocking reads and writes for callers that need no queue of their own.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::buf::IoBuf;
use crate::error::Result;
use crate::queue::Queue;
use crate::request::{Extent, Op};
use crate::shared::Shared;
use crate::units::{BLOCK, Bytes, VersionId};

/// How a volume is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads only; the only way to open a snapshot.
    ReadOnly,
    /// Reads and writes; heads only.
    ReadWrite,
}

/// Keeps a version from being reverted or deleted while anybody uses it.
pub(crate) struct Attachment {
    shared: Arc<Shared>,
    version: VersionId,
    name: String,
}

impl Attachment {
    pub(crate) fn version(&self) -> VersionId {
        self.version
    }
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        core.detach(self.version);
        if core.attachments(self.version) == 0 {
            core.return_run_of(self.version);
        }
    }
}

/// An open volume or snapshot. Dropping it detaches; requests in flight keep it attached.
pub struct Volume {
    attachment: Arc<Attachment>,
    access: Access,
    size: Bytes,
    queue: Mutex<Option<Queue>>,
}

/// Largest piece of a blocking transfer.
const PIECE: usize = 1 << 20;

impl Volume {
    pub(crate) fn new(shared: Arc<Shared>, version: VersionId, name: &str, access: Access, size: Bytes) -> Volume {
        let attachment = Arc::new(Attachment { shared, version, name: name.to_owned() });
        Volume { attachment, access, size, queue: Mutex::new(None) }
    }

    pub(crate) fn attachment(&self) -> Arc<Attachment> {
        Arc::clone(&self.attachment)
    }

    pub(crate) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.attachment.shared, shared)
    }

    /// The name it was opened by.
    pub fn name(&self) -> &str {
        &self.attachment.name
    }

    /// Its size when it was opened.
    pub fn size(&self) -> Bytes {
        self.size
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn call(&self, op: Op) -> Result<(Option<IoBuf>, Vec<Extent>)> {
        let mut queue = self.queue.lock();
        let queue = match &mut *queue {
            Some(queue) => queue,
            none => none.insert(Queue::new(Arc::clone(&self.attachment.shared))?),
        };
        queue.submit(self, 0, op);
        let mut done = Vec::new();
        while done.is_empty() {
            queue.wait(&mut done);
        }
        let answer = done.swap_remove(0);
        answer.result.map(|()| (answer.buf, answer.extents))
    }

    /// Fills `buf` from `offset`; both multiples of 512.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        for (i, piece) in buf.chunks_mut(PIECE).enumerate() {
            let offset = offset + (i * PIECE) as u64;
            let (data, _) = self.call(Op::Read { offset, buf: IoBuf::zeroed(piece.len()) })?;
            if let Some(data) = data {
                piece.copy_from_slice(&data);
            }
        }
        Ok(())
    }

    /// Stores `buf` at `offset`; both multiples of 512.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        for (i, piece) in buf.chunks(PIECE).enumerate() {
            let offset = offset + (i * PIECE) as u64;
            self.call(Op::Write { offset, buf: IoBuf::copy_of(piece), fua: false })?;
        }
        Ok(())
    }

    /// Drops a range.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.call(Op::Discard { offset, len, fua: false }).map(|_| ())
    }

    /// Makes a range read as zeroes.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.call(Op::WriteZeroes { offset, len, no_hole: false, fua: false }).map(|_| ())
    }

    /// Makes everything written so far durable.
    pub fn flush(&self) -> Result<()> {
        self.call(Op::Flush).map(|_| ())
    }

    /// Describes how a range is stored, to its end.
    pub fn status(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let mut out: Vec<Extent> = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (_, extents) = self.call(Op::Status { offset: at, len: end - at, max: 4096 })?;
            for extent in extents {
                at = extent.offset + extent.len;
                match out.last_mut() {
                    Some(last) if last.kind == extent.kind => last.len += extent.len,
                    _ => out.push(extent),
                }
            }
        }
        Ok(out)
    }
}

/// Rounds up to what a volume can be sized to.
pub fn round_size(bytes: u64) -> Bytes {
    Bytes(bytes.next_multiple_of(BLOCK))
}
