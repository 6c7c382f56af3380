//! How a verb answers: a table for people, or JSON for machines.

use std::io::{self, Write};

use serde::Serialize;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Print {
    /// For people.
    Table,
    /// For machines.
    Json,
}

impl Print {
    /// What `--json`, or its absence, asks for.
    #[must_use]
    pub fn of(json: bool) -> Self {
        if json { Self::Json } else { Self::Table }
    }
}

pub(crate) fn json(value: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)
}

/// Columns as wide as what is in them.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]], out: &mut impl Write) -> io::Result<()> {
    let cells = |column: usize| rows.iter().map(move |row| row[column].as_str()).chain([head[column]]);
    let widths: [usize; N] =
        std::array::from_fn(|column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or_default());
    line(head, widths, out)?;
    rows.iter().try_for_each(|row| line(row.each_ref().map(String::as_str), widths, out))
}

fn line<const N: usize>(cells: [&str; N], widths: [usize; N], out: &mut impl Write) -> io::Result<()> {
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{:<width$}", plain(cell)));
    writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())
}

/// Names come from others, and must not steer a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_content_and_control_characters_do_not_get_out() {
        let rows = [["ü\x1b[2J".to_owned(), "x".to_owned()], ["longer".to_owned(), String::new()]];
        let mut out = Vec::new();
        table(["ID", "NAME"], &rows, &mut out).expect("a vector can be written to");
        assert_eq!(String::from_utf8(out).expect("text"), "ID      NAME\nü?[2J   x\nlonger\n");
    }
}
