//! A published figure.

use serde::Serialize;

/// One figure, as it is printed and kept.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    /// What is measured: `object`, `reply`, `result`, `memory`, or the throughput in a
    /// direction.
    pub(crate) kind: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// The most (of a throughput: the least) that is good enough, where there is a goal.
    pub(crate) goal: Option<f64>,
    /// What it holds for.
    pub(crate) conditions: String,
}

impl Figure {
    /// The figure of `samples`, of which there is at least one.
    pub(crate) fn of(
        name: impl Into<String>,
        kind: &'static str,
        unit: &'static str,
        goal: Option<f64>,
        conditions: impl Into<String>,
        samples: &[f64],
    ) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            name: name.into(),
            kind,
            unit,
            p50: percentile(&sorted, 50),
            p99: percentile(&sorted, 99),
            goal,
            conditions: format!("{}; {} samples", conditions.into(), samples.len()),
        }
    }
}

/// The smallest sample that `percent` of all samples do not exceed (nearest rank).
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 50), 100.0);
        assert_eq!(percentile(&sorted, 99), 198.0);
        assert_eq!(percentile(&[7.0], 99), 7.0);
        assert_eq!(percentile(&[1.0, 2.0], 50), 1.0);
    }
}
