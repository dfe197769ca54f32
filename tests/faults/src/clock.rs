//! What a guest's words tell of its clock after a stop.

use e2e::{Case, ensure};

/// How long a guest is watched after a stop, in seconds.
pub const WATCHED: f64 = 6.0;

/// How long it may take until its time is right, and how long it may be silent, in seconds.
pub const PATIENCE: f64 = 1.0;

/// The host's time at which a line came, and the guest's time in it, in seconds since 1970.
pub type Times = Vec<(f64, f64)>;

/// Whether a guest that goes on at `woken` has the right time within a second, and keeps it without a pause.
///
/// # Errors
/// What is wrong.
pub fn judge(times: &[(f64, f64)], woken: f64) -> Case {
    let after: Vec<&(f64, f64)> = times.iter().filter(|(host, _)| *host >= woken).collect();
    // What is older was on its way when everything stopped.
    let fresh: Vec<f64> =
        after.iter().map(|(_, guest)| *guest).filter(|guest| *guest >= woken - 0.05).collect();
    let first = fresh.first().map_or(f64::INFINITY, |guest| guest - woken);
    ensure(first < PATIENCE, format!("the guest's time was not right within a second: {first} s"))?;
    for (host, guest) in after.iter().filter(|(host, _)| *host >= woken + PATIENCE) {
        // A line may be late on a busy host, but it cannot come before its time.
        ensure(
            *guest >= woken && *guest < host + 0.5,
            format!("at {:.3} s the guest's clock is off by {} s", host - woken, guest - host),
        )?;
    }
    let nearest =
        after.iter().filter(|(host, _)| *host >= woken + PATIENCE).map(|(host, guest)| host - guest);
    let nearest = nearest.fold(f64::INFINITY, f64::min);
    ensure(nearest < PATIENCE, format!("the guest's clock is {nearest} s late"))?;
    let silence = fresh.windows(2).map(|pair| pair[1] - pair[0]).fold(first, f64::max);
    let last = fresh.last().copied().unwrap_or(0.0);
    ensure(
        silence < PATIENCE && last > woken + WATCHED - 2.0 * PATIENCE,
        format!("a stall of {silence} s; the last word came {} s after the stop", last - woken),
    )?;
    println!(
        "right {first:.3} s after the stop, {nearest:.4} s from the host's time, no pause over {silence:.3} s"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines every 20 ms from the moment that the guest goes on, by this clock of the guest.
    fn times(guest: impl Fn(f64) -> f64) -> Times {
        (1..300).map(|step| f64::from(step) * 0.02).map(|at| (1000.0 + at, 1000.0 + guest(at))).collect()
    }

    #[test]
    fn a_wrong_clock_or_a_stall_is_seen() {
        assert!(judge(&times(|at| at - 0.001), 1000.0).is_ok());
        // Corrected after half a second, after two, never; ahead; silent for two seconds; silent from the third second on.
        assert!(judge(&times(|at| if at < 0.5 { at - 30.0 } else { at }), 1000.0).is_ok());
        assert!(judge(&times(|at| if at < 2.0 { at - 30.0 } else { at }), 1000.0).is_err());
        assert!(judge(&times(|at| at - 30.0), 1000.0).is_err());
        assert!(judge(&times(|at| at + 2.0), 1000.0).is_err());
        let pause: Times =
            times(|at| at).into_iter().filter(|(host, _)| !(1002.0..1004.0).contains(host)).collect();
        assert!(judge(&pause, 1000.0).is_err());
        let end: Times = times(|at| at).into_iter().filter(|(host, _)| *host < 1003.0).collect();
        assert!(judge(&end, 1000.0).is_err());
        assert!(judge(&Times::new(), 1000.0).is_err());
    }
}
