//! `deepflow demo`: the whole pipeline on pictures that ship with the program.
//!
//! The demo runs the stages' own command lines, one after the other, and says each before it runs it: what it does can be
//! done by hand with the same result.

mod contact_sheet;
mod loss_chart;
mod pictures;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::{run_arguments, Stage};
use crate::decode::DecodeArgs;
use crate::encode::EncodeArgs;
use crate::files::{make_folder, write_atomically};
use crate::interrupt::Interrupt;
use crate::sample::SampleArgs;
use crate::train::TrainArgs;

pub use loss_chart::draw as draw_loss_chart;

/// The configuration of all stages.
const CONFIG: &str = include_str!("../../../configs/demo.toml");
/// Generated pictures of each class.
const PER_CLASS: usize = 10;

/// Run the whole pipeline on pictures that ship with the program
///
/// Encodes the 10,000 test pictures of Fashion-MNIST, trains a small DeepFlow-2T on them, generates ten pictures of each of
/// the ten classes and decodes them, in one to five minutes on two cores. Ends with contact-sheet.png (for each class real
/// pictures above, generated ones below) and loss.png. Needs no download. A demo that was stopped goes on when it is
/// started again.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  deepflow demo --out clothes")]
pub struct DemoArgs {
    /// Folder for everything the demo makes
    #[arg(short, long, value_name = "FOLDER", default_value = "deepflow-demo")]
    out: PathBuf,
    /// Training steps, for a look at the machinery rather than at clothes
    #[arg(long, value_name = "N", hide = true)]
    steps: Option<u64>,
}

impl Stage for DemoArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let out = &self.out;
        make_folder(out)?;
        let path = |name: &str| out.join(name).display().to_string();
        let pictures = pictures::unpack(&out.join("pictures"))?;
        write_atomically(&out.join("demo.toml"), CONFIG.as_bytes())?;
        let (config, latents, run, generated, decoded) = (
            path("demo.toml"),
            path("latents"),
            path("run"),
            path("generated"),
            path("decoded"),
        );

        let source = pictures.display().to_string();
        let names = path("pictures/class-names.txt");
        let encode = [
            "--pictures",
            &source,
            "--class-names",
            &names,
            "--grey",
            "--fit",
            "pad",
            "--out",
            &latents,
        ];
        stage::<EncodeArgs>("encode", &encode, &config, interrupt)?;
        let steps = self.steps.map(|steps| steps.to_string());
        let mut train = vec!["--data", &latents, "--out", &run];
        train.extend(steps.iter().flat_map(|steps| ["--steps", steps.as_str()]));
        stage::<TrainArgs>("train", &train, &config, interrupt)?;
        let per_class = PER_CLASS.to_string();
        let sample = ["--checkpoint", &run, "--out", &generated, "--per-class", &per_class];
        stage::<SampleArgs>("sample", &sample, &config, interrupt)?;
        stage::<DecodeArgs>(
            "decode",
            &["--shards", &generated, "--out", &decoded],
            &config,
            interrupt,
        )?;

        self.finish(&decoded)
    }
}

impl DemoArgs {
    fn finish(&self, decoded: &str) -> anyhow::Result<()> {
        let (sheet, chart) = (self.out.join("contact-sheet.png"), self.out.join("loss.png"));
        contact_sheet::draw(Path::new(decoded), PER_CLASS, &sheet)?;
        draw_loss_chart(&self.out.join("run/metrics.jsonl"), &chart)?;
        let mut stdout = std::io::stdout().lock();
        writeln!(
            stdout,
            "{}: for each class real pictures above, generated ones below",
            sheet.display()
        )?;
        writeln!(stdout, "{}: the loss while training", chart.display())?;
        Ok(())
    }
}

/// Says and runs one stage's command line.
fn stage<S: Stage>(name: &'static str, arguments: &[&str], config: &str, interrupt: &Interrupt) -> anyhow::Result<()> {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--config", config]).collect();
    tracing::info!("deepflow {name} {}", arguments.join(" "));
    run_arguments::<S>(name, &arguments, interrupt)
}
