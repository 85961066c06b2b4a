//! What an array shows of its volumes to the server of exports: the shapes of `keyframe_nbd`, but for arrays whose types
//! are not known when the server is compiled.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;

use keyframe_engine::{Done, Op};
use keyframe_nbd::{Backend, Device, Export, ExportInfo, OpenError, Peer, Queue};

/// See [`Backend`].
pub trait Blocks: Send + Sync {
    /// What clients may see.
    fn list(&self) -> Vec<Export>;
    /// Attaches a volume until the result is dropped.
    fn open(&self, name: &str) -> Result<Box<dyn Block>, OpenError>;
    /// Describes one without attaching it.
    fn inspect(&self, name: &str) -> Result<ExportInfo, OpenError>;
    /// A queue for one worker thread.
    fn lane(&self) -> io::Result<Box<dyn BlockLane>>;
}

/// See [`Device`].
pub trait Block: Device + Sync {
    /// For the lanes of the same array, which know what it is.
    fn as_any(&self) -> &dyn Any;
}

/// See [`Queue`]. Given only blocks of its own array.
pub trait BlockLane {
    /// Stages a request.
    fn submit(&mut self, block: &dyn Block, token: u64, op: Op);
    /// Starts what is staged and appends what has finished.
    fn poll(&mut self, out: &mut Vec<Done>);
    /// Readable when polling may help.
    fn event_fd(&self) -> BorrowedFd<'_>;
}

/// A backend whose types are forgotten.
pub struct Erased<B>(B);

impl<B> Erased<B> {
    /// Forgets them.
    pub fn new(backend: B) -> Erased<B> {
        Erased(backend)
    }
}

impl<B> Blocks for Erased<B>
where
    B: Backend,
    B::Device: Sync + 'static,
    B::Queue: 'static,
{
    fn list(&self) -> Vec<Export> {
        self.0.list()
    }

    fn open(&self, name: &str) -> Result<Box<dyn Block>, OpenError> {
        self.0.open(name, Peer::default()).map(|device| Box::new(ErasedDevice(device)) as Box<dyn Block>)
    }

    fn inspect(&self, name: &str) -> Result<ExportInfo, OpenError> {
        self.0.inspect(name)
    }

    fn lane(&self) -> io::Result<Box<dyn BlockLane>> {
        self.0.queue().map(|queue| Box::new(ErasedLane(queue)) as Box<dyn BlockLane>)
    }
}

struct ErasedDevice<D>(D);

impl<D: Device> Device for ErasedDevice<D> {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_only(&self) -> bool {
        self.0.read_only()
    }
    fn description(&self) -> &str {
        self.0.description()
    }
    fn multi_conn(&self) -> bool {
        self.0.multi_conn()
    }
}

impl<D: Device + Sync + 'static> Block for ErasedDevice<D> {
    fn as_any(&self) -> &dyn Any {
        &self.0
    }
}

struct ErasedLane<Q>(Q);

impl<Q: Queue> BlockLane for ErasedLane<Q>
where
    Q::Device: 'static,
{
    fn submit(&mut self, block: &dyn Block, token: u64, op: Op) {
        match block.as_any().downcast_ref::<Q::Device>() {
            Some(device) => self.0.submit(device, token, op),
            None => unreachable!("a lane is given blocks of its own array"),
        }
    }
    fn poll(&mut self, out: &mut Vec<Done>) {
        self.0.poll(out);
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.0.event_fd()
    }
}
