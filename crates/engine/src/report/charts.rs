//! The pictures: what each shows, and drawing it as pixels or as vectors.

use std::{path::Path, sync::OnceLock};

use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};
use serde_json::Value;

use super::Series;

/// Extents of a picture, in pixels; PNGs have twice as many.
const SIZE: (u32, u32) = (860, 320);
/// Points of a line: more than a screen has columns would only be drawn over each other.
const MAX_POINTS: usize = 1000;
const FONT: &str = "sans-serif";

/// Light or dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Dark on white.
    Light,
    /// Light on black.
    Dark,
}

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it is called, at its end.
    label: String,
    /// Its colour's name in the design tokens.
    color: &'static str,
    points: Vec<(f64, f64)>,
    /// Share of full ink: raw values stay behind their average.
    ink: f64,
    width: u32,
    /// Whether points are marked.
    marked: bool,
}

/// One picture.
#[derive(Clone, Debug)]
pub struct Chart {
    /// File name without ending.
    pub name: &'static str,
    title: &'static str,
    unit: &'static str,
    lines: Vec<Line>,
    /// Whether the vertical axis begins at zero.
    from_zero: bool,
}

/// Every chart of a run.
pub fn charts(series: &Series) -> Vec<Chart> {
    let line = |label: &str, color, points: &[(f64, f64)]| Line {
        label: label.into(),
        color,
        points: thin(points),
        ink: 1.0,
        width: 2,
        marked: false,
    };
    let smoothed = smooth(&series.loss);
    let mut loss = vec![
        Line { ink: 0.35, width: 1, label: String::new(), ..line("", "loss", &series.loss) },
        line("loss", "loss", &smoothed),
    ];
    if !series.eval.is_empty() {
        loss.push(Line { marked: true, ..line("held out", "eval", &series.eval) });
    }
    let mut memory = vec![
        line("process", "host_memory", &series.host_memory),
        line("allocated", "device_memory", &series.device_memory),
    ];
    if let Some(planned) = series.planned {
        let ends = [series.loss.first(), series.loss.last()];
        let points: Vec<_> = ends.into_iter().flatten().map(|(step, _)| (*step, planned)).collect();
        memory.push(Line { width: 1, ..line("planned", "planned", &points) });
    }
    let most = memory.iter().flat_map(|line| &line.points).map(|point| point.1).fold(0.0, f64::max);
    let memory_unit = if most < 1.0 { "MiB" } else { "GiB" };
    if most < 1.0 {
        for point in memory.iter_mut().flat_map(|line| &mut line.points) {
            point.1 *= 1024.0;
        }
    }
    vec![
        Chart {
            name: "loss",
            title: "Loss",
            unit: "nats per token",
            lines: loss,
            from_zero: false,
        },
        Chart {
            name: "memory",
            title: "Memory",
            unit: memory_unit,
            lines: memory,
            from_zero: true,
        },
        Chart {
            name: "throughput",
            title: "Throughput",
            unit: "tokens per second",
            lines: vec![line("tokens/s", "throughput", &series.throughput)],
            from_zero: true,
        },
    ]
}

/// An exponential average over a twentieth of the run, without the pull of its first value.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 20.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(step, value)| {
            sum = keep * sum + (1.0 - keep) * value;
            weight = keep * weight + (1.0 - keep);
            (step, sum / weight)
        })
        .collect()
}

/// The lowest and the highest point of each of a few hundred stretches.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(MAX_POINTS / 2);
    points
        .chunks(stretch)
        .flat_map(|points| {
            let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let low = points.iter().min_by(by_value).copied();
            let high = points.iter().max_by(by_value).copied();
            let mut pair: Vec<_> = low.into_iter().chain(high).collect();
            pair.sort_by(|a, b| a.0.total_cmp(&b.0));
            pair
        })
        .collect()
}

/// Draws a chart as pixels.
///
/// # Errors
/// When the file cannot be written.
pub fn png(chart: &Chart, path: &Path) -> Result<(), String> {
    let area = BitMapBackend::new(path, (2 * SIZE.0, 2 * SIZE.1)).into_drawing_area();
    draw(chart, &area, Theme::Light, 2)?;
    area.present().map_err(|error| error.to_string())
}

/// Draws a chart as vectors.
///
/// # Errors
/// When the drawing library fails.
pub fn svg(chart: &Chart, theme: Theme) -> Result<String, String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(chart, &area, theme, 1)?;
        area.present().map_err(|error| error.to_string())?;
    }
    Ok(text)
}

/// A colour of the design tokens.
fn color(theme: Theme, name: &str) -> RGBColor {
    static TOKENS: OnceLock<Value> = OnceLock::new();
    let tokens = TOKENS.get_or_init(|| {
        serde_json::from_str(include_str!("../../../../assets/tokens.json")).unwrap_or_default()
    });
    let theme = if theme == Theme::Light { "light" } else { "dark" };
    let code = tokens["colors"][theme][name].as_str().unwrap_or("#808080");
    let part = |at: usize| {
        code.get(at..at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(128)
    };
    RGBColor(part(1), part(3), part(5))
}

fn draw<B: DrawingBackend>(
    chart: &Chart,
    area: &DrawingArea<B, Shift>,
    theme: Theme,
    scale: u32,
) -> Result<(), String>
where
    B::ErrorType: 'static,
{
    // Pictures need a font on machines that have none.
    static FONT_IS_READY: OnceLock<()> = OnceLock::new();
    FONT_IS_READY.get_or_init(|| {
        // Refused only when the bytes are no font, which they are.
        let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
    let fail = |error: DrawingAreaErrorKind<B::ErrorType>| error.to_string();
    let s = |pixels: u32| pixels * scale;
    let text = |size: u32, name: &str| (FONT, s(size)).into_font().color(&color(theme, name));
    area.fill(&color(theme, "background")).map_err(fail)?;
    let points = || chart.lines.iter().flat_map(|line| &line.points).copied();
    let finite: Vec<(f64, f64)> = points().filter(|point| point.1.is_finite()).collect();
    if finite.is_empty() {
        let style = text(14, "muted");
        let place = (s(24) as i32, s(24) as i32);
        let note = format!("{}: nothing was measured", chart.title);
        return area.draw_text(&note, &style, place).map_err(fail);
    }
    let range = |of: fn(&(f64, f64)) -> f64| {
        finite.iter().map(of).fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)))
    };
    let (first, last) = range(|point| point.0);
    let (mut low, mut high) = range(|point| point.1);
    if chart.from_zero {
        low = 0.0;
    }
    let room = ((high - low) * 0.08).max(high.abs() * 0.02).max(1e-6);
    high += room;
    if !chart.from_zero {
        low -= room;
    }
    let last = if last > first { last } else { first + 1.0 };
    let mut context = ChartBuilder::on(area)
        .margin(s(12))
        .margin_right(s(84))
        .caption(format!("{}  ({})", chart.title, chart.unit), text(16, "text"))
        .x_label_area_size(s(34))
        .y_label_area_size(s(54))
        .build_cartesian_2d(first..last, low..high)
        .map_err(fail)?;
    let digits = match high - low {
        span if span >= 50.0 => 0,
        span if span >= 5.0 => 1,
        span if span >= 0.5 => 2,
        _ => 3,
    };
    context
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(color(theme, "background"))
        .bold_line_style(ShapeStyle::from(&color(theme, "line")).stroke_width(scale))
        .axis_style(ShapeStyle::from(&color(theme, "line")).stroke_width(scale))
        .label_style(text(12, "muted"))
        .x_labels(8)
        .y_labels(5)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| format!("{value:.digits$}"))
        .x_desc("step")
        .axis_desc_style(text(12, "muted"))
        .draw()
        .map_err(fail)?;
    let mut ends: Vec<i32> = Vec::new();
    for line in &chart.lines {
        let ink = color(theme, line.color).mix(line.ink);
        let style = ShapeStyle::from(&ink).stroke_width(s(line.width));
        let points: Vec<_> = line.points.iter().copied().filter(|p| p.1.is_finite()).collect();
        let Some(&(step, value)) = points.last() else { continue };
        context.draw_series(LineSeries::new(points.iter().copied(), style)).map_err(fail)?;
        if line.marked || points.len() == 1 {
            let marks = points.iter().map(|&point| Circle::new(point, s(3), style.filled()));
            context.draw_series(marks).map_err(fail)?;
        }
        if !line.label.is_empty() {
            // A label stands at the end of its line, above those before it where they would touch.
            let height = s(15) as i32;
            let (x, mut y) = context.backend_coord(&(step.max(last), value));
            while let Some(other) = ends.iter().find(|other| (y - **other).abs() < height) {
                y = other - height;
            }
            ends.push(y);
            let style = text(12, line.color);
            let place = (x + s(6) as i32, y - s(7) as i32);
            area.draw_text(&line.label, &style, place).map_err(fail)?;
        }
    }
    Ok(())
}
