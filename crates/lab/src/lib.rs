//! Real virtual machines for the demonstration, the system tests and the measurements.
//!
//! Knows QEMU and the test guest (`guest/` in the repository). Reaches Keyframe only through its command line and, for
//! storage alone, its NBD exports, as a user does: no crate of the product is linked here, so nothing is judged by the code under test.

pub mod console;
pub mod demo;
pub mod guest;
pub mod hold;
pub mod images;
pub mod kvm;
pub mod machine;
pub mod mounted;
pub mod postgres;
pub mod process;
pub mod qga;
pub mod qmp;
pub mod rest;
pub mod scene;
pub mod scratch;
pub mod site;
pub mod stamps;
pub mod steps;
pub mod store;
pub mod vm;
