//! Aligned columns without frames, so that `cut`, `awk` and eyes can follow them.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::clock::utc;
use crate::ops::{Kind, SpacesView, VersionView, human};

/// Prints rows under a heading; all columns from the second on are aligned to the right.
pub(crate) fn print(heading: &[&str], rows: Vec<Vec<String>>, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading);
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        let right = if index == 0 { CellAlignment::Left } else { CellAlignment::Right };
        column.set_padding((0, 2));
        column.set_cell_alignment(right);
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Volumes, or the snapshots of one.
pub(super) fn versions(items: &[VersionView], out: &mut impl Write) -> io::Result<()> {
    if items.first().is_some_and(|item| item.kind == Kind::Snapshot) {
        let row = |item: &VersionView| {
            vec![item.name.clone(), human(item.size), human(item.referenced), human(item.written), utc(item.created)]
        };
        return print(
            &["SNAPSHOT", "SIZE", "REFERENCED", "WRITTEN", "CREATED (UTC)"],
            items.iter().map(row).collect(),
            out,
        );
    }
    let row = |item: &VersionView| {
        vec![
            item.name.clone(),
            human(item.size),
            human(item.referenced),
            item.snapshots.to_string(),
            item.attached.to_string(),
            utc(item.created),
        ]
    };
    print(
        &["VOLUME", "SIZE", "REFERENCED", "SNAPSHOTS", "CLIENTS", "CREATED (UTC)"],
        items.iter().map(row).collect(),
        out,
    )
}

pub(super) fn space(view: &SpacesView, out: &mut impl Write) -> io::Result<()> {
    let mut rows: Vec<Vec<String>> = view
        .targets
        .iter()
        .map(|target| {
            let sizes = [target.referenced, target.unique, target.shared, target.would_free];
            std::iter::once(target.name.clone()).chain(sizes.map(human)).collect()
        })
        .collect();
    if rows.len() > 1 {
        let blank = String::new;
        rows.push(vec!["all together".into(), blank(), blank(), blank(), human(view.would_free)]);
    }
    print(&["TARGET", "REFERENCED", "UNIQUE", "SHARED", "WOULD FREE"], rows, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["web".into(), "1 GiB".into()], vec!["  Ünï@x".into(), "512 MiB".into()]];
        let mut out = Vec::new();
        print(&["NAME", "SIZE"], rows, &mut out).unwrap();
        let expected = "\
NAME        SIZE
web        1 GiB
  Ünï@x  512 MiB
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
