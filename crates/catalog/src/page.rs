//! Parts of long lists, by key: a page costs the same wherever it is in the list.

/// Which part of a list that is ordered by `Id`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageOf<Id> {
    /// The last one of the page before.
    pub after: Option<Id>,
    /// Most items.
    pub limit: u32,
}

impl<Id> PageOf<Id> {
    /// The first so many.
    pub fn first(limit: u32) -> PageOf<Id> {
        PageOf { after: None, limit }
    }

    /// Everything.
    pub fn all() -> PageOf<Id> {
        PageOf { after: None, limit: u32::MAX }
    }
}

/// A part of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page<T> {
    /// In order.
    pub items: Vec<T>,
    /// How many there are on all pages together.
    pub total: u64,
    /// There are more after these.
    pub more: bool,
}

impl<T> Page<T> {
    /// A page of what was found, when one more than `limit` was asked for.
    pub(crate) fn of(mut items: Vec<T>, limit: u32, total: u64) -> Page<T> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        Page { items, total, more }
    }
}
