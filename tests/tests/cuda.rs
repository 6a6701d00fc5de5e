//! The engine on a card: trainers and whole runs. The same tests run with the kernels' own code in the
//! simulator (feature `simulator`), and, where there is one, on a card (`--ignored on_a_card`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use nibble_engine::{
    devices::{self, RunDevice},
    evaluate::{EvaluateSettings, evaluate},
    generate::{AnySession, SamplingSettings, SessionSettings},
    optimizer::StateFormat,
    plan::{MemoryPlan, Outside, Residency},
    train::{self, Command, Elsewhere},
    weights::{
        StoredType, WeightFormat,
        random::{RandomModel, write_random_model},
    },
};
use nibble_kernels::{Capability, Compute, Cpu, Cuda, DeviceKind, DeviceProfile, Isa, Store};
use nibble_run::{
    ComputePrecision, Event, LoraSettings, Method, RunFolder, RunSettings, TrainingDevice,
};
use nibble_tests::{
    Sequences, Setup, f32_profile, golden, open_trainer_on,
    paging::{N_LAYERS, OPTIMIZER, methods, model, open, parameters, run},
    starter, trajectories,
};
#[cfg(feature = "simulator")]
use {
    nibble_engine::train::TrainError,
    nibble_run::{Explain, Paging},
};

/// Each function as a test of the simulated card, and as one of a card.
macro_rules! on_cards {
    ($($name:ident),* $(,)?) => {
        #[cfg(feature = "simulator")]
        mod simulated {
            $(#[test]
            fn $name() {
                let _card = super::simulated_card(8 << 30);
                super::$name();
            })*
        }

        mod on_a_card {
            $(#[test]
            #[ignore = "needs an NVIDIA card"]
            fn $name() {
                super::$name();
            })*
        }
    };
}

on_cards!(
    a_card_trains_as_torch_does,
    a_card_and_a_processor_end_in_the_same_parameters,
    in_bf16_a_card_errs_as_little_as_a_processor,
    paged_runs_of_a_card_are_bit_for_bit_the_unpaged_one,
    what_is_planned_is_allocated_on_a_card_for_every_method,
    a_run_on_a_card_takes_what_it_planned_and_resumes_bit_for_bit,
    a_card_answers_and_measures_as_the_processor_does,
);

/// A card in the simulator, for one test at a time: which card there is, is a matter of the process.
#[cfg(feature = "simulator")]
fn simulated_card(total_bytes: u64) -> std::sync::MutexGuard<'static, ()> {
    use std::sync::{Mutex, PoisonError};
    static CARD: Mutex<()> = Mutex::new(());
    let guard = CARD.lock().unwrap_or_else(PoisonError::into_inner);
    devices::simulate_card(total_bytes);
    guard
}

/// A card in f32.
fn profile() -> DeviceProfile {
    DeviceProfile::cuda(Capability::OLDEST).with_compute(Compute::F32)
}

fn a_card_trains_as_torch_does() {
    trajectories::check::<Cuda>(profile(), 4);
}

/// Parameters and moments after three steps, as numbers.
fn trained<B: RunDevice>(folder: &Path, setup: Setup, profile: DeviceProfile) -> Vec<Vec<f64>> {
    let (mut trainer, _) = open_trainer_on::<B>(folder, setup, profile);
    let mut sequences = Sequences::default();
    for (start, len) in [(7, 17), (91, 31)] {
        let ids: Vec<u32> = (0..len).map(|i| (start + 13 * i) % 128).collect();
        let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        sequences.push(&ids, &labels);
    }
    for number in 1..=3 {
        trainer.accumulate(&sequences.batch(), 1.0 / 46.0, None, Store::Overwrite).unwrap();
        trainer.update(&OPTIMIZER, 1e-3, number, number).unwrap();
    }
    let read = |bytes: Vec<u8>| {
        let values = bytes.chunks_exact(4);
        values.map(|value| f64::from(f32::from_le_bytes(value.try_into().unwrap()))).collect()
    };
    parameters(&mut trainer).into_iter().map(read).collect()
}

/// The largest distance of two vectors, relative to the size of the first.
fn distance(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let of_one = |(a, b): (&Vec<f64>, &Vec<f64>)| {
        assert_eq!(a.len(), b.len());
        let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
        difference / norm(&mut a.iter().copied()).max(f64::MIN_POSITIVE)
    };
    a.iter().zip(b).map(of_one).fold(0.0, f64::max)
}

/// Full, LoRA and QLoRA of a golden model.
fn setups() -> [Setup; 3] {
    [(WeightFormat::F32, false), (WeightFormat::F32, true), (WeightFormat::Nf4, true)].map(
        |(weight_format, with_adapter)| Setup {
            weight_format,
            with_adapter,
            n_rows: 48,
            ..Setup::default()
        },
    )
}

fn a_card_and_a_processor_end_in_the_same_parameters() {
    let folder = golden().join("families").join("llama");
    for setup in setups() {
        let kind = DeviceKind::Cpu { isa: Isa::Portable, n_threads: 2 };
        let portable = DeviceProfile { kind, compute: Compute::F32 };
        let plain = trained::<Cpu>(&folder, setup, portable);
        let processor = trained::<Cpu>(&folder, setup, f32_profile(2));
        let card = trained::<Cuda>(&folder, setup, profile());
        // Sums in another order: twice what two paths of the processor differ by, or what one of
        // their longest sums may (K = 128 terms, √K roundings of half a unit).
        let rounding = 128_f64.sqrt() * 0.5 * f64::from(f32::EPSILON);
        let limit = 2.0 * distance(&plain, &processor).max(rounding);
        let found = distance(&processor, &card);
        assert!(found <= limit, "{setup:?}: {found:e} beyond {limit:e}");
    }
}

fn in_bf16_a_card_errs_as_little_as_a_processor() {
    let folder = golden().join("families").join("llama");
    for setup in setups() {
        let in_bf16 = |profile: DeviceProfile| profile.with_compute(Compute::Bf16);
        let exact = trained::<Cpu>(&folder, setup, f32_profile(2));
        let processor = trained::<Cpu>(&folder, setup, in_bf16(f32_profile(2)));
        let card = trained::<Cuda>(&folder, setup, in_bf16(profile()));
        let (limit, found) = (2.0 * distance(&exact, &processor), distance(&exact, &card));
        assert!(found <= limit, "{setup:?}: {found:e} beyond {limit:e}");
    }
}

/// Of adapters: small, because the simulator is slow.
const RANK: usize = 8;

fn paged_runs_of_a_card_are_bit_for_bit_the_unpaged_one() {
    let model = model();
    let in_bf16 = profile().with_compute(Compute::Bf16);
    let both = [profile(), in_bf16].map(|profile| methods(model.files.spec(), profile, RANK));
    // The simulator is slow: full and LoRA in f32, and in bf16 QLoRA with what is dropped and with what is
    // not.
    let few = |(i, _): &(usize, _)| !cfg!(feature = "simulator") || [0, 3, 10, 11].contains(i);
    let methods = both.into_iter().flatten().enumerate().filter(few);
    for (_, (name, shape)) in methods {
        let mut resident = open::<Cuda>(&model, &shape, Residency::default());
        let expected = run(&mut resident, 1..=2);
        assert_eq!(resident.transferred().bytes(), 0);
        drop(resident);
        // Everything with states in f32, a half of it with those in eight bits.
        let part = if shape.states == StateFormat::F32 { 1 } else { 2 };
        let residency = Residency {
            optimizer_pages: shape.state_layout().n_pages().div_ceil(part),
            layers: N_LAYERS / part,
            inputs: N_LAYERS / part,
            outside: Outside::Host,
        };
        let mut paged = open::<Cuda>(&model, &shape, residency);
        assert!(run(&mut paged, 1..=2) == expected, "{name}: {residency:?}");
        assert!(paged.transferred().bytes() > 0);
    }
}

fn what_is_planned_is_allocated_on_a_card_for_every_method() {
    let model = model();
    let in_bf16 = profile().with_compute(Compute::Bf16);
    let both = [profile(), in_bf16].map(|profile| methods(model.files.spec(), profile, RANK));
    for (name, shape) in both.into_iter().flatten() {
        assert_eq!(shape.states == StateFormat::Blockwise8, name.contains("8-bit"));
        let n_pages = shape.state_layout().n_pages();
        let all = Residency {
            optimizer_pages: n_pages,
            layers: N_LAYERS,
            inputs: N_LAYERS,
            outside: Outside::Host,
        };
        for residency in [Residency { outside: Outside::Host, ..Residency::default() }, all] {
            let trainer = open::<Cuda>(&model, &shape, residency);
            let plan = MemoryPlan::new(trainer.shape().clone());
            assert_eq!(trainer.allocated_bytes(), plan.peak_bytes(), "{name} {residency:?}");
            assert_eq!(trainer.stored_bytes(), plan.store_bytes() as u64, "{name} {residency:?}");
            assert_eq!(plan.page_file_bytes(), 0, "{name}: a card pages to the host's memory");
        }
    }
}

/// Examples of a few tokens, in `folder`.
fn data(folder: &Path) -> PathBuf {
    let path = folder.join("data.jsonl");
    let line =
        |i: usize| format!("{{\"prompt\": \"Say {i}.\", \"completion\": \"Aye, {i} it be!\"}}\n");
    fs::write(&path, (0..12).map(line).collect::<String>()).unwrap();
    path
}

/// A model of two small layers in `folder`, with the built-in one's tokenizer.
fn small_model(folder: &Path) -> PathBuf {
    let path = folder.join("model");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1854,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true,
        "hidden_act": "silu", "eos_token_id": 1, "initializer_range": 0.1,
    });
    let random = RandomModel { seed: 7, stored_type: StoredType::F32, max_shard_bytes: None };
    write_random_model(&config, &path, random).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(starter().join(file), path.join(file)).unwrap();
    }
    path
}

/// Two steps of LoRA, each saved.
fn settings(folder: &Path) -> RunSettings {
    RunSettings {
        model: small_model(folder),
        data: data(folder),
        device: TrainingDevice::Cuda,
        compute: ComputePrecision::F32,
        method: Method::Lora,
        steps: Some(2),
        sequence: 16,
        save_every: 1,
        learning_rate: Some(1e-3),
        lora: LoraSettings { rank: 4, ..LoraSettings::default() },
        ..RunSettings::default()
    }
}

/// The losses that a run's folder tells of.
fn losses(run: &Path) -> Vec<f64> {
    let events = nibble_run::read_metrics(&RunFolder::open(run).unwrap().metrics()).unwrap();
    let loss = |event: &Event| match event {
        Event::Step { loss, .. } => Some(*loss),
        _ => None,
    };
    events.iter().filter_map(loss).collect()
}

/// The adapter of a run's last checkpoint.
fn adapter(run: &Path) -> Vec<u8> {
    let checkpoint = RunFolder::open(run).unwrap().checkpoints().unwrap().pop().unwrap();
    fs::read(checkpoint.path.join("adapter_model.safetensors")).unwrap()
}

fn a_run_on_a_card_takes_what_it_planned_and_resumes_bit_for_bit() {
    let place = tempfile::tempdir().unwrap();
    let settings = settings(place.path());
    let whole = place.path().join("whole");
    let run = train::start(settings.clone(), &whole).unwrap();
    let events: Vec<Event> = run.events().iter().collect();
    assert!(run.join().unwrap().complete);
    let Some(Event::Done { planned_peak_bytes, allocated_peak_bytes, .. }) = events.last() else {
        panic!("ends with {:?}", events.last())
    };
    assert_eq!(planned_peak_bytes, allocated_peak_bytes);
    let told = |event: &Event| matches!(event, Event::Step { card: Some(_), .. });
    assert!(events.iter().any(told), "a step tells what the card says");
    let plan = RunFolder::open(&whole).unwrap().plan().unwrap();
    assert_eq!(plan.device, TrainingDevice::Cuda);
    assert!(plan.device_overhead_bytes.is_some(), "it is known before a run is planned");

    let stopped = place.path().join("stopped");
    let run = train::start(settings, &stopped).unwrap();
    let first = run.events().iter().find(|event| matches!(event, Event::Step { .. }));
    assert!(first.is_some());
    run.send(Command::Stop);
    let outcome = run.join().unwrap();
    if !outcome.complete {
        let run = train::resume(&stopped, Elsewhere::default()).unwrap();
        run.events().iter().for_each(drop);
        assert!(run.join().unwrap().complete);
    }
    assert_eq!(losses(&stopped), losses(&whole));
    assert!(adapter(&stopped) == adapter(&whole));
}

/// Whenever it fails, the last checkpoint is whole, nothing later is kept, and the resumed run is the
/// one that never failed.
#[cfg(feature = "simulator")]
#[test]
fn a_card_that_fails_ends_the_run_and_loses_nothing() {
    let _card = simulated_card(8 << 30);
    let place = tempfile::tempdir().unwrap();
    let settings = settings(place.path());
    let whole = place.path().join("whole");
    let run = train::start(settings.clone(), &whole).unwrap();
    run.events().iter().for_each(drop);
    assert!(run.join().unwrap().complete);
    for n_kernels in [1, 150] {
        let failed = place.path().join(format!("failed-{n_kernels}"));
        devices::fail_next_after(n_kernels);
        let run = train::start(settings.clone(), &failed).unwrap();
        run.events().iter().for_each(drop);
        let error = run.join().unwrap_err();
        assert!(matches!(error, TrainError::Device(_)), "{error}");
        assert_eq!(error.code(), "card_failed");
        let (_, hint) = error.explanation();
        assert!(hint.contains("resume"), "{hint}");
        let n_told = losses(&failed).len();
        assert!(n_told < 2, "{n_kernels} kernels are less than a run");
        let checkpoints = RunFolder::open(&failed).unwrap().checkpoints().unwrap();
        assert!(checkpoints.len() <= n_told);
        let run = train::resume(&failed, Elsewhere::default()).unwrap();
        run.events().iter().for_each(drop);
        assert!(run.join().unwrap().complete);
        assert_eq!(losses(&failed), losses(&whole), "after {n_kernels} kernels");
        assert!(adapter(&failed) == adapter(&whole), "after {n_kernels} kernels");
    }
    // Without the card it goes on as well.
    let failed = place.path().join("failed");
    devices::fail_next_after(150);
    let run = train::start(settings, &failed).unwrap();
    run.events().iter().for_each(drop);
    run.join().unwrap_err();
    let processor = Elsewhere { device: Some(TrainingDevice::Cpu), ..Elsewhere::default() };
    let run = train::resume(&failed, processor).unwrap();
    run.events().iter().for_each(drop);
    assert!(run.join().unwrap().complete);
    assert_eq!(losses(&failed).len(), losses(&whole).len());
}

fn a_card_answers_and_measures_as_the_processor_does() {
    let session = |device| SessionSettings {
        model: starter(),
        adapter: None,
        weight_format: None,
        context: 32,
        profile: devices::profile(device, None, Some(Compute::F32)),
        cache: None,
    };
    let sampling = SamplingSettings { temperature: 0.0, max_tokens: 4, ..Default::default() };
    let devices = [TrainingDevice::Cpu, TrainingDevice::Cuda];
    let [processor, card] = devices.map(|device| {
        let mut text = String::new();
        let mut session = AnySession::open(&session(device)).unwrap();
        let write = |piece: &str| {
            text.push_str(piece);
            true
        };
        session.answer("What color is the sky?", &sampling, write).unwrap();
        text
    });
    assert_eq!(processor, card);

    let place = tempfile::tempdir().unwrap();
    let run = RunSettings { sequence: 32, ..settings(place.path()) };
    let [processor, card] = devices.map(|device| {
        let settings = EvaluateSettings {
            session: session(device),
            data: run.data.clone(),
            columns: train::column_mapping(&run),
            tokenize: train::tokenize_options(&run),
        };
        evaluate(&settings).unwrap()
    });
    assert_eq!(processor.trained_tokens, card.trained_tokens);
    // Two f32 losses of a few dozen products of at most some hundred terms each.
    let limit = 1e-5 * processor.loss;
    assert!((processor.loss - card.loss).abs() < limit, "{processor:?} {card:?}");
}

#[cfg(feature = "simulator")]
#[test]
fn a_run_that_does_not_fit_the_card_says_what_is_missing() {
    let _card = simulated_card(1 << 20);
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    let settings = RunSettings { paged: Paging::Off, ..settings(place.path()) };
    let error = train::start(settings, &run).unwrap_err();
    assert_eq!(error.code(), "does_not_fit");
    assert!(error.to_string().contains("1.00 MiB is available"), "{error}");
    assert!(!run.exists());
}
