//! The words of a chart: its title, the figures beside it, and what a screen reader says of it.

use eframe::egui::{
    Align2, FontId, Galley, Pos2, Rect, RichText, Role, Sense, Stroke, TextStyle, Ui, Vec2,
    WidgetInfo, pos2,
};

use super::specs::{ChartSpec, Pen};
use crate::{
    theme::{Ink, tokens},
    words,
};

/// A value beside a title.
#[derive(Debug)]
pub struct Figure {
    pub name: &'static str,
    pub ink: Ink,
    /// How its line is drawn; none: as dashes.
    pub pen: Option<Pen>,
    pub value: Option<f64>,
}

/// What is said of a chart to who cannot see it.
pub fn spoken(spec: &ChartSpec, figures: &[Figure], step: Option<f64>) -> String {
    let Some(step) = step else { return format!("{}: no step yet", spec.title) };
    let values: Vec<String> = figures
        .iter()
        .filter_map(|figure| {
            let value = spec.unit.write(figure.value?);
            Some(format!("{} {value}", figure.name).trim().to_owned())
        })
        .collect();
    format!("{} at step {}: {}", spec.title, words::count(step), values.join(", "))
}

/// The title and, beside it, the figures: each with a piece of its line.
pub fn title_row(ui: &mut Ui, spec: &ChartSpec, figures: &[Figure]) {
    let [xs, _, m, l, ..] = tokens().spacing;
    let font = TextStyle::Small.resolve(ui.style());
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing = Vec2::new(m, 0.0);
        ui.label(RichText::new(spec.title).strong());
        for figure in figures {
            let value = figure.value.map_or_else(|| "–".into(), |value| spec.unit.write(value));
            figure_cell(ui, figure, (value, spec.unit.widest()), &font, (xs, l));
        }
    });
    ui.add_space(xs);
}

fn figure_cell(
    ui: &mut Ui,
    figure: &Figure,
    (value, widest): (String, &str),
    font: &FontId,
    (gap, swatch): (f32, f32),
) {
    let (muted, text) = (Ink::Muted.of(ui), Ink::Text.of(ui));
    let color = figure.ink.of(ui);
    let lay = |words: &str, color| ui.painter().layout_no_wrap(words.into(), font.clone(), color);
    let label = format!("{} {value}", figure.name).trim().to_owned();
    let (name, value) = (lay(figure.name, muted), lay(&value, text));
    let name_width = if figure.name.is_empty() { 0.0 } else { name.size().x + gap };
    let width = swatch + gap + name_width + value.size().x.max(lay(widest, text).size().x);
    let height = ui.text_style_height(&TextStyle::Body);
    let (rect, response) = ui.allocate_exact_size(Vec2::new(width, height), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, &label));
    let middle = rect.center().y;
    let piece = Rect::from_x_y_ranges(rect.left()..=rect.left() + swatch, middle..=middle);
    let ends = [piece.left_center(), piece.right_center()];
    let painter = ui.painter();
    match figure.pen {
        Some(Pen::Faint) => {
            painter.line_segment(ends, Stroke::new(1.0, color.gamma_multiply(0.6)));
        }
        Some(pen) => {
            painter.line_segment(ends, Stroke::new(pen.width(), color));
            if pen == Pen::Marked {
                painter.circle_filled(piece.center(), 3.0, color);
            }
        }
        None => {
            let dash = swatch / 5.0;
            for start in [0.0, 2.0, 4.0] {
                let from = pos2(ends[0].x + start * dash, middle);
                let to = pos2(from.x + dash, middle);
                painter.line_segment([from, to], Stroke::new(1.0, color));
            }
        }
    }
    let top = |galley: &Galley| middle - galley.size().y / 2.0;
    let at = pos2(rect.left() + swatch + gap, top(&name));
    let value_at = pos2(at.x + name_width, top(&value));
    painter.galley(at, name, muted);
    painter.galley(value_at, value, text);
}

/// The cursor's step, between the marks of the axis and within `cell`.
pub fn tag(ui: &Ui, top: Pos2, text: &str, cell: Rect) {
    let [xs, ..] = tokens().spacing;
    let font = TextStyle::Small.resolve(ui.style());
    let color = Ink::Text.of(ui);
    let galley = ui.painter().layout_no_wrap(text.into(), font, color);
    let size = galley.size() + Vec2::new(4.0 * xs, 0.0);
    let place = Align2::CENTER_TOP.anchor_size(top, size);
    let over = (place.right() - cell.right() + 1.0).max(0.0);
    let place = place.translate(Vec2::new(-over, 0.0));
    ui.painter().galley(place.left_top() + Vec2::new(2.0 * xs, 0.0), galley, color);
}
