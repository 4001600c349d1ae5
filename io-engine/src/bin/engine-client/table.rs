//! Columns that line up.

use std::fmt::Write as _;

/// What stands where there is nothing to say, so that columns can still be cut apart by blanks.
const NOTHING: &str = "-";

/// Rows under headings; columns are as wide as their widest cell and stand two blanks apart.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).into()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(self.rows[0].len(), N, "a row has a cell for every heading");
        self.rows.push(cells.map(|cell| if cell.is_empty() { NOTHING.to_owned() } else { cell }).into());
    }

    pub(crate) fn render(&self) -> String {
        lines(&self.rows)
    }
}

/// Names and values, one a line.
pub(crate) fn facts<const N: usize>(facts: [(&str, String); N]) -> String {
    let row = |(name, value): (&str, String)| vec![format!("{name}:"), value];
    lines(&facts.map(row))
}

fn lines(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_blanks() {
        let mut table = Table::new(["NAME", "SIZE", "NOTE"]);
        table.row(["a".into(), "1 GiB".into(), String::new()]);
        table.row(["longer".into(), "2 B".into(), "naïve".into()]);
        let expected = "NAME    SIZE   NOTE\na       1 GiB  -\nlonger  2 B    naïve\n";
        assert_eq!(table.render(), expected);
    }
}
