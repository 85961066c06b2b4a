//! The load on the engine: one thread, one queue, a fixed number of requests in flight. What fio's io_uring engine does to a file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keyframe_engine::{IoBuf, Op, Pool, Volume};

use crate::rng::Rng;

/// What each request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    /// A write that is answered when it is durable.
    DurableWrite,
}

/// Where the requests go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order<'a> {
    Random,
    Sequential,
    /// These, in units of a request.
    Listed(&'a [u64]),
}

/// When the last request is submitted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End<'a> {
    After(Duration),
    Count(u64),
    Told(&'a AtomicBool),
}

/// A load to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    pub(crate) kind: Kind,
    pub(crate) order: Order<'a>,
    /// Bytes of one request.
    pub(crate) size: u64,
    pub(crate) depth: usize,
    pub(crate) end: End<'a>,
    pub(crate) seed: u64,
}

impl Load<'_> {
    /// 4 KiB at random for a while.
    pub(crate) fn random(kind: Kind, depth: usize, time: Duration, seed: u64) -> Load<'static> {
        Load { kind, order: Order::Random, size: 4096, depth, end: End::After(time), seed }
    }
}

/// One answered request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) answered: Instant,
    pub(crate) latency: Duration,
}

/// What a load achieved.
pub(crate) struct Outcome {
    pub(crate) samples: Vec<Sample>,
    pub(crate) elapsed: Duration,
    bytes: u64,
}

impl Outcome {
    pub(crate) fn iops(&self) -> f64 {
        self.samples.len() as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn rate(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64()
    }

    /// The same run, looked at through some of its samples only.
    pub(crate) fn of(&self, samples: Vec<Sample>) -> Outcome {
        Outcome { samples, elapsed: self.elapsed, bytes: self.bytes }
    }

    /// The latency in seconds that this share of requests did not exceed.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let mut latencies: Vec<Duration> = self.samples.iter().map(|s| s.latency).collect();
        latencies.sort_unstable();
        let at = (latencies.len() as f64 * share) as usize;
        latencies.get(at.min(latencies.len().saturating_sub(1))).map_or(f64::NAN, Duration::as_secs_f64)
    }
}

struct Targets<'a> {
    order: Order<'a>,
    count: u64,
    next: u64,
    rng: Rng,
}

impl Targets<'_> {
    fn next(&mut self) -> u64 {
        let n = self.next;
        self.next += 1;
        match self.order {
            Order::Random => self.rng.below(self.count),
            Order::Sequential => n % self.count,
            Order::Listed(list) => list[n as usize % list.len()],
        }
    }
}

/// Runs a load to its end; every request must succeed.
pub(crate) fn run(pool: &Pool, volume: &Volume, load: &Load) -> Result<Outcome> {
    let mut queue = pool.queue()?;
    let mut rng = Rng::new(load.seed);
    let mut buffers: Vec<Option<IoBuf>> = Vec::new();
    for _ in 0..load.depth {
        let mut buf = IoBuf::zeroed(load.size as usize);
        rng.fill(&mut buf);
        buffers.push(Some(buf));
    }
    let mut targets = Targets { order: load.order, count: volume.size().0 / load.size, next: 0, rng };
    let start = Instant::now();
    let mut started = vec![start; load.depth];
    let (mut submitted, mut samples, mut done) = (0u64, Vec::with_capacity(1 << 16), Vec::new());
    let mut idle: Vec<usize> = (0..load.depth).collect();
    loop {
        let now = Instant::now();
        while let Some(&slot) = idle.last() {
            let over = match load.end {
                End::After(time) => now - start >= time,
                End::Count(count) => submitted >= count,
                End::Told(told) => told.load(Ordering::Relaxed),
            };
            if over {
                break;
            }
            idle.pop();
            let buf = buffers[slot].take().context("a buffer did not come back")?;
            let offset = targets.next() * load.size;
            started[slot] = Instant::now();
            queue.submit(volume, slot as u64, request(load.kind, offset, buf, submitted));
            submitted += 1;
        }
        if idle.len() == load.depth {
            break;
        }
        queue.wait(&mut done);
        let answered = Instant::now();
        for answer in done.drain(..) {
            let slot = answer.token as usize;
            answer.result.with_context(|| format!("{:?} of {}", load.kind, volume.name()))?;
            samples.push(Sample { answered, latency: answered - started[slot] });
            buffers[slot] = answer.buf;
            idle.push(slot);
        }
    }
    Ok(Outcome { samples, elapsed: start.elapsed(), bytes: submitted * load.size })
}

fn request(kind: Kind, offset: u64, mut buf: IoBuf, number: u64) -> Op {
    if kind == Kind::Read {
        return Op::Read { offset, buf };
    }
    buf[..8].copy_from_slice(&number.to_le_bytes());
    Op::Write { offset, buf, fua: kind == Kind::DurableWrite }
}
