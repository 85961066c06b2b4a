//! What copying a fragmented file by reflink costs: the cheapest snapshot that a file system offers. Needs root for a mount.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keyframe_engine::Access;
use keyframe_engine::units::Bytes;
use keyframe_lab::process::run_tool;

use super::Bench;
use crate::bed::Bed;
use crate::figure::{Figure, Unit};
use crate::fio::{Job, Via};
use crate::load::{Kind, Load, run as load};
use crate::place::Place;
use crate::report::{Report, Row};
use crate::tool::tool;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        report.note("SKIPPED: mounting XFS needs root.");
        return Ok(());
    }
    let (plan, place) = (&bench.plan, bench.place);
    let mount = Mount::xfs(place, plan.volume)?;
    let path = mount.dir.join("disk");
    let file = File::create_new(&path).and_then(|_| File::options().read(true).write(true).open(&path))?;
    // Half of it, so that copies find room.
    let size = plan.volume / 2;
    file.set_len(size)?;
    let bed = Bed::make(&place.file("pool"), plan.pool / 2)?;
    bed.pool.create_volume("disk", Bytes(size))?;
    let volume = bed.pool.open_volume("disk", Access::ReadWrite)?;
    for n in 0..3 {
        // Random writes into a sparse file: nearly every block becomes an extent of its own.
        Job { via: Via::File(&path), write: true, depth: 32, time: plan.run }.iops()?;
        load(&bed.pool, &volume, &Load::random(Kind::Write, 32, plan.run, 80 + n))?;
        file.sync_all()?;
        volume.flush()?;
        let extents = extents(&path)?;
        let start = Instant::now();
        let copy = File::create(mount.dir.join(format!("copy-{n}")))?;
        rustix::fs::ioctl_ficlone(&copy, &file).context("reflink")?;
        copy.sync_all()?;
        let reflink = start.elapsed();
        let snapshot = bed.pool.snapshot(&[("disk".into(), format!("s{n}"))])?;
        let row = Row::new("snapshot of a volume overwritten at random, durable", time(snapshot.total));
        report.row(row.against(format!("reflink of {extents} extents"), time(reflink)));
    }
    drop(file);
    mount.unmount()
}

fn time(time: Duration) -> Figure {
    Figure::one(Unit::Time, time.as_secs_f64())
}

fn extents(path: &Path) -> Result<u64> {
    let text = run_tool(tool("filefrag").arg(path))?;
    let number = text.rsplit(": ").next().and_then(|rest| rest.split(' ').next());
    number.context("filefrag said nothing")?.parse().context("read filefrag's answer")
}

/// A file system in a file, in a mount namespace of this process alone: it is gone when the process is.
struct Mount {
    dir: PathBuf,
}

impl Mount {
    fn xfs(place: &Place, room: u64) -> Result<Mount> {
        let (image, dir) = (place.file("xfs.img"), place.mount_point());
        File::create(&image)?.set_len(room.max(1 << 30) * 2)?;
        std::fs::create_dir(&dir)?;
        run_tool(tool("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image))?;
        run_tool(tool("mount").args(["-o", "loop"]).arg(&image).arg(&dir))?;
        Ok(Mount { dir })
    }

    fn unmount(self) -> Result<()> {
        run_tool(tool("umount").arg(&self.dir))?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Reached only on the way out of a failure, which is reported already.
        run_tool(tool("umount").arg("--lazy").arg(&self.dir)).ok();
    }
}
