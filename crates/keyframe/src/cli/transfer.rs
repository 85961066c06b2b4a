//! `keyframe volume import` and `keyframe volume export`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};

#[derive(Args, Clone, Debug)]
pub(crate) struct ImportArgs {
    /// The disk image; a raw one may be a block device
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Name of the new volume
    pub(crate) volume: String,
    /// Format of the image. `auto` looks for a qcow2 header: name the format when the image comes from somebody you do
    /// not trust, because a guest can write such a header into its raw disk. The difference to
    /// another image is refused; make a whole one of it with `qemu-img convert` first
    #[arg(long, value_enum, default_value_t = ImportFormat::Auto)]
    pub(crate) format: ImportFormat,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ImportFormat {
    /// By the header
    Auto,
    /// The bytes of the disk
    Raw,
    /// QEMU's image format, without a backing file (needs qemu-img)
    Qcow2,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ExportArgs {
    /// What to copy: a snapshot, or a volume that nothing writes to
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
    /// The image to make; must not exist
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Format of the image [default: qcow2 if FILE ends in .qcow2 or with --from, otherwise raw]
    #[arg(long, value_enum)]
    pub(crate) format: Option<ImageFormat>,
    /// Copy only what changed since this target: a qcow2 overlay over the image given by --backing
    #[arg(long, value_name = "BASE", requires = "backing")]
    pub(crate) from: Option<String>,
    /// The image that holds BASE; recorded as written here, so a relative path is relative to FILE
    #[arg(long, value_name = "IMAGE", requires = "from", value_hint = ValueHint::FilePath)]
    pub(crate) backing: Option<PathBuf>,
    /// Format of the backing image [default: qcow2 if its name ends in .qcow2, otherwise raw]
    #[arg(long, value_enum, value_name = "FORMAT", requires = "backing")]
    pub(crate) backing_format: Option<ImageFormat>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ImageFormat {
    /// The bytes of the disk, sparse
    Raw,
    /// QEMU's image format
    Qcow2,
}

impl ImageFormat {
    /// What a file name promises.
    pub(crate) fn of_name(path: &Path) -> ImageFormat {
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("qcow2") => ImageFormat::Qcow2,
            _ => ImageFormat::Raw,
        }
    }
}
