//! Times that were measured, and what is said of them.

use std::time::Duration;

use serde_json::{Value, json};

/// Times of one thing.
#[derive(Debug)]
pub(crate) struct Figure {
    /// As in the README's table.
    pub(crate) name: &'static str,
    /// What is measured, in a few words.
    pub(crate) what: &'static str,
    /// In ascending order.
    times: Vec<Duration>,
}

/// What is said of `times`.
pub(crate) fn figure(name: &'static str, what: &'static str, mut times: Vec<Duration>) -> Figure {
    times.sort_unstable();
    Figure { name, what, times }
}

impl Figure {
    /// The smallest of the times that `percent` of them do not exceed; zero if there are none.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.times.len() * percent).div_ceil(100).max(1);
        self.times.get(rank - 1).copied().unwrap_or_default()
    }

    pub(crate) fn samples(&self) -> usize {
        self.times.len()
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "what": self.what,
            "unit": "ms",
            "p50": milliseconds(self.percentile(50)),
            "p99": milliseconds(self.percentile(99)),
            "samples": self.samples(),
        })
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// With as many digits as mean something.
pub(crate) fn show(time: Duration) -> String {
    let milliseconds = milliseconds(time);
    let digits = match milliseconds {
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{milliseconds:.digits$} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        let hundreds = figure("x", "", times);
        for (percent, time) in [(0, 1), (50, 100), (99, 198), (100, 200)] {
            assert_eq!(hundreds.percentile(percent), Duration::from_millis(time));
        }
        let one = figure("x", "", vec![Duration::from_secs(1)]);
        assert_eq!(one.percentile(50), one.percentile(99));
        assert_eq!(figure("x", "", Vec::new()).percentile(50), Duration::ZERO);
    }

    #[test]
    fn times_are_shown_with_the_digits_that_count() {
        for (nanoseconds, text) in [
            (12_345, "0.012 ms"),
            (1_234_567, "1.23 ms"),
            (12_345_678, "12.3 ms"),
            (1_234_567_890, "1235 ms"),
        ] {
            assert_eq!(show(Duration::from_nanos(nanoseconds)), text);
        }
    }
}
