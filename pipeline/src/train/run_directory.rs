//! The folder of a run: configuration, metrics, sample pictures, checkpoints (pipeline spec, "The outside that stays put").

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};

use super::data::DataRecord;
use crate::codecs::CODEC_FILE;
use crate::config::{Config, Schedule};
use crate::files::{make_folder, write_atomically};

/// Keys that may change between the parts of a run that continues: they change how long it runs, what it reports and
/// how fast it is, not what a step computes.
const FREE_TO_CHANGE: [&str; 17] = [
    "train.steps",
    "train.checkpoint_blocks",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.sample_every",
    "train.sample_count",
    "train.max_bad_steps",
    "data.shards",
    "data.readers",
    "data.read_ahead",
    "data.cache",
    "data.cache_bytes",
    "codec",
    "sample",
    "output",
];

/// The folder of a run's checkpoints.
const CHECKPOINTS: &str = "checkpoints";
/// The folder of the sheets a run samples.
const SAMPLES: &str = "samples";

/// An open run; no other process can open it meanwhile.
#[derive(Debug)]
pub struct RunDirectory {
    root: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Starts a run in `root`, or opens the one that is there to continue it.
    ///
    /// # Errors
    /// When `root` holds something else, a run with another configuration, or a run that another process works on.
    pub fn open(root: &Path, config: &Config) -> anyhow::Result<Self> {
        make_folder(root)?;
        // Nothing is written into somebody else's folder, not even the lock.
        has_started(root, config)?;
        let lock = lock(&root.join(".lock"))?;
        let run = Self {
            root: root.to_owned(),
            _lock: lock,
        };
        // Until the lock was there, another process may have brought the run further.
        if !has_started(root, config)? {
            run.forget_the_start()?;
        }
        make_folder(&run.checkpoints_folder())?;
        make_folder(&run.samples_folder())?;
        run.tidy_up()?;
        config.save(root)?;
        Ok(run)
    }

    /// Removes what a start that came to nothing recorded of its data and reported of its steps; its numbers are taken
    /// back where `metrics.jsonl` and the event file are opened.
    fn forget_the_start(&self) -> anyhow::Result<()> {
        let files = [
            self.root.join(DataRecord::FILE_NAME),
            self.root.join(CODEC_FILE),
            self.bad_steps_file(),
        ];
        let removed = files.map(|file| (fs::remove_file(&file), file));
        let samples = self.samples_folder();
        for (removed, path) in removed.into_iter().chain([(fs::remove_dir_all(&samples), samples)]) {
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| path.display().to_string());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what a kill left half-written, and names the newest whole checkpoint in `latest`, which a kill right after
    /// it was written could have prevented.
    fn tidy_up(&self) -> anyhow::Result<()> {
        let folder = self.checkpoints_folder();
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".step-") && name.ends_with(".partial") {
                let path = entry.path();
                fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
        }
        match checkpoints(&self.root)?.pop() {
            Some((step, _)) => self.name_latest(step),
            None => Ok(()),
        }
    }

    fn name_latest(&self, step: u64) -> anyhow::Result<()> {
        let name = checkpoint_name(step);
        write_atomically(
            &self.checkpoints_folder().join("latest"),
            format!("{name}\n").as_bytes(),
        )
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `metrics.jsonl`
    #[must_use]
    pub fn metrics_file(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// `bad_steps.jsonl`: the steps that were skipped for a loss or gradient that is not finite, with the keys of their
    /// samples.
    #[must_use]
    pub fn bad_steps_file(&self) -> PathBuf {
        self.root.join("bad_steps.jsonl")
    }

    /// `samples/`
    #[must_use]
    pub fn samples_folder(&self) -> PathBuf {
        self.root.join(SAMPLES)
    }

    /// `checkpoints/`
    #[must_use]
    pub fn checkpoints_folder(&self) -> PathBuf {
        self.root.join(CHECKPOINTS)
    }

    /// `checkpoints/step-0000500`
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints_folder().join(checkpoint_name(step))
    }

    /// The newest whole checkpoint.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn latest(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(checkpoints(&self.root)?.pop().map(|(_, path)| path))
    }

    /// Notes that the checkpoint of `step` is whole, then deletes those that need not be kept: all but the last
    /// `keep_last` (0 keeps all) and those of multiples of `keep_every` (0 keeps no such).
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn checkpoint_written(&self, step: u64, keep_last: usize, keep_every: u64) -> anyhow::Result<()> {
        self.name_latest(step)?;
        if keep_last == 0 {
            return Ok(());
        }
        let all = checkpoints(&self.root)?;
        let old = all.len().saturating_sub(keep_last);
        for (step, path) in &all[..old] {
            if keep_every == 0 || step % keep_every != 0 {
                fs::remove_dir_all(path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }
}

/// The whole checkpoints of the run in `root`, oldest first. What a kill left half-written has another name.
///
/// # Errors
/// When the folder cannot be read.
pub fn checkpoints(root: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    let folder = root.join(CHECKPOINTS);
    let entries = match fs::read_dir(&folder) {
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => return Ok(Vec::new()),
        entries => entries.with_context(|| folder.display().to_string())?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// A checkpoint from what a user names: its own folder, or a run's, which stands for its newest one.
///
/// # Errors
/// When there is none.
pub fn find_checkpoint(path: &Path) -> anyhow::Result<PathBuf> {
    if path.join("state.json").is_file() {
        return Ok(path.to_owned());
    }
    if let Some((_, newest)) = checkpoints(path)?.pop() {
        return Ok(newest);
    }
    bail!(
        "{}: found no checkpoint, expected a folder such as RUN/checkpoints/step-0005000, or RUN itself",
        path.display()
    )
}

fn checkpoint_name(step: u64) -> String {
    format!("step-{step:07}")
}

fn refuse_another_run(root: &Path, config: &Config, saved: &Config) -> anyhow::Result<()> {
    let mut free = FREE_TO_CHANGE.to_vec();
    if config.train.schedule == Schedule::Cosine {
        // The learning rate of every step depends on where the cosine ends.
        free.retain(|key| *key != "train.steps");
    }
    if let Some((key, here, there)) = config.difference(saved, &free) {
        bail!(
            "{}: holds another run: its {key} is {there}, this one's is {here}; choose another --out, or continue \
             with the configuration found there",
            root.display()
        );
    }
    Ok(())
}

/// Whether `root` holds a run that has saved something. One that has not may still become another.
fn has_started(root: &Path, config: &Config) -> anyhow::Result<bool> {
    let saved = root.join(Config::FILE_NAME);
    // Every stage leaves a configuration in its folder; only a run of training has checkpoints beside it.
    let begun = saved.exists() && root.join(CHECKPOINTS).is_dir();
    let started = begun && !checkpoints(root)?.is_empty();
    if started {
        refuse_another_run(root, config, &Config::read(&saved)?)?;
    } else if !begun {
        refuse_foreign_files(root)?;
    }
    Ok(started)
}

/// Empty folders of a run may be there: a start that was killed before it had saved its configuration leaves them.
fn refuse_foreign_files(root: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(root).with_context(|| root.display().to_string())? {
        let entry = entry.with_context(|| root.display().to_string())?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_empty = || fs::read_dir(entry.path()).is_ok_and(|mut files| files.next().is_none());
        let is_ours = [CHECKPOINTS, SAMPLES].contains(&&*name) && is_empty();
        if !name.starts_with('.') && !is_ours {
            bail!(
                "{}: holds another run or other files (`{name}`), expected a new folder or a run of train",
                root.display(),
            );
        }
    }
    Ok(())
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("{}: another process works on this run", path.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn steps(run: &RunDirectory) -> Vec<u64> {
        checkpoints(run.root())
            .unwrap()
            .into_iter()
            .map(|(step, _)| step)
            .collect()
    }

    #[test]
    fn the_last_and_the_round_checkpoints_stay() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDirectory::open(&folder.path().join("run"), &Config::default()).unwrap();
        for step in (100..=900).step_by(100) {
            fs::create_dir(run.checkpoint(step)).unwrap();
            run.checkpoint_written(step, 2, 400).unwrap();
        }
        assert_eq!(steps(&run), [400, 800, 900]);
        assert_eq!(
            fs::read_to_string(run.checkpoints_folder().join("latest")).unwrap(),
            "step-0000900\n"
        );
        assert_eq!(run.latest().unwrap(), Some(run.checkpoint(900)));
        run.checkpoint_written(900, 0, 0).unwrap();
        assert_eq!(steps(&run), [400, 800, 900]);
    }

    #[test]
    fn half_written_checkpoints_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDirectory::open(&folder.path().join("run"), &Config::default()).unwrap();
        let half = run.checkpoints_folder().join(".step-0000500.partial");
        fs::create_dir(&half).unwrap();
        assert_eq!(run.latest().unwrap(), None);

        // The next start removes it, and makes up for a kill between a checkpoint and its name in `latest`.
        fs::create_dir(run.checkpoint(400)).unwrap();
        drop(run);
        let run = RunDirectory::open(&folder.path().join("run"), &Config::default()).unwrap();
        assert!(!half.exists());
        let latest = fs::read_to_string(run.checkpoints_folder().join("latest")).unwrap();
        assert_eq!(latest, "step-0000400\n");
    }

    #[test]
    fn a_start_that_was_killed_before_it_had_saved_its_configuration_binds_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(CHECKPOINTS);
        fs::create_dir(&left).unwrap();
        drop(RunDirectory::open(folder.path(), &Config::default()).unwrap());

        fs::remove_file(folder.path().join(Config::FILE_NAME)).unwrap();
        fs::write(left.join("step-0000100"), "").unwrap();
        let error = RunDirectory::open(folder.path(), &Config::default()).err().unwrap();
        assert!(error.to_string().contains("other files (`checkpoints`)"), "{error}");
    }

    #[test]
    fn a_start_without_a_checkpoint_leaves_nothing_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let reports = |run: &RunDirectory| {
            [
                run.bad_steps_file(),
                run.samples_folder().join("step-0000020.png"),
                run.root().join(DataRecord::FILE_NAME),
            ]
        };
        let run = RunDirectory::open(folder.path(), &Config::default()).unwrap();
        for file in reports(&run) {
            fs::write(file, "").unwrap();
        }
        drop(run);
        let run = RunDirectory::open(folder.path(), &Config::default()).unwrap();
        for file in reports(&run) {
            assert!(!file.exists(), "{}", file.display());
            fs::write(file, "").unwrap();
        }
        assert!(run.samples_folder().is_dir());
        // After a checkpoint the run goes on with what it has.
        fs::create_dir(run.checkpoint(20)).unwrap();
        drop(run);
        let run = RunDirectory::open(folder.path(), &Config::default()).unwrap();
        assert!(reports(&run).iter().all(|file| file.exists()));
    }

    #[test]
    fn another_configuration_another_process_and_other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("run");
        let config = Config::default();
        let first = RunDirectory::open(&root, &config).unwrap();
        let error = RunDirectory::open(&root, &config).unwrap_err().to_string();
        assert!(error.ends_with("another process works on this run"), "{error}");
        // Nothing was saved yet: a slip in the configuration may be mended.
        drop(first);
        let mut mended = config.clone();
        mended.train.batch = 8;
        RunDirectory::open(&root, &mended).unwrap();
        let first = RunDirectory::open(&root, &config).unwrap();
        fs::create_dir(first.checkpoint(1)).unwrap();
        drop(first);

        // How long it runs may change, and where the codec of its sample pictures lies.
        let mut longer = config.clone();
        longer.train.steps += 1;
        longer.codec.weights = Some("moved/vae".into());
        RunDirectory::open(&root, &longer).unwrap();
        let mut other = config.clone();
        other.train.batch = 4;
        let error = RunDirectory::open(&root, &other).unwrap_err().to_string();
        assert!(
            error.contains("holds another run: its train.batch is 256, this one's is 4"),
            "{error}"
        );

        let letters = folder.path().join("letters");
        fs::create_dir(&letters).unwrap();
        fs::write(letters.join("dear.txt"), "").unwrap();
        let error = RunDirectory::open(&letters, &config).unwrap_err().to_string();
        assert!(error.contains("other files (`dear.txt`)"), "{error}");
        assert!(!letters.join("checkpoints").exists());
    }
}
