//! Samples by row and side, and their medians as a table.

use std::fmt::Write;

/// What a row's numbers are, and which are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Gigabits a second; more is better.
    Gigabits,
    /// A count a second; more is better.
    Rate,
    /// Microseconds; less is better.
    Microseconds,
    /// Seconds of CPU for a GiB; less is better.
    SecondsPerGib,
    /// Bytes, shown in MiB; less is better.
    Bytes,
    /// Bytes, shown in KiB; less is better.
    SmallBytes,
    /// A count; less is better.
    Count,
}

/// What each side gave, by its name.
type Columns = Vec<(&'static str, Vec<f64>)>;

/// All samples of a run, rows in the order of their first ones.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    rows: Vec<(String, Unit, Columns)>,
}

impl Rows {
    pub(crate) fn add(&mut self, row: &str, unit: Unit, side: &'static str, value: f64) {
        eprintln!("{side:>9} | {row}: {}", show(unit, value));
        let place = self.rows.iter().position(|(name, ..)| name == row).unwrap_or_else(|| {
            self.rows.push((row.to_owned(), unit, Vec::new()));
            self.rows.len() - 1
        });
        let sides = &mut self.rows[place].2;
        match sides.iter_mut().find(|(name, _)| *name == side) {
            Some((_, values)) => values.push(value),
            None => sides.push((side, vec![value])),
        }
    }

    /// A Markdown table of medians. For each column but the first there is one more: how many times better the first is.
    pub(crate) fn markdown(&self, columns: &[&'static str]) -> String {
        let mut text = format!("| row | {} |", columns.join(" | "));
        for other in columns.iter().skip(1) {
            let _ = write!(text, " ahead of {other} |");
        }
        let _ = writeln!(text, " samples |\n|{}", "---|".repeat(columns.len() * 2 + 1));
        for (name, unit, sides) in &self.rows {
            let middle = |side: &&str| {
                let (_, values) = sides.iter().find(|(name, _)| name == side)?;
                median(values)
            };
            let middles: Vec<_> = columns.iter().map(middle).collect();
            if middles.iter().all(Option::is_none) {
                continue;
            }
            let _ = write!(text, "| {name} |");
            for value in &middles {
                let _ =
                    write!(text, " {} |", value.map_or_else(|| "-".to_owned(), |value| show(*unit, value)));
            }
            for other in middles.iter().skip(1) {
                let ratio = middles[0].zip(*other).and_then(|(ours, theirs)| ahead(*unit, ours, theirs));
                let _ = write!(
                    text,
                    " {} |",
                    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
                );
            }
            let count = sides.iter().map(|(_, values)| values.len()).min().unwrap_or(0);
            let _ = writeln!(text, " {count} |");
        }
        text
    }
}

/// How many times better the first is.
fn ahead(unit: Unit, ours: f64, theirs: f64) -> Option<f64> {
    let (above, below) = match unit {
        Unit::Gigabits | Unit::Rate => (ours, theirs),
        Unit::Microseconds | Unit::SecondsPerGib | Unit::Bytes | Unit::SmallBytes | Unit::Count => {
            (theirs, ours)
        }
    };
    (below > 0.0).then_some(above / below)
}

fn show(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Gigabits => format!("{value:.2} Gbit/s"),
        Unit::Rate => format!("{value:.0}/s"),
        Unit::Microseconds => format!("{value:.0} µs"),
        Unit::SecondsPerGib => format!("{value:.2} s/GiB"),
        Unit::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        Unit::SmallBytes => format!("{:.1} KiB", value / 1024.0),
        Unit::Count => format!("{value:.0}"),
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_medians_and_who_is_ahead() {
        let mut rows = Rows::default();
        [3.0, 1.0, 2.0].into_iter().for_each(|value| rows.add("up", Unit::Gigabits, "viv", value));
        rows.add("up", Unit::Gigabits, "passt", 4.0);
        rows.add("request", Unit::Microseconds, "viv", 50.0);
        rows.add("request", Unit::Microseconds, "passt", 100.0);
        rows.add("elsewhere", Unit::Count, "other", 1.0);
        assert_eq!(
            rows.markdown(&["viv", "passt"]),
            "| row | viv | passt | ahead of passt | samples |\n|---|---|---|---|---|\n\
             | up | 2.00 Gbit/s | 4.00 Gbit/s | 0.50 | 1 |\n\
             | request | 50 µs | 100 µs | 2.00 | 1 |\n"
        );
    }
}
