//! Which part of shared work this process does.

use std::env;

/// This process is number `rank` of `world` that share the work; alone it is 0 of 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Number of this process, below `world`.
    pub rank: usize,
    /// How many processes share the work.
    pub world: usize,
}

/// The variables launchers set: torchrun and most others, Open MPI, Slurm.
const LAUNCHERS: [(&str, &str); 3] = [
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
];

/// The variables launchers set to the number of a process among those of its machine.
const LOCAL_RANKS: [&str; 3] = ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"];

/// `--rank R --world N`, for machines that share the work without a launcher.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct RankArgs {
    /// Number of this process among those that share the work [default: from RANK, OMPI_COMM_WORLD_RANK or
    /// SLURM_PROCID, else 0]
    #[arg(long, requires = "world", help_heading = "Sharing the work")]
    pub rank: Option<usize>,
    /// How many processes share the work [default: from WORLD_SIZE, OMPI_COMM_WORLD_SIZE or SLURM_NTASKS, else 1]
    #[arg(long, requires = "rank", help_heading = "Sharing the work")]
    pub world: Option<usize>,
}

/// What does not make a rank.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RankError {
    /// A launcher's variable holds something else than a number.
    #[error("environment variable {variable} is {found:?}, expected a whole number")]
    NotANumber {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        found: String,
    },
    /// Ranks count from 0.
    #[error("rank {rank} of {world}: expected a rank below the number of processes")]
    OutOfRange {
        /// The rank asked for.
        rank: usize,
        /// The number of processes.
        world: usize,
    },
}

impl RankArgs {
    /// The rank from the flags, else from the launcher's variables, else 0 of 1.
    ///
    /// # Errors
    /// When the numbers do not make a rank.
    pub fn detect(self) -> Result<Rank, RankError> {
        self.detect_in(of_environment)
    }

    fn detect_in(self, variable: impl Fn(&'static str) -> Option<String>) -> Result<Rank, RankError> {
        let number = |name| number(name, &variable);
        let mut share = Rank { rank: 0, world: 1 };
        if let (Some(rank), Some(world)) = (self.rank, self.world) {
            share = Rank { rank, world };
        } else {
            for (rank, world) in LAUNCHERS {
                if let (Some(rank), Some(world)) = (number(rank)?, number(world)?) {
                    share = Rank { rank, world };
                    break;
                }
            }
        }
        if share.rank >= share.world {
            return Err(RankError::OutOfRange {
                rank: share.rank,
                world: share.world,
            });
        }
        Ok(share)
    }
}

fn of_environment(variable: &'static str) -> Option<String> {
    env::var(variable).ok()
}

fn number(name: &'static str, variable: impl Fn(&'static str) -> Option<String>) -> Result<Option<usize>, RankError> {
    match variable(name) {
        None => Ok(None),
        Some(found) => match found.parse::<usize>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(RankError::NotANumber { variable: name, found }),
        },
    }
}

impl Rank {
    /// The whole work in one process.
    pub const ALONE: Self = Self { rank: 0, world: 1 };

    /// The number of this process among those of its machine, which decides on its GPU: what the launcher says, else the
    /// rank itself.
    ///
    /// # Errors
    /// When a launcher's variable holds something else than a number.
    pub fn on_this_machine(self) -> Result<usize, RankError> {
        self.on_this_machine_in(of_environment)
    }

    fn on_this_machine_in(self, variable: impl Fn(&'static str) -> Option<String>) -> Result<usize, RankError> {
        if self.world == 1 {
            return Ok(0);
        }
        for name in LOCAL_RANKS {
            if let Some(local) = number(name, &variable)? {
                return Ok(local);
            }
        }
        Ok(self.rank)
    }

    /// Whether this process does item `index`: items go round the ranks in turn.
    #[must_use]
    pub fn owns(self, index: usize) -> bool {
        index % self.world == self.rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &'static [(&'static str, &'static str)]) -> Result<Rank, RankError> {
        RankArgs::default().detect_in(|name| {
            variables
                .iter()
                .find(|(found, _)| *found == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn launchers_are_understood() {
        assert_eq!(with(&[]), Ok(Rank::ALONE));
        assert_eq!(
            with(&[("RANK", "3"), ("WORLD_SIZE", "4")]),
            Ok(Rank { rank: 3, world: 4 })
        );
        assert_eq!(
            with(&[("OMPI_COMM_WORLD_RANK", "5"), ("OMPI_COMM_WORLD_SIZE", "8")]),
            Ok(Rank { rank: 5, world: 8 })
        );
        assert_eq!(
            with(&[("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")]),
            Ok(Rank { rank: 1, world: 2 })
        );
        assert_eq!(
            with(&[("RANK", "4"), ("WORLD_SIZE", "4")]),
            Err(RankError::OutOfRange { rank: 4, world: 4 })
        );
        assert!(matches!(
            with(&[("RANK", "x"), ("WORLD_SIZE", "4")]),
            Err(RankError::NotANumber { .. })
        ));
    }

    #[test]
    fn a_process_takes_the_gpu_of_its_place_on_its_machine() {
        let rank = Rank { rank: 9, world: 16 };
        assert_eq!(rank.on_this_machine_in(|_| None), Ok(9));
        let slurm = |name| (name == "SLURM_LOCALID").then(|| "1".to_owned());
        assert_eq!(rank.on_this_machine_in(slurm), Ok(1));
        assert_eq!(Rank::ALONE.on_this_machine_in(slurm), Ok(0));
        let torchrun = |name| (name == "LOCAL_RANK").then(|| "one".to_owned());
        assert!(matches!(
            rank.on_this_machine_in(torchrun),
            Err(RankError::NotANumber { .. })
        ));
    }

    #[test]
    fn every_item_has_one_owner() {
        for index in 0..20 {
            assert_eq!((0..3).filter(|&rank| Rank { rank, world: 3 }.owns(index)).count(), 1);
        }
    }
}
