//! The charts: what each shows, and showing it.
//!
//! All charts share one stretch of steps and one cursor. Moving the pointer (or the arrow keys,
//! while a chart has the focus) moves the cursor, and the figures beside the titles follow it, so
//! that nothing ever covers a line.

mod figures;
mod specs;
mod view;

use eframe::egui::{
    Align, Align2, Color32, CornerRadius, EventFilter, Key, Layout, Response, Role, Sense, Stroke,
    StrokeKind, TextStyle, Ui, UiBuilder, Vec2, WidgetInfo, pos2,
};
use egui_plot::{
    AxisHints, FilledArea, HLine, Line, LineStyle, Plot, PlotPoint, PlotPoints, PlotUi, Points,
    VLine,
};

use crate::{
    decimate::Thinned,
    history::{Facts, History},
    plan_bar::plan_of,
    theme::{Ink, tokens},
    ticks, words,
};
pub use view::View;
use {
    figures::{Figure, spoken, tag, title_row},
    specs::{CHARTS, ChartSpec, LineSpec, Pen},
    view::{height_range, nearest},
};

/// Width from which charts stand side by side.
const TWO_COLUMNS: f32 = 720.0;
/// The least height of a chart.
const LEAST_HEIGHT: f32 = 132.0;
/// The same where the figures beside the titles need a second row.
const LEAST_NARROW_HEIGHT: f32 = 160.0;
/// Width of the labels beside the vertical axis; fixed, so that charts are aligned and stay put.
const AXIS_WIDTH: f32 = 56.0;

/// Width of the longest step below a chart, with some air.
const TAG_WIDTH: f32 = 60.0;

/// A level that was planned.
#[derive(Debug)]
struct Level {
    name: &'static str,
    ink: Ink,
    bytes: f64,
}

/// What the plan says of the device and, if anything is paged, of the host.
fn planned_levels(facts: &Facts) -> Vec<Level> {
    let Some(plan) = plan_of(facts) else { return Vec::new() };
    let levels = [
        Level { name: "planned", ink: Ink::Planned, bytes: plan.peak_bytes as f64 },
        Level { name: "paged to host", ink: Ink::HostMemory, bytes: plan.host_bytes as f64 },
    ];
    levels.into_iter().filter(|level| level.bytes > 0.0).collect()
}

/// A line in as many points as there is room for; made again when what it shows has changed.
#[derive(Debug, Default)]
struct Trace {
    key: Option<(u64, [u64; 2], usize)>,
    thinned: Thinned,
}

impl Trace {
    fn update(&mut self, line: &LineSpec, history: &History, range: (f64, f64), n_columns: usize) {
        let key = (history.version, [range.0.to_bits(), range.1.to_bits()], n_columns);
        if self.key != Some(key) {
            self.thinned.update((line.values)(history), range, n_columns);
            self.key = Some(key);
        }
    }

    fn points(&self) -> &[PlotPoint] {
        &self.thinned.points
    }

    /// The drawn point at `step`, if there is one.
    fn at(&self, step: f64) -> Option<PlotPoint> {
        let i = self.points().partition_point(|point| point.x < step);
        self.points().get(i).filter(|point| point.x == step).copied()
    }

    /// Draws a line of `spec` in `color`.
    fn draw<'a>(&'a self, plot: &mut PlotUi<'a>, spec: &LineSpec, color: Color32) {
        let points = || PlotPoints::Borrowed(self.points());
        let band = &self.thinned.band;
        if spec.pen == Pen::Faint && !band.steps.is_empty() {
            // So many lines side by side are a plane, and one colour shows it best.
            let area = FilledArea::new(spec.name, &band.steps, &band.lows, &band.highs);
            let edge = Stroke::new(spec.pen.width(), color.gamma_multiply(0.3));
            return plot.add(area.fill_color(color.gamma_multiply(0.2)).stroke(edge));
        }
        let color = if spec.pen == Pen::Faint { color.gamma_multiply(0.4) } else { color };
        if spec.pen == Pen::Marked || self.points().len() == 1 {
            plot.points(Points::new("", points()).color(color).radius(3.0));
        }
        // The points are few already.
        let line = Line::new(spec.name, points()).allow_band(false);
        plot.line(line.color(color).width(spec.pen.width()));
    }
}

/// The charts and where one looks at them.
#[derive(Debug, Default)]
pub struct Charts {
    /// Which steps are shown.
    pub view: View,
    /// The step whose values are shown; none: the last.
    cursor: Option<f64>,
    /// Whether anything is or will be evaluated.
    has_eval: bool,
    /// The traces of every chart's lines.
    traces: [Vec<Trace>; CHARTS.len()],
}

impl Charts {
    /// Points that are drawn now, in all charts.
    pub fn n_points(&self) -> usize {
        self.traces.iter().flatten().map(|trace| trace.points().len()).sum()
    }

    /// Shows all charts in the room that `ui` has, or lower ones that can be scrolled.
    pub fn show(&mut self, ui: &mut Ui, history: &History, facts: Option<&Facts>) {
        let gap = tokens().spacing[1];
        let room = ui.available_size();
        let levels = facts.map(planned_levels).unwrap_or_default();
        self.has_eval = !history.eval.steps.is_empty()
            || facts.is_some_and(|facts| facts.settings.eval_split > 0.0);
        let mut hovered = None;
        let mut show = |charts: &mut Self, ui: &mut Ui, index: usize, size: Vec2| {
            let levels = if CHARTS[index].planned { &levels[..] } else { &[] };
            let at = charts.chart(ui, index, size, history, levels);
            hovered = hovered.or(at);
        };
        ui.spacing_mut().item_spacing = Vec2::splat(gap);
        if room.x < TWO_COLUMNS {
            let n = CHARTS.len() as f32;
            let height = ((room.y - (n - 1.0) * gap) / n).max(LEAST_NARROW_HEIGHT);
            for index in 0..CHARTS.len() {
                show(self, ui, index, Vec2::new(room.x, height));
            }
        } else {
            let unit = ((room.y - 2.0 * gap) / 10.0).max(LEAST_HEIGHT / 3.0).floor();
            show(self, ui, 0, Vec2::new(room.x, 4.0 * unit));
            let half = Vec2::new(((room.x - gap) / 2.0).floor(), 3.0 * unit);
            for pair in [[1, 2], [3, 4]] {
                ui.horizontal(|ui| pair.map(|index| show(self, ui, index, half)));
            }
        }
        let keyboard = ui.memory(|memory| memory.focused()).is_some() && hovered.is_none();
        if hovered.is_some() || !keyboard {
            self.set_cursor(ui, hovered);
        }
    }

    fn set_cursor(&mut self, ui: &Ui, cursor: Option<f64>) {
        if self.cursor != cursor {
            self.cursor = cursor;
            // The charts that are already drawn show the old one.
            ui.ctx().request_repaint();
        }
    }

    /// Shows one chart; returns the step under the pointer.
    fn chart(
        &mut self,
        ui: &mut Ui,
        index: usize,
        size: Vec2,
        history: &History,
        levels: &[Level],
    ) -> Option<f64> {
        let spec = &CHARTS[index];
        let [_, s, m, _, xl, _] = tokens().spacing;
        let (cell, _) = ui.allocate_exact_size(size, Sense::hover());
        let radius = CornerRadius::same(s as u8);
        let border = Stroke::new(1.0, Ink::Line.of(ui));
        ui.painter().rect(cell, radius, Ink::Surface.of(ui), border, StrokeKind::Inside);
        let layout = Layout::top_down(Align::Min);
        // To the right there is room for half of the last mark's label.
        let inside = cell.shrink2(Vec2::new(m, s)).with_max_x(cell.right() - xl);
        let builder = UiBuilder::new().id_salt(spec.title).max_rect(inside).layout(layout);
        let ui = &mut ui.new_child(builder);
        ui.set_clip_rect(cell.intersect(ui.clip_rect()));

        let figures = self.figures(spec, history, levels);
        title_row(ui, spec, &figures);

        let range = self.view.range(&history.steps);
        let n_columns = (ui.available_width() - AXIS_WIDTH).max(1.0) * ui.pixels_per_point();
        let traces = &mut self.traces[index];
        traces.resize_with(spec.lines.len(), Trace::default);
        for (trace, line) in traces.iter_mut().zip(spec.lines) {
            trace.update(line, history, range, n_columns as usize);
        }
        let values = traces.iter().flat_map(Trace::points).map(|point| point.y);
        let heights =
            height_range(values.chain(levels.iter().map(|level| level.bytes)), spec.from_zero);
        let response = self.plot(ui, (index, history), (range, heights), levels);
        let text = spoken(spec, &figures, self.cursor.or(history.steps.last().copied()));
        response.widget_info(|| WidgetInfo::labeled(Role::Image, true, &text));
        if response.has_focus() {
            let accent = Stroke::new(1.5, Ink::Accent.of(ui));
            ui.painter().rect_stroke(cell, radius, accent, StrokeKind::Inside);
            self.keys(ui, &response, history, range);
        }
        if let Some(step) = self.cursor.filter(|&step| step >= range.0 && step <= range.1) {
            let share = ((step - range.0) / (range.1 - range.0)) as f32;
            let x = response.rect.left() + share * response.rect.width();
            tag(ui, pos2(x, response.rect.bottom()), &words::count(step), cell);
        }
        if history.steps.is_empty() {
            let font = TextStyle::Small.resolve(ui.style());
            let text = "No step yet";
            let at = response.rect.center();
            ui.painter().text(at, Align2::CENTER_CENTER, text, font, Ink::Muted.of(ui));
            return None;
        }
        let pointer = response.hover_pos().filter(|at| response.rect.contains(*at))?;
        let share = f64::from((pointer.x - response.rect.left()) / response.rect.width());
        nearest(&history.steps, range.0 + share * (range.1 - range.0))
    }

    /// Whether a line is there, or may still come.
    fn is_named(&self, line: &LineSpec, history: &History) -> bool {
        match line.pen {
            Pen::Marked => self.has_eval,
            _ => !line.optional || !(line.values)(history).0.is_empty(),
        }
    }

    /// The values beside the title: at the cursor, else the last.
    fn figures(
        &self,
        spec: &'static ChartSpec,
        history: &History,
        levels: &[Level],
    ) -> Vec<Figure> {
        let at = self.cursor.unwrap_or(f64::INFINITY);
        let lines = spec.lines.iter().filter(|line| self.is_named(line, history)).map(|line| {
            let (steps, values) = (line.values)(history);
            let n_before = steps.partition_point(|&step| step <= at);
            let value = n_before.checked_sub(1).and_then(|i| values.get(i).copied());
            Figure { name: line.name, ink: line.ink, pen: Some(line.pen), value }
        });
        let levels = levels.iter().map(|level| Figure {
            name: level.name,
            ink: level.ink,
            pen: None,
            value: Some(level.bytes),
        });
        lines.chain(levels).collect()
    }

    fn plot(
        &mut self,
        ui: &mut Ui,
        (index, history): (usize, &History),
        (range, heights): ((f64, f64), (f64, f64)),
        levels: &[Level],
    ) -> Response {
        let spec = &CHARTS[index];
        let size = ui.available_size();
        let n_marks = (f64::from(size.x / 88.0), f64::from(size.y / 32.0).max(2.5));
        let near = (range.1 - range.0) * f64::from(TAG_WIDTH / size.x.max(1.0));
        let largest = heights.1.abs().max(heights.0.abs());
        let unit = spec.unit;
        let colors = (Ink::Line.of(ui), Ink::Muted.of(ui));
        let font = TextStyle::Small.resolve(ui.style());
        let axis = |hints: AxisHints<'static>| {
            hints.tick_label_color(colors.1).tick_label_font(font.clone())
        };
        let lines: Vec<(&LineSpec, &Trace, Color32)> = spec
            .lines
            .iter()
            .zip(&self.traces[index])
            .map(|(line, trace)| (line, trace, line.ink.of(ui)))
            .collect();
        let levels: Vec<(&Level, Color32)> =
            levels.iter().map(|level| (level, level.ink.of(ui))).collect();
        let cursor = self.cursor;
        let shown = Plot::new(spec.title)
            .width(size.x)
            .height(size.y.max(1.0))
            .show_background(false)
            .show_grid([false, true])
            .show_x(false)
            .show_y(false)
            .grid_color(colors.0)
            .grid_fade(0.0)
            .set_margin_fraction(Vec2::ZERO)
            .allow_drag([true, false])
            .allow_zoom([true, false])
            .allow_scroll(false)
            .allow_boxed_zoom(false)
            .allow_axis_zoom_drag(false)
            .allow_double_click_reset(false)
            .label_formatter(|_| None)
            .x_grid_spacer(move |input| ticks::whole_marks(input.bounds, n_marks.0))
            .y_grid_spacer(move |input| ticks::marks(input.bounds, unit.size(largest), n_marks.1))
            .custom_x_axes(vec![axis(AxisHints::new_x()).formatter(move |mark, _| {
                // The cursor's own step stands there.
                let is_near = cursor.is_some_and(|step| (mark.value - step).abs() < near);
                if is_near { String::new() } else { words::count(mark.value) }
            })])
            .custom_y_axes(vec![
                axis(AxisHints::new_y())
                    .min_thickness(AXIS_WIDTH)
                    .formatter(move |mark, _| unit.write_mark(mark, largest)),
            ])
            .show(ui, |plot| {
                plot.set_plot_bounds_x(range.0..=range.1);
                plot.set_plot_bounds_y(heights.0..=heights.1);
                if let Some(step) = cursor {
                    plot.vline(VLine::new("cursor", step).color(colors.1).width(1.0));
                }
                for (line, trace, color) in lines {
                    trace.draw(plot, line, color);
                    if let Some(point) = cursor.and_then(|step| trace.at(step)) {
                        let dot = PlotPoints::Owned(vec![point]);
                        plot.points(Points::new("", dot).color(color).radius(3.0));
                    }
                }
                for (level, color) in levels {
                    let dashes = LineStyle::Dashed { length: tokens().spacing[1] };
                    let line = HLine::new(level.name, level.bytes).style(dashes);
                    plot.hline(line.color(color).width(1.0));
                }
            });
        let bounds = shown.transform.bounds();
        let moved = (bounds.min()[0], bounds.max()[0]);
        if shown.response.double_clicked() {
            self.view = View::All;
        } else if moved != range && (shown.response.dragged() || shown.response.hovered()) {
            self.view = View::between(moved, &history.steps);
        }
        shown.response.with_new_rect(*shown.transform.frame())
    }

    /// Moves the cursor of a chart that has the focus.
    fn keys(&mut self, ui: &Ui, response: &Response, history: &History, range: (f64, f64)) {
        let filter = EventFilter { horizontal_arrows: true, ..EventFilter::default() };
        ui.memory_mut(|memory| memory.set_focus_lock_filter(response.id, filter));
        let (left, right, home, end) = ui.input(|input| {
            let pressed = |key| input.key_pressed(key);
            (
                pressed(Key::ArrowLeft),
                pressed(Key::ArrowRight),
                pressed(Key::Home),
                pressed(Key::End),
            )
        });
        let Some(&last) = history.steps.last() else { return };
        let now = self.cursor.unwrap_or(last);
        let stride = ((range.1 - range.0) / 100.0).max(1.0).floor();
        let step = match (left, right, home, end) {
            (true, ..) => now - stride,
            (_, true, ..) => now + stride,
            (_, _, true, _) => range.0,
            (_, _, _, true) => last,
            _ => return,
        };
        self.set_cursor(ui, nearest(&history.steps, step));
    }
}
