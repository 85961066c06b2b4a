//! Names that never change: one type for each kind of thing, so that they cannot be mixed up.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An identifier of a `T`: a UUID, written in lower case with hyphens. New ones sort by the time of their making.
#[derive(Serialize, Deserialize)]
#[serde(transparent, bound = "")]
pub struct Id<T> {
    uuid: Uuid,
    #[serde(skip)]
    kind: PhantomData<fn() -> T>,
}

impl<T> Id<T> {
    /// A new one, of version 7 (RFC 9562, section 5.7).
    #[expect(clippy::new_without_default, reason = "a default identifier would be a new one each time")]
    pub fn new() -> Self {
        Uuid::now_v7().into()
    }

    /// The bare UUID.
    pub fn uuid(self) -> Uuid {
        self.uuid
    }
}

impl<T> From<Uuid> for Id<T> {
    fn from(uuid: Uuid) -> Self {
        Id { uuid, kind: PhantomData }
    }
}

impl<T> FromStr for Id<T> {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse::<Uuid>().map(Into::into)
    }
}

impl<T> fmt::Display for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uuid.fmt(f)
    }
}

impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uuid.fmt(f)
    }
}

// By hand, because derives would ask the same of `T`.
impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Id<T> {}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.uuid == other.uuid
    }
}
impl<T> Eq for Id<T> {}
impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.uuid.cmp(&other.uuid)
    }
}
impl<T> std::hash::Hash for Id<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.uuid.hash(state);
    }
}

impl<T> utoipa::PartialSchema for Id<T> {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))).into()
    }
}
impl<T> utoipa::ToSchema for Id<T> {
    fn name() -> std::borrow::Cow<'static, str> {
        "Id".into()
    }
}

/// What is identified; never made.
pub mod kind {
    /// A virtual machine.
    #[derive(Debug)]
    pub enum Vm {}
    /// A snapshot of a virtual machine.
    #[derive(Debug)]
    pub enum Snapshot {}
    /// A disk of a virtual machine.
    #[derive(Debug)]
    pub enum Disk {}
    /// A network interface of a virtual machine.
    #[derive(Debug)]
    pub enum Nic {}
    /// A template.
    #[derive(Debug)]
    pub enum Template {}
    /// A job.
    #[derive(Debug)]
    pub enum Job {}
    /// A host with an agent.
    #[derive(Debug)]
    pub enum Host {}
}

/// Identifies a virtual machine.
pub type VmId = Id<kind::Vm>;
/// Identifies a snapshot of a virtual machine, and names its parts on the arrays.
pub type SnapshotId = Id<kind::Snapshot>;
/// Identifies a disk, and names its volume on the array.
pub type DiskId = Id<kind::Disk>;
/// Identifies a network interface.
pub type NicId = Id<kind::Nic>;
/// Identifies a template.
pub type TemplateId = Id<kind::Template>;
/// Identifies a job.
pub type JobId = Id<kind::Job>;
/// Identifies a host.
pub type HostId = Id<kind::Host>;
