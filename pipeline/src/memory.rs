//! Whether a network fits this machine's memory, asked before any of it is made: a system that runs out ends the process
//! without a word.

use std::fs;
use std::path::Path;

use anyhow::bail;
use deepflow_model::device::AnyDevice;
use deepflow_model::{sampling_memory, training_memory, NetworkConfig, TrainingSizes};

use crate::config::Config;

/// What the program has besides the network's tensors: itself, threads with their buffers, samples on their way.
const PROGRAM_BYTES: usize = 64 << 20;

/// Memory of the whole process whose tensors take `tensors` bytes. The allocator rounds large blocks up, by an eighth on
/// average as measured (BENCHMARKS.md).
#[must_use]
pub fn of_process(tensors: usize) -> usize {
    tensors.saturating_add(tensors / 8).saturating_add(PROGRAM_BYTES)
}

/// How a run trains, as far as memory depends on it, when it computes `samples` at once.
#[must_use]
pub fn training_sizes(config: &Config, samples: usize) -> TrainingSizes {
    TrainingSizes {
        samples,
        accumulates: config.train.accumulation > 1,
        checkpoint_blocks: config.train.checkpoint_blocks,
    }
}

/// Samples of `[sample]` that the network evaluates at once: guidance evaluates two for each.
#[must_use]
pub fn sampled_at_once(config: &Config) -> usize {
    let doubled = config.sample.guidance > 1.0;
    config.sample.batch * if doubled { 2 } else { 1 }
}

/// Checks that training by `config` fits, `samples` at once.
///
/// # Errors
/// When weights, gradients, moments and average alone need more than there is. What may not fit is said and tried.
pub fn check_training(config: &Config, samples: usize, device: &AnyDevice) -> anyhow::Result<()> {
    let memory = training_memory(&config.model, training_sizes(config, samples))?;
    let needs = Needs {
        work: "training",
        parts: "weights, gradients, moments and averaged weights",
        least: memory.state + memory.gradients,
        peak: memory.peak,
        remedy: "raise train.accumulation or set train.checkpoint_blocks=true if it is ended by the system",
    };
    needs.check(device)
}

/// Checks that sampling by `config` fits.
///
/// # Errors
/// When the weights alone need more than there is. What may not fit is said and tried.
pub fn check_sampling(config: &Config, device: &AnyDevice) -> anyhow::Result<()> {
    let needs = Needs {
        work: "sampling",
        parts: "weights",
        least: weights(&config.model)?,
        peak: sampling_memory(&config.model, sampled_at_once(config))?,
        remedy: "lower sample.batch if it is ended by the system",
    };
    needs.check(device)
}

fn weights(model: &NetworkConfig) -> anyhow::Result<usize> {
    Ok(sampling_memory(model, 0)?)
}

/// Bytes some work needs.
struct Needs {
    work: &'static str,
    /// What cannot be done without, and its size.
    parts: &'static str,
    least: usize,
    peak: usize,
    remedy: &'static str,
}

impl Needs {
    /// On a device with a memory of its own that memory decides, and the device says so itself.
    fn check(&self, device: &AnyDevice) -> anyhow::Result<()> {
        match device {
            AnyDevice::Cpu(_) => available().map_or(Ok(()), |available| self.within(available)),
            #[cfg(feature = "cuda")]
            AnyDevice::Cuda(_) => Ok(()),
        }
    }

    fn within(&self, available: u64) -> anyhow::Result<()> {
        let (work, parts) = (self.work, self.parts);
        let there = gibibytes(available);
        if self.least as u64 > available {
            let least = gibibytes(self.least as u64);
            bail!("{work} needs {least} for {parts} alone, this machine has {there} available; expected a smaller [model]");
        }
        let peak = of_process(self.peak) as u64;
        if peak > available {
            let (peak, remedy) = (gibibytes(peak), self.remedy);
            tracing::warn!("{work} may need {peak}, this machine has {there} available: {remedy}");
        }
        Ok(())
    }
}

/// `21.4 GiB`
fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Memory that this process may still take, swap included, where the system tells.
fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| free_in(&text));
    let group = fs::read_to_string("/proc/self/cgroup").ok();
    let group = group.and_then(|text| left_to_group(Path::new("/sys/fs/cgroup"), &text));
    system.into_iter().chain(group).min()
}

/// From `/proc/meminfo`.
fn free_in(meminfo: &str) -> Option<u64> {
    let kilobytes = |name: &str| {
        let line = meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some((kilobytes("MemAvailable")? + kilobytes("SwapFree").unwrap_or(0)) << 10)
}

/// What control groups leave: this process's and those above it, of version 2 or 1. `groups` is `/proc/self/cgroup`. Inside a
/// container the names in it may be those of the outside; what is mounted at the root counts then.
fn left_to_group(mounted: &Path, groups: &str) -> Option<u64> {
    let lines = groups.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        line.split_once(':')
    });
    lines
        .filter_map(|(controllers, group)| {
            let (root, limit, usage, idle) = match controllers {
                "" => (mounted.to_owned(), "memory.max", "memory.current", "inactive_file"),
                _ if controllers.split(',').any(|controller| controller == "memory") => (
                    mounted.join("memory"),
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                ),
                _ => return None,
            };
            let left = |folder: &Path| {
                let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
                // A limit that is no number is none.
                let (limit, usage) = (number(limit)?, number(usage)?);
                let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
                let idle = statistics
                    .lines()
                    .find_map(|line| line.strip_prefix(idle)?.trim().parse::<u64>().ok());
                // Pages of files that nobody uses are given back when memory is asked for.
                Some(limit.saturating_sub(usage.saturating_sub(idle.unwrap_or(0))))
            };
            let group = root.join(group.trim_start_matches('/'));
            let with_those_above = group.ancestors().take_while(|folder| folder.starts_with(&root));
            with_those_above.filter_map(left).min()
        })
        .min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn free_memory_counts_swap() {
        let meminfo = "MemTotal:       100 kB\nMemFree:  1 kB\nMemAvailable:    40 kB\nSwapFree:  2 kB\n";
        assert_eq!(free_in(meminfo), Some(42 << 10));
        assert_eq!(free_in("MemAvailable:    40 kB\n"), Some(40 << 10));
        assert_eq!(free_in("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn the_tightest_group_decides() {
        let folder = tempfile::tempdir().unwrap();
        let write = |group: &str, files: &[(&str, &str)]| {
            fs::create_dir_all(folder.path().join(group)).unwrap();
            for (name, text) in files {
                fs::write(folder.path().join(group).join(name), text).unwrap();
            }
        };
        write("a/b", &[("memory.max", "max\n"), ("memory.current", "10\n")]);
        assert_eq!(left_to_group(folder.path(), "0::/a/b\n"), None);
        let idle = ("memory.stat", "anon 3\ninactive_file 30\n");
        write("a", &[("memory.max", "1000\n"), ("memory.current", "400\n"), idle]);
        assert_eq!(left_to_group(folder.path(), "0::/a/b\n"), Some(630));
        assert_eq!(left_to_group(folder.path(), "0::/elsewhere\n"), None);

        let first = [("memory.limit_in_bytes", "500"), ("memory.usage_in_bytes", "100")];
        write("memory", &first);
        assert_eq!(
            left_to_group(folder.path(), "5:cpu,memory:/outside\n4:pids:/a\n"),
            Some(400)
        );
        assert_eq!(left_to_group(folder.path(), "5:memory:/x\n0::/a\n"), Some(400));
        assert_eq!(left_to_group(folder.path(), "4:pids:/a\n"), None);
    }

    #[test]
    fn what_cannot_fit_is_refused_and_what_may_not_is_tried() {
        let needs = Needs {
            work: "training",
            parts: "weights",
            least: 3 << 30,
            peak: 8 << 30,
            remedy: "pray",
        };
        let error = needs.within(2 << 30).unwrap_err().to_string();
        assert_eq!(
            error,
            "training needs 3.0 GiB for weights alone, this machine has 2.0 GiB available; expected a smaller [model]"
        );
        needs.within(3 << 30).unwrap();
    }
}
