//! Pages: what callers say and what the catalog understands.

use std::str::FromStr;

use keyframe_catalog::PageOf;

use crate::request::{Page, PageRequest};
use crate::{Error, ErrorKind, Result};

/// Most items of a page, and the usual number.
const MOST: u32 = 1000;
const USUAL: u32 = 100;

/// The page that is asked for.
pub(crate) fn wanted<Id: FromStr>(page: &PageRequest) -> Result<PageOf<Id>> {
    let limit = page.limit.unwrap_or(USUAL);
    if !(1..=MOST).contains(&limit) {
        return Err(Error::new(ErrorKind::Invalid, format!("a page has 1 to {MOST} items, not {limit}")));
    }
    let parse = |after: &String| {
        after.parse().map_err(|_| Error::new(ErrorKind::Invalid, "'after' is not what a page said to go on with"))
    };
    Ok(PageOf { after: page.after.as_ref().map(parse).transpose()?, limit })
}

/// The answer.
pub(crate) fn answer<T, V>(
    found: keyframe_catalog::Page<T>,
    id: impl Fn(&T) -> String,
    mut view: impl FnMut(T) -> V,
) -> Page<V> {
    let next = found.items.last().filter(|_| found.more).map(id);
    Page { items: found.items.into_iter().map(&mut view).collect(), next }
}
