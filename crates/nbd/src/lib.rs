//! Server side of the NBD protocol over the engine queues.
