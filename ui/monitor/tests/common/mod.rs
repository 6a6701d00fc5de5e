//! A run to look at, and a window without a screen to look at it in.

use std::sync::mpsc::{self, Sender};

use eframe::egui::Theme;
use egui_kittest::{Harness, HarnessBuilder};
use nibble_monitor::{
    app::{Choices, Monitor},
    history::Facts,
    reader::Message,
};
use nibble_run::{
    CategoryBytes, Event, Method, MethodPlan, ModelSummary, PlanReport, RunNews, RunSettings,
    RunState, TrainingDevice,
};

pub const MIB: u64 = 1 << 20;

/// A window of a run, fed by hand.
pub struct Window {
    pub harness: Harness<'static, Monitor>,
    pub messages: Sender<Message>,
}

impl Window {
    /// A window that knows nothing yet.
    pub fn open(builder: HarnessBuilder<Monitor>, theme: Theme) -> Self {
        let (messages, receiver) = mpsc::channel();
        let choices = Choices { theme: theme.into(), on_top: false };
        let builder = builder.with_theme(theme);
        let harness =
            builder.build_eframe(|creation| Monitor::new(&creation.egui_ctx, receiver, choices));
        Self { harness, messages }
    }

    /// Tells the window, and lets it draw until it is at rest.
    pub fn tell(&mut self, message: Message) -> &mut Self {
        self.messages.send(message).expect("the window listens");
        self.harness.run();
        self
    }

    pub fn news(&mut self, events: Vec<Event>, state: RunState) -> &mut Self {
        self.tell(Message::News(RunNews { reset: false, events, more: false, state }))
    }

    pub fn facts(&mut self) -> &mut Self {
        self.tell(Message::Facts(Box::new(facts())))
    }
}

/// A run of 400 steps with QLoRA.
pub fn facts() -> Facts {
    let settings = RunSettings {
        model: "models/starter".into(),
        data: "data/pirate.jsonl".into(),
        method: Method::Qlora,
        epochs: 3.0,
        ..RunSettings::default()
    };
    let model = ModelSummary {
        family: "llama".into(),
        parameters: 2_920_896,
        layers: 6,
        hidden: 192,
        vocabulary: 1760,
        context: 512,
    };
    let categories = CategoryBytes {
        weights: 10 * MIB,
        adapters: 2 * MIB,
        gradients: 2 * MIB,
        optimizer: 4 * MIB,
        activations: 12 * MIB,
        workspace: 2 * MIB,
    };
    let plan = MethodPlan {
        method: Method::Qlora,
        peak_bytes: categories.total(),
        host_bytes: 0,
        recomputed_layers: Some(2),
        page_file_bytes: 0,
        paging: None,
        smallest_bytes: categories.total(),
        categories,
        regions: Vec::new(),
        fits: true,
        suggestions: Vec::new(),
    };
    let (budget_bytes, available_bytes) = (8192 * MIB, 8192 * MIB);
    let plan = PlanReport {
        model,
        device: TrainingDevice::Cpu,
        budget_bytes,
        available_bytes,
        device_overhead_bytes: None,
        host_available_bytes: None,
        methods: vec![plan],
    };
    Facts { name: "pirate with qlora".into(), settings, plan: Ok(plan) }
}

pub fn ready(n_steps: u64) -> Event {
    let planned_peak_bytes = 32 * MIB;
    Event::Ready { n_steps, step: 0, n_examples: 600, n_tokens: 70_000, planned_peak_bytes }
}

/// A step of a run whose loss falls in a lifelike way, always the same.
pub fn step(step: u64) -> Event {
    // Bits that look like chance, from the step alone.
    let noise = |salt: u64| {
        let mut bits = (step * 8 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
    };
    let progress = step as f64 / 400.0;
    Event::Step {
        step,
        loss: 1.1 + 3.4 * (-5.0 * progress).exp() + 0.5 * noise(1),
        lr: 2e-4 * (step as f64 / 20.0).min(0.5 + 0.5 * (progress * 3.0).cos()).max(0.0),
        grad_norm: 0.8 + 2.0 * (-8.0 * progress).exp() + 0.6 * noise(2),
        tokens: 512,
        tokens_per_s: 4400.0 + 500.0 * noise(3),
        host_bytes: 46 * MIB + step.min(60) * (MIB / 32),
        device_bytes: 32 * MIB,
        paged_bytes: 0,
        card: None,
    }
}

pub fn eval(step: u64) -> Event {
    let loss = 1.25 + 3.3 * (-5.0 * step as f64 / 400.0).exp();
    Event::Eval { step, loss, perplexity: loss.exp(), trained_tokens: 4000 }
}

/// The first `n` of 400 steps, evaluated every 50.
pub fn events(n: u64) -> Vec<Event> {
    let mut events = vec![ready(400)];
    for i in 1..=n {
        events.push(step(i));
        if i.is_multiple_of(50) {
            events.push(eval(i));
        }
    }
    events
}
