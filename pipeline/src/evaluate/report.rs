//! Results in numbers and in words: how far can each be trusted?

use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Samples the literature evaluates with.
const USUAL_SAMPLES: u64 = 50_000;
/// First digits of the SHA-256 of the public weights, `pt_inception-2015-12-05-6726825d.pth`.
const PUBLIC_WEIGHTS: &str = "6726825d";

/// One of the two sets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SetReport {
    /// Where it lies.
    pub path: PathBuf,
    /// Number of pictures; not known of statistics that were read from a file.
    pub count: Option<u64>,
    /// Rank of the covariance of its pooled features; measured of the reference.
    pub rank: Option<usize>,
}

/// Everything that was measured. What cannot be measured is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Fréchet distance of the pooled features.
    pub fid: f64,
    /// Fréchet distance of the spatial features.
    pub sfid: Option<f64>,
    /// Inception Score of the generated pictures, mean over splits of 5,000.
    pub inception_score: Option<f64>,
    /// Standard deviation over the splits.
    pub inception_score_deviation: Option<f64>,
    /// Share of generated pictures inside the real manifold.
    pub precision: Option<f64>,
    /// Share of real pictures inside the generated manifold.
    pub recall: Option<f64>,
    /// Kernel distance, mean over 100 pairs of random subsets.
    pub kid: Option<f64>,
    /// Standard deviation over the subsets.
    pub kid_deviation: Option<f64>,
    /// The generated set.
    pub generated: SetReport,
    /// The real set.
    pub reference: SetReport,
    /// How pictures were brought to 299×299.
    pub resize: &'static str,
    /// SHA-256 of the file of weights.
    pub weights_sha256: String,
    /// How far the numbers can be trusted.
    pub trust: Vec<String>,
}

impl Report {
    /// Fills in `trust`.
    pub(super) fn with_trust(mut self, features: u64) -> Self {
        let mut words = Vec::new();
        match self.generated.count {
            Some(count) if count < USUAL_SAMPLES => words.push(format!(
                "{count} generated pictures: FID falls as their number grows, so compare it only with numbers for {count} \
                 pictures (the literature uses {USUAL_SAMPLES})"
            )),
            _ => {}
        }
        for (which, set) in [("generated", &self.generated), ("reference", &self.reference)] {
            match set.count {
                Some(count) if count <= features => words.push(format!(
                    "the {which} statistics are rank-deficient: {count} pictures cannot span {features} features; FID and sFID \
                     are rough, KID is not affected"
                )),
                Some(_) => {}
                None => words.push(match set.rank {
                    Some(rank) if (rank as u64) < features => format!(
                        "the {which} statistics are rank-deficient: their covariance has rank {rank} of {features}, as of {} \
                         pictures or fewer; FID and sFID are rough",
                        rank + 1
                    ),
                    _ => format!("the number of {which} pictures is unknown: statistics files do not hold it"),
                }),
            }
        }
        if self.precision.is_none() {
            words.push("no precision, recall or KID: they need pictures on both sides, at least 4".to_owned());
        }
        words.push(if self.weights_sha256.starts_with(PUBLIC_WEIGHTS) {
            "weights: the public file that pytorch-fid uses, so numbers compare with the literature's".to_owned()
        } else {
            "weights: not the public file pt_inception-2015-12-05-6726825d.pth, so numbers compare only with others that were \
             made with this file"
                .to_owned()
        });
        self.trust = words;
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: Option<f64>, deviation: Option<f64>, digits: usize| match (value, deviation)
        {
            (Some(value), Some(deviation)) => writeln!(f, "{name:<16} {value:>10.digits$} ± {deviation:.digits$}"),
            (Some(value), None) => writeln!(f, "{name:<16} {value:>10.digits$}"),
            (None, _) => Ok(()),
        };
        line("FID", Some(self.fid), None, 4)?;
        line("sFID", self.sfid, None, 4)?;
        line(
            "Inception Score",
            self.inception_score,
            self.inception_score_deviation,
            4,
        )?;
        line("precision", self.precision, None, 4)?;
        line("recall", self.recall, None, 4)?;
        line("KID", self.kid, self.kid_deviation, 6)?;
        for words in &self.trust {
            writeln!(f, "- {words}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(count: Option<u64>, weights: &str) -> Report {
        let set = |name: &str| SetReport {
            path: name.into(),
            count,
            rank: None,
        };
        Report {
            fid: 12.3456,
            sfid: None,
            inception_score: None,
            inception_score_deviation: None,
            precision: Some(0.5),
            recall: Some(0.25),
            kid: Some(0.001),
            kid_deviation: Some(0.0001),
            generated: set("generated"),
            reference: set("reference"),
            resize: "tf1",
            weights_sha256: weights.to_owned(),
            trust: Vec::new(),
        }
        .with_trust(2048)
    }

    #[test]
    fn few_pictures_are_said_to_be_few() {
        let words = report(Some(1000), "00").trust.join("\n");
        for expected in [
            "compare it only with numbers for 1000",
            "rank-deficient",
            "not the public file",
        ] {
            assert!(words.contains(expected), "{words}");
        }
        let words = report(Some(50_000), "6726825d0af5").trust.join("\n");
        assert_eq!(words.lines().count(), 1, "{words}");
    }

    #[test]
    fn the_rank_of_a_statistics_file_is_said() {
        let words = |rank| {
            let mut report = report(Some(50_000), "6726825d");
            (report.reference.count, report.reference.rank) = (None, Some(rank));
            report.trust.clear();
            report.with_trust(2048).trust.join("\n")
        };
        assert!(words(99)
            .contains("reference statistics are rank-deficient: their covariance has rank 99 of 2048, as of 100"));
        assert!(words(2048).contains("the number of reference pictures is unknown"));
    }

    #[test]
    fn numbers_stand_under_each_other() {
        let text = report(Some(50_000), "6726825d").to_string();
        assert!(text.starts_with("FID                 12.3456\nprecision"), "{text}");
        assert!(text.contains("KID                0.001000 ± 0.000100\n"), "{text}");
    }
}
