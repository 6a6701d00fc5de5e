//! The window: takes what the reader has found, and lays out header, plan and charts.

use std::sync::mpsc::Receiver;

use eframe::{
    App, Frame,
    egui::{
        self, CentralPanel, Context, CornerRadius, Margin, Role, ScrollArea, Stroke,
        ThemePreference, Ui, Vec2, ViewportCommand, WidgetInfo, WindowLevel,
    },
};
use nibble_run::RunState;

use crate::{
    charts::{Charts, View},
    header,
    history::{Facts, History},
    plan_bar,
    reader::{Message, Trouble},
    theme::{self, Ink, tokens},
};

/// Width from which the controls stand beside the run's name.
const WIDE: f32 = 720.0;

/// Height of a control.
const CONTROL_HEIGHT: f32 = 28.0;

/// What the person chose before the window opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choices {
    /// The theme.
    pub theme: ThemePreference,
    /// Whether the window stays above all others.
    pub on_top: bool,
}

/// The window of one run.
#[derive(Debug)]
pub struct Monitor {
    messages: Receiver<Message>,
    facts: Option<Facts>,
    history: History,
    state: Option<RunState>,
    trouble: Option<Trouble>,
    charts: Charts,
    choices: Choices,
    controls_width: f32,
    title: String,
}

impl Monitor {
    /// A window that shows what `messages` tell.
    pub fn new(context: &Context, messages: Receiver<Message>, choices: Choices) -> Self {
        theme::apply(context);
        context.set_theme(choices.theme);
        Self {
            messages,
            facts: None,
            history: History::default(),
            state: None,
            trouble: None,
            charts: Charts::default(),
            choices,
            controls_width: 0.0,
            title: String::new(),
        }
    }

    /// Points that the charts draw now.
    pub fn n_points(&self) -> usize {
        self.charts.n_points()
    }

    /// Which steps are shown.
    pub fn view(&self) -> View {
        self.charts.view
    }

    /// Steps that are known.
    pub fn n_steps(&self) -> usize {
        self.history.steps.len()
    }

    /// Takes what has come since the last time.
    fn take_messages(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            match message {
                Message::Facts(facts) => self.facts = Some(*facts),
                Message::News(news) => {
                    self.history.add(news.reset, &news.events);
                    self.state = Some(news.state);
                }
                Message::Trouble(trouble) => self.trouble = Some(trouble),
                Message::Mended => self.trouble = None,
            }
        }
    }

    /// Names the window after the run and how far it is, for the list of windows.
    fn name_window(&mut self, context: &Context) {
        let Some(facts) = &self.facts else { return };
        let progress = match (self.state, self.history.n_steps(&facts.settings)) {
            (Some(state), Some(n_steps)) if state.is_active() && n_steps > 0 => {
                let percent = 100.0 * self.history.step() as f64 / n_steps as f64;
                format!("{percent:.0} % · ")
            }
            (Some(state), _) => format!("{} · ", header::state_name(state)),
            (None, _) => String::new(),
        };
        let title = format!("{progress}{} · Nibble", facts.name);
        if title != self.title {
            context.send_viewport_cmd(ViewportCommand::Title(title.clone()));
            self.title = title;
        }
    }

    /// One frame, where there is no window around.
    pub fn frame(&mut self, ui: &mut Ui) {
        self.take_messages();
        self.draw(ui);
    }

    fn draw(&mut self, ui: &mut Ui) {
        let closes = egui::KeyboardShortcut::new(egui::Modifiers::COMMAND, egui::Key::W);
        if ui.input_mut(|input| input.consume_shortcut(&closes)) {
            ui.send_viewport_cmd(ViewportCommand::Close);
        }
        let margin = Margin::same(tokens().spacing[3] as i8);
        let background = egui::Frame::new().fill(Ink::Background.of(ui));
        CentralPanel::no_frame().frame(background).show(ui, |ui| {
            ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
                egui::Frame::new().inner_margin(margin).show(ui, |ui| self.contents(ui));
            });
        });
    }

    fn contents(&mut self, ui: &mut Ui) {
        let [_, s, m, ..] = tokens().spacing;
        let Some(facts) = &self.facts else {
            match &self.trouble {
                Some(trouble) => {
                    ui.heading("This run cannot be opened");
                    ui.add_space(s);
                    header::note(ui, Ink::Danger, &trouble.message, &trouble.hint);
                    ui.add_space(s);
                    ui.weak("It is tried again as long as this window is open.");
                }
                None => {
                    ui.weak("Opening the run…");
                }
            }
            return;
        };
        if ui.available_width() >= WIDE {
            // The controls are as wide as they were the last time; at first nobody knows.
            let gap = ui.spacing().item_spacing.x;
            let width = (ui.available_width() - self.controls_width - gap).max(0.0);
            row(ui, CONTROL_HEIGHT, |ui| {
                ui.allocate_ui(Vec2::new(width, CONTROL_HEIGHT), |ui| {
                    ui.set_width(width);
                    header::name(ui, facts);
                });
                let controls = |ui: &mut Ui| controls(ui, &mut self.choices, &mut self.charts.view);
                let width = ui.horizontal(controls).response.rect.width();
                if (width - self.controls_width).abs() > 0.5 {
                    self.controls_width = width;
                    ui.ctx().request_discard("the width of the controls is known now");
                }
            });
            header::details(ui, facts, self.state);
        } else {
            header::name(ui, facts);
            header::details(ui, facts, self.state);
            ui.scope(|ui| {
                ui.spacing_mut().interact_size.y = CONTROL_HEIGHT;
                ui.horizontal_wrapped(|ui| controls(ui, &mut self.choices, &mut self.charts.view));
            });
        }
        header::notes(ui, &self.history, self.state, self.trouble.as_ref());
        ui.add_space(s);
        header::progress(ui, facts, &self.history, self.state);
        ui.add_space(s);
        plan_bar::show(ui, facts);
        ui.add_space(m);
        self.charts.show(ui, &self.history, self.facts.as_ref());
    }
}

impl App for Monitor {
    // Called when there is news although the window is hidden, too: nothing piles up.
    fn logic(&mut self, context: &Context, _: &mut Frame) {
        self.take_messages();
        self.name_window(context);
    }

    fn ui(&mut self, ui: &mut Ui, _: &mut Frame) {
        self.draw(ui);
    }
}

/// A row of a known height, so that everything in it is centred on one line.
fn row(ui: &mut Ui, height: f32, contents: impl FnOnce(&mut Ui)) {
    ui.scope(|ui| {
        ui.spacing_mut().interact_size.y = height;
        ui.horizontal(contents);
    });
}

/// What the person can change: the steps that are shown, the theme, and whether the window stays
/// on top.
fn controls(ui: &mut Ui, choices: &mut Choices, view: &mut View) {
    let shown =
        [("All steps", View::All), ("Last 1,000", View::Last(1000)), ("Last 100", View::Last(100))];
    let themes = [
        ("System", ThemePreference::System),
        ("Light", ThemePreference::Light),
        ("Dark", ThemePreference::Dark),
    ];
    let said = ["Show all steps", "Show the last 1,000 steps", "Show the last 100 steps"];
    segments(ui, view, shown, said);
    let said = ["Theme of the system", "Light theme", "Dark theme"];
    let before = choices.theme;
    segments(ui, &mut choices.theme, themes, said);
    if choices.theme != before {
        ui.ctx().set_theme(choices.theme);
    }
    if ui.checkbox(&mut choices.on_top, "Stay on top").changed() {
        let level = if choices.on_top { WindowLevel::AlwaysOnTop } else { WindowLevel::Normal };
        ui.send_viewport_cmd(ViewportCommand::WindowLevel(level));
    }
}

/// A few choices side by side, one of which holds; `said` names them for a screen reader.
fn segments<T: Copy + PartialEq, const N: usize>(
    ui: &mut Ui,
    chosen: &mut T,
    choices: [(&str, T); N],
    said: [&str; N],
) {
    let [xs, ..] = tokens().spacing;
    let border = Stroke::new(1.0, Ink::Line.of(ui));
    let frame = egui::Frame::new().stroke(border).corner_radius(CornerRadius::same(xs as u8));
    frame.show(ui, |ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        ui.spacing_mut().interact_size.y = CONTROL_HEIGHT - 2.0 * border.width;
        ui.horizontal(|ui| {
            for ((text, value), said) in choices.into_iter().zip(said) {
                let is_chosen = *chosen == value;
                let response = ui.selectable_label(is_chosen, text);
                response
                    .widget_info(|| WidgetInfo::selected(Role::RadioButton, true, is_chosen, said));
                if response.clicked() {
                    *chosen = value;
                }
            }
        });
    });
}
