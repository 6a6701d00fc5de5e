//! The memory plan as one bar, in the colours that its categories have everywhere.

use eframe::egui::{
    Align2, FontId, Rect, Role, Sense, Stroke, TextStyle, Ui, Vec2, WidgetInfo, pos2,
};
use nibble_run::{CategoryBytes, MethodPlan, PagingPlan};

use crate::{
    history::Facts,
    theme::{Ink, tokens},
    words,
};

/// The plan that the run trains under.
pub fn plan_of(facts: &Facts) -> Option<&MethodPlan> {
    let plan = facts.plan.as_ref().ok()?;
    let same = plan.methods.iter().find(|method| method.method == facts.settings.method);
    same.or(plan.methods.first())
}

/// The categories in the order in which every bar shows them.
fn parts(bytes: &CategoryBytes) -> [(&'static str, Ink, u64); 6] {
    [
        ("weights", Ink::Weights, bytes.weights),
        ("adapters", Ink::Adapters, bytes.adapters),
        ("gradients", Ink::Gradients, bytes.gradients),
        ("optimizer", Ink::Optimizer, bytes.optimizer),
        ("activations", Ink::Activations, bytes.activations),
        ("workspace", Ink::Workspace, bytes.workspace),
    ]
}

/// What does not stay on the device, of the same categories.
fn paged_parts(plan: &MethodPlan) -> [(&'static str, Ink, u64); 3] {
    let paging = plan.paging.as_ref();
    let of = |bytes: fn(&PagingPlan) -> u64| paging.map_or(0, bytes);
    [
        ("paged weights", Ink::Weights, of(|paging| paging.weights_bytes)),
        ("paged optimizer", Ink::Optimizer, of(|paging| paging.optimizer_bytes)),
        ("paged activations", Ink::Activations, of(|paging| paging.activations_bytes)),
    ]
}

/// What a part of the bar is filled with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Plain,
    Hatched,
}

impl Fill {
    fn paint(self, ui: &Ui, rect: Rect, ink: Ink) {
        let color = ink.of(ui);
        if self == Self::Plain {
            ui.painter().rect_filled(rect, 0.0, color);
            return;
        }
        let stroke = Stroke::new(2.0, color);
        let (gap, height) = (6.0, rect.height());
        let painter = ui.painter().with_clip_rect(rect.intersect(ui.clip_rect()));
        painter.rect_filled(rect, 0.0, color.gamma_multiply(0.22));
        let n_lines = ((rect.width() + height) / gap).ceil() as usize;
        for i in 0..=n_lines {
            let x = rect.left() + i as f32 * gap;
            painter.line_segment([pos2(x, rect.top()), pos2(x - height, rect.bottom())], stroke);
        }
    }
}

/// Shows the plan, or says why there is none.
pub fn show(ui: &mut Ui, facts: &Facts) {
    let small = |ui: &Ui| TextStyle::Small.resolve(ui.style());
    let Some(method) = plan_of(facts) else {
        let why = match &facts.plan {
            Ok(_) => "plan.json holds no plan",
            Err(why) => why,
        };
        let text = format!("No memory plan: {why}");
        ui.add(eframe::egui::Label::new(eframe::egui::RichText::new(text).small().weak()).wrap());
        return;
    };
    let filled = |fill: Fill| move |(name, ink, n_bytes)| (name, ink, n_bytes, fill);
    let resident = parts(&method.categories).map(filled(Fill::Plain));
    let parts: Vec<(&'static str, Ink, u64, Fill)> = resident
        .into_iter()
        .chain(paged_parts(method).map(filled(Fill::Hatched)))
        .filter(|part| part.2 > 0)
        .collect();
    let total = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.2)).max(1);
    let height = tokens().spacing[2];
    let (rect, response) =
        ui.allocate_exact_size(Vec2::new(ui.available_width(), height), Sense::hover());
    let listed: Vec<String> = parts
        .iter()
        .map(|(name, _, n_bytes, _)| format!("{name} {}", words::bytes(*n_bytes as f64)))
        .collect();
    let label = format!(
        "Memory plan: {} in all; {}",
        words::bytes(method.peak_bytes as f64),
        listed.join(", ")
    );
    response.widget_info(|| WidgetInfo::labeled(Role::Image, true, &label));
    let radius = tokens().spacing[0] / 2.0;
    ui.painter().rect_filled(rect, radius, Ink::Surface.of(ui));
    let mut left = rect.left();
    for (_, ink, n_bytes, fill) in &parts {
        let width = rect.width() * (*n_bytes as f64 / total as f64) as f32;
        let part = Rect::from_min_max(pos2(left, rect.top()), pos2(left + width, rect.bottom()));
        // A hair of background between two parts tells them apart without their colours.
        let gap = if width > 3.0 { 1.0 } else { 0.0 };
        fill.paint(ui, part.with_max_x(part.right() - gap), *ink);
        left += width;
    }
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing = Vec2::new(tokens().spacing[3], tokens().spacing[0]);
        let total = words::bytes(method.peak_bytes as f64);
        entry(ui, None, "memory plan", &total, &small(ui));
        for (name, ink, n_bytes, fill) in parts {
            entry(ui, Some((ink, fill)), name, &words::bytes(n_bytes as f64), &small(ui));
        }
        let places = [("page file", method.page_file_bytes), ("host memory", method.host_bytes)];
        for (name, n_bytes) in places.into_iter().filter(|place| place.1 > 0) {
            entry(ui, None, name, &words::bytes(n_bytes as f64), &small(ui));
        }
        if let Some(paging) = &method.paging {
            entry(ui, None, "each step moves", &words::bytes(paging.step_bytes as f64), &small(ui));
        }
    });
}

/// A swatch, a name and a value.
fn entry(ui: &mut Ui, look: Option<(Ink, Fill)>, name: &str, value: &str, font: &FontId) {
    let [xs, s, ..] = tokens().spacing;
    let name_text = ui.painter().layout_no_wrap(name.into(), font.clone(), Ink::Muted.of(ui));
    let value_text = ui.painter().layout_no_wrap(value.into(), font.clone(), Ink::Text.of(ui));
    let swatch = if look.is_some() { s + xs } else { 0.0 };
    let width = swatch + name_text.size().x + xs + value_text.size().x;
    let height = name_text.size().y;
    let (rect, response) = ui.allocate_exact_size(Vec2::new(width, height), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, format!("{name} {value}")));
    if let Some((ink, fill)) = look {
        let square = Align2::LEFT_CENTER.anchor_size(rect.left_center(), Vec2::splat(s));
        match fill {
            Fill::Plain => {
                ui.painter().rect_filled(square, xs / 2.0, ink.of(ui));
            }
            Fill::Hatched => fill.paint(ui, square, ink),
        }
    }
    let at = pos2(rect.left() + swatch, rect.top());
    let value_at = pos2(at.x + name_text.size().x + xs, at.y);
    ui.painter().galley(at, name_text, Ink::Muted.of(ui));
    ui.painter().galley(value_at, value_text, Ink::Text.of(ui));
}
