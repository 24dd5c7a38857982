//! Which shards of a stage's work fall to this process: a range of them, and every `world`-th of that range.

use std::ops::Range;

use crate::cli::UsageError;
use crate::rank::{Rank, RankArgs, RankError};

/// `--shard-range`, `--rank` and `--world`, the same for encode, sample and decode.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ShareArgs {
    /// Only the shards A up to but not including B, counted from 0
    #[arg(long, value_name = "A..B", value_parser = shard_range, help_heading = "Sharing the work")]
    shard_range: Option<Range<usize>>,
    #[command(flatten)]
    rank: RankArgs,
}

/// The part of the shards that one process works on. Shards of a range go round the ranks in turn, so that processes with
/// other ranks or disjoint ranges never write the same shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Only these shards, counted from 0; `None` means all.
    pub range: Option<Range<usize>>,
    /// Which of the processes that share the range this is.
    pub rank: Rank,
}

impl ShareArgs {
    /// The range and the rank, from the flags or a launcher's variables.
    ///
    /// # Errors
    /// When the numbers do not make a rank.
    pub fn detect(self) -> Result<Share, RankError> {
        Ok(Share {
            range: self.shard_range,
            rank: self.rank.detect()?,
        })
    }
}

impl Share {
    /// All shards.
    pub const WHOLE: Self = Self {
        range: None,
        rank: Rank::ALONE,
    };

    /// The shards of `0..shards` that fall to this process, in order; `whose` says in an error what has so many shards.
    ///
    /// # Errors
    /// When the range reaches beyond the shards there are.
    pub fn of(&self, shards: usize, whose: &str) -> Result<Vec<usize>, UsageError> {
        let range = self.range.clone().unwrap_or(0..shards);
        if range.start > range.end || range.end > shards {
            return Err(UsageError(format!(
                "--shard-range {}..{}: {whose} has {shards} shards, expected a range within them",
                range.start, range.end
            )));
        }
        Ok(range.filter(|&shard| self.rank.owns(shard)).collect())
    }
}

/// `A..B`, counted from 0, without B.
fn shard_range(text: &str) -> Result<Range<usize>, UsageError> {
    let numbers = text
        .split_once("..")
        .and_then(|(start, end)| Some((start.parse().ok()?, end.parse().ok()?)));
    match numbers {
        Some((start, end)) if start <= end => Ok(start..end),
        _ => Err(UsageError(format!("{text:?}: expected A..B, such as 0..16"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_as_in_rust() {
        assert_eq!(shard_range("0..16").unwrap(), 0..16);
        assert_eq!(shard_range("3..3").unwrap(), 3..3);
        for wrong in ["", "3", "5..3", "a..b", "1..=2", "-1..2"] {
            let message = shard_range(wrong).unwrap_err().to_string();
            assert!(message.contains("expected A..B"), "{message}");
        }
    }

    #[test]
    fn ranks_and_ranges_cover_every_shard_once() {
        for shards in [0, 1, 7, 20] {
            for world in 1..5 {
                let mut all: Vec<usize> = [0..shards / 3, shards / 3..shards]
                    .into_iter()
                    .flat_map(|range| {
                        (0..world).flat_map(move |rank| {
                            let share = Share {
                                range: Some(range.clone()),
                                rank: Rank { rank, world },
                            };
                            share.of(shards, "the test").unwrap()
                        })
                    })
                    .collect();
                all.sort_unstable();
                assert_eq!(all, (0..shards).collect::<Vec<_>>());
            }
        }
        let beyond = Share {
            range: Some(3..9),
            rank: Rank::ALONE,
        };
        let message = beyond.of(4, "latents").unwrap_err().to_string();
        assert!(
            message.contains("3..9") && message.contains("latents has 4 shards"),
            "{message}"
        );
    }
}
