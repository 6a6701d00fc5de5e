//! Charts of a run, and a page that shows them. Reads the run folder and nothing else.

mod charts;
mod page;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nibble_run::{Event, RunError, RunFolder, read_metrics};

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The run folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A file could not be written.
    #[error("could not write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A chart could not be drawn.
    #[error("could not draw {path}: {reason}")]
    Draw {
        /// The picture.
        path: PathBuf,
        /// What the drawing library says.
        reason: String,
    },
}

/// The series of a run that charts show.
#[derive(Clone, Debug, Default)]
struct Series {
    /// Step and loss.
    loss: Vec<(f64, f64)>,
    /// Step and loss on the held-out examples.
    eval: Vec<(f64, f64)>,
    /// Step and resident memory, in GiB.
    host_memory: Vec<(f64, f64)>,
    /// Step and memory taken from the device, in GiB.
    device_memory: Vec<(f64, f64)>,
    /// The plan's peak, in GiB.
    planned: Option<f64>,
    /// Step and tokens a second.
    throughput: Vec<(f64, f64)>,
}

impl Series {
    fn of(events: &[Event]) -> Self {
        let gib = |bytes: u64| bytes as f64 / (1_u64 << 30) as f64;
        let mut series = Self::default();
        for event in events {
            match event {
                Event::Step { step, loss, tokens_per_s, host_bytes, device_bytes, .. } => {
                    let step = *step as f64;
                    series.loss.push((step, *loss));
                    series.throughput.push((step, *tokens_per_s));
                    series.host_memory.push((step, gib(*host_bytes)));
                    series.device_memory.push((step, gib(*device_bytes)));
                }
                Event::Eval { step, loss, .. } => series.eval.push((*step as f64, *loss)),
                Event::Done { planned_peak_bytes, .. } => {
                    series.planned = Some(gib(*planned_peak_bytes));
                }
                _ => {}
            }
        }
        series
    }
}

/// Draws the charts of `folder` and writes its page; gives the page's path.
///
/// # Errors
/// When the run's events cannot be read, or a picture cannot be written.
pub fn write(folder: &RunFolder) -> Result<PathBuf, ReportError> {
    let report = folder.report();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReportError::Write { path, source }
    };
    fs::create_dir_all(&report).map_err(failed(&report))?;
    let events = read_metrics(&folder.metrics())?;
    let series = Series::of(&events);
    let mut pictures = Vec::new();
    for chart in charts::charts(&series) {
        let png = report.join(format!("{}.png", chart.name));
        charts::png(&chart, &png)
            .map_err(|reason| ReportError::Draw { path: png.clone(), reason })?;
        let path = report.join(format!("{}.svg", chart.name));
        let draw = |theme| {
            charts::svg(&chart, theme)
                .map_err(|reason| ReportError::Draw { path: path.clone(), reason })
        };
        let (light, dark) = (draw(charts::Theme::Light)?, draw(charts::Theme::Dark)?);
        fs::write(&path, &light).map_err(failed(&path))?;
        pictures.push((light, dark));
    }
    let path = report.join("report.html");
    let page = page::page(folder, &events, &pictures)?;
    fs::write(&path, page).map_err(failed(&path))?;
    Ok(path)
}

#[cfg(test)]
mod tests;
