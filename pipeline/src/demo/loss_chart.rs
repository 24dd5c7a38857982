//! `loss.png`: the loss of a run over its steps, from `metrics.jsonl`.

use std::fs;
use std::path::Path;

use anyhow::{bail, Context};
use plotters::prelude::*;
use plotters::style::{register_font, FontStyle};
use serde_json::Value;

const SIZE: (u32, u32) = (960, 540);
pub const FONT: &str = "sans-serif";
/// Points of the curve averaged into the smooth one.
const WINDOW: usize = 9;

/// Draws the total loss of `metrics` into the PNG `picture`.
///
/// # Errors
/// When the file cannot be read, holds no loss, or the picture cannot be written.
pub fn draw(metrics: &Path, picture: &Path) -> anyhow::Result<()> {
    let points = losses(metrics)?;
    use_built_in_font()?;
    plot(&points, picture).with_context(|| picture.display().to_string())
}

/// The fonts travel with the program: machines without a desktop have none.
pub fn use_built_in_font() -> anyhow::Result<()> {
    if register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_err() {
        bail!("the built-in font cannot be read");
    }
    Ok(())
}

fn losses(metrics: &Path) -> anyhow::Result<Vec<(f64, f64)>> {
    let text = fs::read_to_string(metrics).with_context(|| metrics.display().to_string())?;
    let point = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some((line.get("step")?.as_f64()?, line.get("loss")?.get("total")?.as_f64()?))
    };
    let points: Vec<_> = text
        .lines()
        .filter_map(point)
        .filter(|(_, loss)| loss.is_finite())
        .collect();
    if points.is_empty() {
        bail!(
            "{}: found no loss, expected at least one line of metrics",
            metrics.display()
        );
    }
    Ok(points)
}

fn plot(points: &[(f64, f64)], picture: &Path) -> anyhow::Result<()> {
    let last = points.last().map_or(1.0, |(step, _)| *step).max(1.0);
    let (low, high) = points
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, loss)| {
            (low.min(*loss), high.max(*loss))
        });
    let margin = ((high - low) * 0.05).max(1e-3);
    let root = BitMapBackend::new(picture, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Training loss", (FONT, 26))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, (low - margin).max(0.0)..high + margin)?;
    let labels = (FONT, 18);
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("step")
        .y_desc("loss")
        .label_style(labels)
        .axis_desc_style(labels)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), BLUE.mix(0.3)))?;
    chart.draw_series(LineSeries::new(smoothed(points), BLUE.stroke_width(2)))?;
    root.present()?;
    Ok(())
}

/// The mean of each point and its neighbours.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let window = |index: usize| &points[index.saturating_sub(WINDOW / 2)..(index + WINDOW / 2 + 1).min(points.len())];
    let mean = |index| window(index).iter().map(|(_, loss)| loss).sum::<f64>() / window(index).len() as f64;
    points
        .iter()
        .enumerate()
        .map(|(index, (step, _))| (*step, mean(index)))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_chart_shows_a_curve() {
        let folder = tempfile::tempdir().unwrap();
        let (metrics, picture) = (folder.path().join("metrics.jsonl"), folder.path().join("loss.png"));
        let line = |step: u64| {
            format!(
                "{{\"step\":{step},\"loss\":{{\"total\":{}}}}}\n",
                1.0 + 9.0 / step as f64
            )
        };
        fs::write(&metrics, (1..100).map(line).collect::<String>()).unwrap();
        draw(&metrics, &picture).unwrap();
        let image = image::open(&picture).unwrap().into_rgb8();
        assert_eq!(image.dimensions(), SIZE);
        let blue = image
            .pixels()
            .filter(|pixel| pixel.0[2] > 200 && pixel.0[0] < 100)
            .count();
        let black = image
            .pixels()
            .filter(|pixel| pixel.0.iter().all(|&part| part < 80))
            .count();
        assert!(
            blue > 500 && black > 500,
            "{blue} pixels of the curve, {black} of axes and text"
        );
    }

    #[test]
    fn a_run_without_losses_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = folder.path().join("metrics.jsonl");
        fs::write(&metrics, "").unwrap();
        let error = draw(&metrics, &folder.path().join("loss.png")).unwrap_err().to_string();
        assert!(error.contains("found no loss"), "{error}");
    }
}
