//! Above the charts: what the run is, how far it is, and what the person should know.

use std::path::Path;

use eframe::egui::{
    Align2, Label, RichText, Role, Sense, Stroke, TextStyle, Ui, Vec2, WidgetInfo, pos2,
};
use nibble_run::{Method, RunSettings, RunState};

use crate::{
    history::{Facts, History},
    plan_bar::plan_of,
    reader::Trouble,
    theme::{Ink, tokens},
    words,
};

/// The least width of a figure.
const FIGURE_WIDTH: f32 = 104.0;

/// A state's name and colour.
fn state_look(state: RunState) -> (&'static str, Ink) {
    match state {
        RunState::Loading => ("Loading", Ink::Muted),
        RunState::Training => ("Training", Ink::Accent),
        RunState::Paused => ("Paused", Ink::LearningRate),
        RunState::Saving => ("Saving", Ink::Accent),
        RunState::Finished => ("Finished", Ink::Good),
        RunState::Stopped => ("Stopped", Ink::LearningRate),
        RunState::Failed => ("Failed", Ink::Danger),
        RunState::Interrupted => ("Interrupted", Ink::LearningRate),
    }
}

/// A state's name.
pub fn state_name(state: RunState) -> &'static str {
    state_look(state).0
}

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Full => "full fine-tuning",
        Method::Lora => "LoRA",
        Method::Qlora => "QLoRA",
    }
}

/// The run's name.
pub fn name(ui: &mut Ui, facts: &Facts) {
    ui.add(Label::new(RichText::new(&facts.name).heading().strong()).truncate());
}

/// The run's state, and what it trains on what.
pub fn details(ui: &mut Ui, facts: &Facts, state: Option<RunState>) {
    ui.horizontal(|ui| {
        if let Some(state) = state {
            let (name, ink) = state_look(state);
            chip(ui, name, ink);
        }
        ui.add(Label::new(RichText::new(details_of(facts)).weak()).truncate());
    });
}

fn details_of(facts: &Facts) -> String {
    let settings = &facts.settings;
    let name =
        |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut parts = vec![name(&settings.model)];
    if let Ok(plan) = &facts.plan {
        parts.push(format!("{} parameters", words::parameters(plan.model.parameters)));
    }
    parts.push(method_name(settings.method).into());
    if settings.method != Method::Full {
        parts.push(format!("rank {}", settings.lora.rank));
    }
    parts.push(name(&settings.data));
    parts.join("  ·  ")
}

/// A dot and a word in one colour.
fn chip(ui: &mut Ui, name: &str, ink: Ink) {
    let [xs, s, ..] = tokens().spacing;
    let font = TextStyle::Body.resolve(ui.style());
    let text = ui.painter().layout_no_wrap(name.into(), font, ink.of(ui));
    let size = Vec2::new(s + xs + text.size().x + xs, text.size().y);
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, name));
    let center = pos2(rect.left() + xs, rect.center().y);
    ui.painter().circle_filled(center, xs, ink.of(ui));
    ui.painter().galley(pos2(rect.left() + s + xs, rect.top()), text, ink.of(ui));
}

/// How far the run is, in figures and as a bar.
pub fn progress(ui: &mut Ui, facts: &Facts, history: &History, state: Option<RunState>) {
    let settings = &facts.settings;
    let pages = plan_of(facts).is_some_and(|plan| plan.paging.is_some());
    let figures = figures(settings, history, state, pages);
    let [xs, s, ..] = tokens().spacing;
    let n_columns = ((ui.available_width() + s) / (FIGURE_WIDTH + s)).floor().max(1.0) as usize;
    let n_columns = n_columns.min(figures.len());
    let width = (ui.available_width() - s * (n_columns - 1) as f32) / n_columns as f32;
    for row in figures.chunks(n_columns) {
        ui.horizontal(|ui| row.iter().for_each(|(name, value)| figure(ui, name, value, width)));
    }
    ui.add_space(xs);
    let n_steps = history.n_steps(settings).filter(|&n| n > 0);
    let done = n_steps.map_or(0.0, |n| (history.step() as f64 / n as f64).min(1.0));
    let size = Vec2::new(ui.available_width(), xs);
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    response.widget_info(|| WidgetInfo {
        value: Some((100.0 * done).round()),
        ..WidgetInfo::labeled(Role::ProgressIndicator, true, "Steps done, in percent")
    });
    let part = rect.with_max_x(rect.left() + rect.width() * done as f32);
    let radius = xs / 2.0;
    ui.painter().rect_filled(rect, radius, Ink::Line.of(ui));
    if done > 0.0 {
        let ink = state.map_or(Ink::Muted, |state| state_look(state).1);
        ui.painter().rect_filled(part, radius, ink.of(ui));
    }
}

/// The figures, each with what it is called; of one run always as many, so that nothing moves.
fn figures(
    settings: &RunSettings,
    history: &History,
    state: Option<RunState>,
    pages: bool,
) -> Vec<(&'static str, String)> {
    let unknown = || String::from("–");
    let last = |values: &[f64], write: fn(f64) -> String| {
        values.last().map_or_else(unknown, |&value| write(value))
    };
    let step = words::count(history.step() as f64);
    let n_steps = history.n_steps(settings).map(|n_steps| words::count(n_steps as f64));
    let epoch = history.epochs(settings).map(|(done, all)| match all {
        Some(all) => format!("{done:.2} / {all}"),
        None => format!("{done:.2}"),
    });
    let time = if state.is_none_or(RunState::is_active) {
        let left = history.seconds_left(settings).map(words::duration);
        ("Time left", left.unwrap_or_else(unknown))
    } else {
        ("Time trained", words::duration(history.seconds_trained()))
    };
    let traffic = ("Page traffic", last(&history.smooth_page_traffic, words::byte_rate));
    let figures = [
        ("Step", n_steps.map_or_else(|| step.clone(), |n_steps| format!("{step} / {n_steps}"))),
        ("Epoch", epoch.unwrap_or_else(unknown)),
        time,
        ("Loss, smoothed", last(&history.smooth_loss, words::decimal)),
        ("Held-out loss", last(&history.eval.values, words::decimal)),
        ("Tokens a second", last(&history.smooth_throughput, words::count)),
        ("Host memory", last(&history.host_bytes, words::bytes)),
    ];
    let card = history.card.as_ref().and_then(words::card).map(|said| ("Card", said));
    figures.into_iter().chain(pages.then_some(traffic)).chain(card).collect()
}

/// A name above a value.
fn figure(ui: &mut Ui, name: &str, value: &str, width: f32) {
    let small = TextStyle::Small.resolve(ui.style());
    let large = TextStyle::Heading.resolve(ui.style());
    let height =
        ui.text_style_height(&TextStyle::Small) + ui.text_style_height(&TextStyle::Heading);
    let (rect, response) = ui.allocate_exact_size(Vec2::new(width, height), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, format!("{name}: {value}")));
    let painter = ui.painter().with_clip_rect(rect.intersect(ui.clip_rect()));
    painter.text(rect.left_top(), Align2::LEFT_TOP, name, small, Ink::Muted.of(ui));
    let lay = |font| painter.layout_no_wrap(value.into(), font, Ink::Text.of(ui));
    let mut galley = lay(large);
    if galley.size().x > width {
        // What is too long for its place is written smaller.
        galley = lay(TextStyle::Body.resolve(ui.style()));
    }
    let place = Align2::LEFT_BOTTOM.anchor_size(rect.left_bottom(), galley.size());
    painter.galley(place.left_top(), galley, Ink::Text.of(ui));
}

/// What the person should know about how the run stands.
pub fn notes(ui: &mut Ui, history: &History, state: Option<RunState>, trouble: Option<&Trouble>) {
    if let Some(Trouble { message, hint }) = trouble {
        note(ui, Ink::Danger, message, hint);
    }
    match (state, &history.failure) {
        (Some(RunState::Failed), Some(failure)) => {
            note(ui, Ink::Danger, &failure.message, &failure.hint);
        }
        (Some(RunState::Interrupted), _) => note(
            ui,
            Ink::LearningRate,
            "The run ended without a word",
            "it goes on from its last checkpoint with `nibble resume`",
        ),
        _ => {}
    }
    if let Some(warning) = history.warnings.last() {
        note(ui, Ink::LearningRate, warning, "");
    }
}

/// A message, what to do, and a bar of colour before both.
pub fn note(ui: &mut Ui, ink: Ink, message: &str, hint: &str) {
    let [xs, s, ..] = tokens().spacing;
    let color = ink.of(ui);
    let response = ui
        .horizontal(|ui| {
            ui.add_space(s + xs);
            ui.vertical(|ui| {
                ui.spacing_mut().item_spacing.y = 0.0;
                ui.add(Label::new(sentence(message)).wrap().selectable(true));
                if !hint.is_empty() {
                    let text = RichText::new(sentence(hint)).weak();
                    ui.add(Label::new(text).wrap().selectable(true));
                }
            });
        })
        .response;
    let rect = response.rect;
    let x = rect.left() + xs / 2.0;
    ui.painter()
        .line_segment([pos2(x, rect.top()), pos2(x, rect.bottom())], Stroke::new(xs, color));
}

/// With a capital in front and a full stop behind, as messages stand in a window.
fn sentence(text: &str) -> String {
    let mut letters = text.trim().chars();
    let Some(first) = letters.next() else { return String::new() };
    // A path or a setting in front is a name, and stays as it is.
    let word = text.split_whitespace().next().unwrap_or_default();
    let is_word = word.chars().all(|letter| letter.is_alphabetic() || ",;:".contains(letter));
    let mut sentence = if is_word { first.to_uppercase().to_string() } else { first.to_string() };
    sentence.extend(letters);
    if !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_sentences_and_names_stay_as_they_are() {
        for (text, sentence_of_it) in [
            ("update Nibble to open it", "Update Nibble to open it."),
            ("runs/a/run.toml is damaged", "runs/a/run.toml is damaged."),
            ("`batch` is 0", "`batch` is 0."),
            ("Run `nibble resume`", "Run `nibble resume`."),
            (" what now? ", "What now?"),
            ("", ""),
        ] {
            assert_eq!(sentence(text), sentence_of_it);
        }
    }
}
