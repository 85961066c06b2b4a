//! The signals that end the server, taken by the main thread and by no handler.

use std::io;
use std::mem::MaybeUninit;

/// Signals blocked in this thread and in all that it starts.
pub(super) struct Signals(libc::sigset_t);

impl Signals {
    pub(super) fn block() -> io::Result<Signals> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set it is given.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: the set is initialised and the number is a signal.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
        // SAFETY: both pointers are valid or null, as the call allows.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => Ok(Signals(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Sleeps until one of them is sent.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut signal = 0;
        // SAFETY: both pointers are valid for the call.
        match unsafe { libc::sigwait(&self.0, &mut signal) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
