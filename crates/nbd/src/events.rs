//! Several descriptors watched as one: what a queue that is made of others returns from
//! [`event_fd`](crate::Queue::event_fd). Readable as long as one of them is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

pub(crate) struct Events(OwnedFd);

impl Events {
    pub(crate) fn new() -> io::Result<Events> {
        Ok(Events(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches another descriptor, until it is closed.
    pub(crate) fn watch(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(0), EventFlags::IN)?)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
