//! What every hypervisor driver must do, for the fake and for real QEMU with a real guest, and what only the real one can
//! be asked: disks and memory of one instant, memory that comes later, and guests, file systems and processes that fail.

#[path = "hypervisor/button.rs"]
mod button;
#[path = "hypervisor/fixture.rs"]
mod fixture;
#[path = "hypervisor/freezer.rs"]
mod freezer;
#[path = "hypervisor/loading.rs"]
mod loading;
#[path = "hypervisor/real.rs"]
mod real;
#[path = "hypervisor/suite.rs"]
mod suite;
#[path = "hypervisor/unplug.rs"]
mod unplug;
