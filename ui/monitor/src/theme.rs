//! The design tokens as egui's styles: the one place that knows a colour, a size or a distance.

use std::sync::OnceLock;

use eframe::egui::{
    Color32, Context, CornerRadius, FontFamily, FontId, Margin, Shadow, Stroke, Style, TextStyle,
    Theme, Ui, Vec2, Visuals,
};
use serde_json::Value;

/// The tokens' text, part of the program.
const TOKENS: &str = include_str!("../../../assets/tokens.json");

/// What a colour is for. A chart uses the same ink for the same thing everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the tokens, and say it")]
pub enum Ink {
    Background,
    Surface,
    Text,
    Muted,
    Line,
    ControlLine,
    Accent,
    Danger,
    Good,
    Shade,
    Weights,
    Adapters,
    Gradients,
    Optimizer,
    Activations,
    Workspace,
    Loss,
    Eval,
    DeviceMemory,
    HostMemory,
    Throughput,
    LearningRate,
    Planned,
}

impl Ink {
    const ALL: [(Self, &str); 23] = [
        (Self::Background, "background"),
        (Self::Surface, "surface"),
        (Self::Text, "text"),
        (Self::Muted, "muted"),
        (Self::Line, "line"),
        (Self::ControlLine, "control_line"),
        (Self::Accent, "accent"),
        (Self::Danger, "danger"),
        (Self::Good, "good"),
        (Self::Shade, "shade"),
        (Self::Weights, "weights"),
        (Self::Adapters, "adapters"),
        (Self::Gradients, "gradients"),
        (Self::Optimizer, "optimizer"),
        (Self::Activations, "activations"),
        (Self::Workspace, "workspace"),
        (Self::Loss, "loss"),
        (Self::Eval, "eval"),
        (Self::DeviceMemory, "device_memory"),
        (Self::HostMemory, "host_memory"),
        (Self::Throughput, "throughput"),
        (Self::LearningRate, "learning_rate"),
        (Self::Planned, "planned"),
    ];

    /// The colour in the theme that `ui` has now.
    pub fn of(self, ui: &Ui) -> Color32 {
        self.in_theme(ui.theme())
    }

    /// The colour in `theme`.
    pub fn in_theme(self, theme: Theme) -> Color32 {
        let tokens = tokens();
        let palette = if theme == Theme::Dark { &tokens.dark } else { &tokens.light };
        palette[self as usize]
    }
}

/// The tokens, read once.
#[derive(Debug)]
pub struct Tokens {
    light: [Color32; Ink::ALL.len()],
    dark: [Color32; Ink::ALL.len()],
    /// Distances, the smallest first.
    pub spacing: [f32; 6],
    /// Size of notes and axes.
    pub small: f32,
    /// Size of text.
    pub body: f32,
    /// Size of titles and figures.
    pub title: f32,
}

/// The tokens.
pub fn tokens() -> &'static Tokens {
    static READ: OnceLock<Tokens> = OnceLock::new();
    READ.get_or_init(|| {
        // A test holds that all of them are there.
        let tokens: Value = serde_json::from_str(TOKENS).unwrap_or_default();
        let number = |value: &Value| value.as_f64().unwrap_or(12.0) as f32;
        let palette = |theme: &str| Ink::ALL.map(|(_, name)| color(&tokens["colors"][theme][name]));
        Tokens {
            light: palette("light"),
            dark: palette("dark"),
            spacing: std::array::from_fn(|i| number(&tokens["spacing_px"][i])),
            small: number(&tokens["type_px"]["small"]),
            body: number(&tokens["type_px"]["body"]),
            title: number(&tokens["type_px"]["title"]),
        }
    })
}

/// A colour written as `#rrggbb`.
fn color(code: &Value) -> Color32 {
    code.as_str().and_then(|code| Color32::from_hex(code).ok()).unwrap_or_default()
}

/// Gives both themes of `context` the tokens' look.
pub fn apply(context: &Context) {
    for theme in [Theme::Light, Theme::Dark] {
        context.style_mut_of(theme, |style| style_of(style, theme));
    }
}

fn style_of(style: &mut Style, theme: Theme) {
    let tokens = tokens();
    let [xs, s, m, ..] = tokens.spacing;
    let font = |size| FontId::new(size, FontFamily::Proportional);
    style.text_styles = [
        (TextStyle::Small, font(tokens.small)),
        (TextStyle::Body, font(tokens.body)),
        (TextStyle::Button, font(tokens.small)),
        (TextStyle::Heading, font(tokens.title)),
        (TextStyle::Monospace, FontId::new(tokens.small, FontFamily::Monospace)),
    ]
    .into();
    style.spacing.item_spacing = Vec2::new(s, xs);
    style.spacing.button_padding = Vec2::new(s, xs);
    style.spacing.window_margin = Margin::same(m as i8);
    style.spacing.menu_margin = Margin::same(xs as i8);
    // Text that can be marked would take the focus on the way through the controls.
    style.interaction.selectable_labels = false;
    style.visuals = visuals(theme);
}

fn visuals(theme: Theme) -> Visuals {
    let ink = |ink: Ink| ink.in_theme(theme);
    let tokens = tokens();
    let mut visuals = if theme == Theme::Dark { Visuals::dark() } else { Visuals::light() };
    let radius = CornerRadius::same(tokens.spacing[0] as u8);
    visuals.panel_fill = ink(Ink::Background);
    visuals.window_fill = ink(Ink::Surface);
    visuals.extreme_bg_color = ink(Ink::Surface);
    visuals.faint_bg_color = ink(Ink::Surface);
    visuals.code_bg_color = ink(Ink::Surface);
    visuals.window_stroke = Stroke::new(1.0, ink(Ink::Line));
    visuals.window_corner_radius = radius;
    visuals.menu_corner_radius = radius;
    visuals.window_shadow = Shadow::NONE;
    visuals.weak_text_color = Some(ink(Ink::Muted));
    visuals.warn_fg_color = ink(Ink::LearningRate);
    visuals.error_fg_color = ink(Ink::Danger);
    visuals.hyperlink_color = ink(Ink::Accent);
    // What is chosen is shaded, what has the focus has the accent around it.
    visuals.selection.bg_fill = ink(Ink::Shade);
    visuals.selection.stroke = Stroke::new(1.5, ink(Ink::Accent));
    let widgets = &mut visuals.widgets;
    for (widget, fill, line) in [
        (&mut widgets.noninteractive, Ink::Surface, Ink::Line),
        (&mut widgets.inactive, Ink::Surface, Ink::ControlLine),
        (&mut widgets.hovered, Ink::Shade, Ink::ControlLine),
        (&mut widgets.active, Ink::Shade, Ink::Accent),
        (&mut widgets.open, Ink::Surface, Ink::ControlLine),
    ] {
        widget.bg_fill = ink(fill);
        widget.weak_bg_fill = ink(fill);
        widget.bg_stroke = Stroke::new(1.0, ink(line));
        widget.fg_stroke = Stroke::new(1.0, ink(Ink::Text));
        widget.corner_radius = radius;
        widget.expansion = 0.0;
    }
    visuals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ink_is_in_the_tokens_of_both_themes() {
        let read: Value = serde_json::from_str(TOKENS).unwrap();
        for theme in ["light", "dark"] {
            for (i, (ink, name)) in Ink::ALL.into_iter().enumerate() {
                assert_eq!(ink as usize, i, "{name} is at the place of its ink");
                let code = read["colors"][theme][name].as_str().unwrap_or_default();
                assert!(Color32::from_hex(code).is_ok(), "{theme} {name}: `{code}`");
            }
        }
        assert_ne!(Ink::Text.in_theme(Theme::Light), Ink::Text.in_theme(Theme::Dark));
        assert_eq!(read["spacing_px"].as_array().map(Vec::len), Some(tokens().spacing.len()));
        for size in ["small", "body", "title"] {
            assert!(read["type_px"][size].is_number(), "{size}");
        }
    }
}
