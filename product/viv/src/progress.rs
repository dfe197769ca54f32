//! How set-up tells how far it is: bars on a terminal, plain lines elsewhere. Always on the standard error.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fetch::{Progress, Unit, Update};
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use sandbox::escape::escaped;

/// Between two plain lines of one step.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The one that suits where the output goes.
pub(crate) fn for_user(interactive: bool) -> Box<dyn Progress> {
    if interactive { Box::new(Bars::default()) } else { Box::new(Lines::default()) }
}

/// Bars, one for each step, that stay when they are full.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    bars: Mutex<HashMap<String, Bar>>,
}

/// A step's bar, and its time left with the moment at which that was said.
#[derive(Clone)]
struct Bar {
    drawn: ProgressBar,
    left: Arc<Mutex<Option<(Duration, Instant)>>>,
}

impl Bar {
    fn new(step: &str) -> Self {
        let left = Arc::new(Mutex::new(None::<(Duration, Instant)>));
        let shown = left.clone();
        let style = ProgressStyle::with_template("  {prefix:<16} {bar:20.█░} {msg}{left}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .with_key("left", move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let left = *shown.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((left, said)) = left.filter(|_| !state.is_finished()) {
                    // It goes on between two words of the step: some of what is done takes a minute.
                    let _ = write!(out, "  {} left", about(left.saturating_sub(said.elapsed())));
                }
            });
        Self { drawn: ProgressBar::no_length().with_prefix(step.to_owned()).with_style(style), left }
    }
}

impl Bars {
    fn bar(&self, step: &str) -> Bar {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let bar = Bar::new(step);
            let drawn = self.all.add(bar.drawn);
            drawn.enable_steady_tick(Duration::from_secs(1));
            Bar { drawn, ..bar }
        };
        bars.entry(step.to_owned()).or_insert_with(new).clone()
    }
}

impl Progress for Bars {
    fn update(&self, update: &Update<'_>) {
        let Bar { drawn, left } = self.bar(update.step);
        if update.total > 0 {
            drawn.set_length(update.total);
        }
        *left.lock().unwrap_or_else(PoisonError::into_inner) = update.left.map(|left| (left, Instant::now()));
        drawn.set_position(update.done);
        drawn.set_message(words(&Update { left: None, ..update.clone() }));
    }

    fn finished(&self, step: &str) {
        let bar = self.bar(step).drawn;
        bar.set_length(bar.position().max(1));
        bar.set_position(bar.length().unwrap_or(1));
        bar.finish_with_message("done");
    }

    fn note(&self, line: &str) {
        let _ = self.all.println(format!("  {line}"));
    }
}

/// A line now and then for each step, and one at its end.
#[derive(Default)]
struct Lines {
    steps: Mutex<HashMap<String, (Instant, Instant)>>,
}

impl Progress for Lines {
    fn update(&self, update: &Update<'_>) {
        let now = Instant::now();
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let due = match steps.get_mut(update.step) {
            None => {
                steps.insert(update.step.to_owned(), (now, now));
                true
            }
            Some((_, said)) if now.duration_since(*said) >= LINE_EVERY => {
                *said = now;
                true
            }
            Some(_) => false,
        };
        if due {
            eprintln!("viv: {}: {}", update.step, words(update));
        }
    }

    fn finished(&self, step: &str) {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        match steps.get(step) {
            Some((begun, _)) => eprintln!("viv: {step}: done in {}", seconds(begun.elapsed())),
            None => eprintln!("viv: {step}: done"),
        }
    }

    fn note(&self, line: &str) {
        eprintln!("viv: {line}");
    }
}

/// "198/246 MB  31 MB/s  2 s left", or "143/200  configuring docker.io".
fn words(update: &Update<'_>) -> String {
    let mut parts = Vec::new();
    let of_total =
        |done: String, total: String| if update.total > 0 { format!("{done}/{total}") } else { done };
    match update.unit {
        Unit::Bytes => {
            let total = format!("{:.0} MB", megabytes(update.total));
            let done = if update.total > 0 {
                format!("{:.0}", megabytes(update.done))
            } else {
                format!("{:.0} MB", megabytes(update.done))
            };
            parts.push(of_total(done, total));
            if let Some(rate) = update.rate {
                let slow = rate < 1e6;
                let (number, unit) = if slow { (rate / 1e3, "kB/s") } else { (rate / 1e6, "MB/s") };
                parts.push(format!("{number:.0} {unit}"));
            }
        }
        Unit::Shares => {
            let share = (update.done.saturating_mul(100)).checked_div(update.total).unwrap_or(0);
            parts.push(format!("{share} %"));
        }
        Unit::Items => {
            if update.total > 0 || update.done > 0 {
                parts.push(of_total(update.done.to_string(), update.total.to_string()));
            }
        }
    }
    if let Some(left) = update.left {
        parts.push(format!("{} left", about(left)));
    }
    if !update.detail.is_empty() {
        // The console of the machine that makes the image has a say in it.
        parts.push(escaped(update.detail, 80));
    }
    parts.join("  ")
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// As exact as an estimate is: "8 s", "50 s", "3 min".
fn about(time: Duration) -> String {
    match time.as_secs_f64().round() as u64 {
        all @ 0..20 => format!("{} s", all.max(1)),
        all @ 20..90 => format!("{} s", all / 10 * 10),
        all => format!("{} min", (all + 30) / 60),
    }
}

/// "2 s", "1 min 52 s".
pub(crate) fn seconds(time: Duration) -> String {
    let all = time.as_secs_f64().round() as u64;
    match all {
        0..60 => format!("{all} s"),
        _ => format!("{} min {} s", all / 60, all % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_bytes_rate_and_time_left() {
        let mut update = Update {
            step: "Debian packages",
            detail: "",
            done: 198_000_000,
            total: 246_000_000,
            unit: Unit::Bytes,
            rate: Some(31e6),
            left: Some(Duration::from_secs(2)),
        };
        assert_eq!(words(&update), "198/246 MB  31 MB/s  2 s left");
        update.rate = Some(31e3);
        assert_eq!(words(&update), "198/246 MB  31 kB/s  2 s left");
        update = Update {
            unit: Unit::Items,
            detail: "configuring docker.io",
            done: 143,
            total: 200,
            rate: None,
            left: None,
            ..update
        };
        assert_eq!(words(&update), "143/200  configuring docker.io");
        update.detail = "\x1b[2J";
        assert_eq!(words(&update), "143/200  \\u{1b}[2J");
        update =
            Update { unit: Unit::Shares, detail: "packing", left: Some(Duration::from_secs(47)), ..update };
        assert_eq!(words(&update), "71 %  40 s left  packing");
        assert_eq!(about(Duration::from_secs(170)), "3 min");
        assert_eq!(seconds(Duration::from_secs(112)), "1 min 52 s");
    }
}
