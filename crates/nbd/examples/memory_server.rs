//! Serves one export named `memory` from memory until standard input ends: for measuring the protocol alone.
//!
//! `memory_server SOCKET [MEBIBYTES [WORKERS]]`

use keyframe_nbd::memory::{Memory, MemoryExport};
use keyframe_nbd::{Config, Listener, Server};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let Some(socket) = arguments.first() else { anyhow::bail!("usage: memory_server SOCKET [MEBIBYTES [WORKERS]]") };
    let backend = Memory::new([MemoryExport::new("memory", number(1, 1024)? << 20)]);
    let config = Config { workers: number(2, 1)? as usize, ..Config::default() };
    let server = Server::start(backend, vec![Listener::unix(socket)?], &config)?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    server.stop()?;
    Ok(())
}
