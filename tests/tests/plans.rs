//! The plan is the allocation: to the byte, for every method and shape.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nibble_engine::{
    adapter::Targets,
    catalog,
    model::Projection,
    optimizer::StateFormat,
    plan::{
        self, Allowance, MemoryPlan, PageRates, PlanError, PlanSettings, Region, Residency,
        Trainable, TrainingShape,
    },
    weights::{EmbeddingFormat, WeightFormat},
};
use nibble_kernels::{
    Capability, Compute, DeviceProfile, DeviceSlice, FloatFormat, Floats, MemoryId,
};
use nibble_run::{
    LoraSettings, Method, MethodPlan, Paging, Recompute, RunSettings, WeightPrecision,
};
use nibble_tests::{Setup, golden, open_trainer};

fn shapes(id: &str) -> Vec<TrainingShape> {
    let spec = catalog::find(id).unwrap().spec().unwrap();
    let shape = |trainable, weight_format, kept_layers| TrainingShape {
        spec: spec.clone(),
        weight_format,
        embedding_format: EmbeddingFormat::beside(weight_format),
        sequence: 384,
        batch: 3,
        kept_layers,
        sample_tokens: 100,
        gradients: match (&trainable, weight_format) {
            (Trainable::Everything, WeightFormat::Bf16) => FloatFormat::Bf16,
            _ => FloatFormat::F32,
        },
        trainable,
        states: StateFormat::F32,
        residency: Residency::default(),
        profile: DeviceProfile::native_cpu(),
    };
    let adapter = |targets, dropout| Trainable::Adapter { targets, rank: 16, dropout };
    let some: Targets = [Projection::Query, Projection::Down].into_iter().collect();
    [0, 1, spec.n_layers / 2, spec.n_layers]
        .into_iter()
        .flat_map(|kept_layers| {
            [
                shape(Trainable::Everything, WeightFormat::F32, kept_layers),
                shape(Trainable::Everything, WeightFormat::Bf16, kept_layers),
                shape(adapter(Targets::all_linear(), false), WeightFormat::Bf16, kept_layers),
                shape(adapter(Targets::all_linear(), true), WeightFormat::Nf4, kept_layers),
                shape(adapter(some, false), WeightFormat::Nf4, kept_layers),
            ]
        })
        .collect()
}

#[test]
fn regions_of_one_moment_never_overlap_and_fit_the_arena() {
    for id in ["smollm2-135m", "qwen3-0.6b", "qwen2.5-0.5b"] {
        for shape in shapes(id) {
            let plan = MemoryPlan::new(shape);
            let regions = plan.regions();
            for (i, a) in regions.iter().enumerate() {
                assert!(a.offset + a.n_bytes <= plan.arena_bytes());
                for b in &regions[i + 1..] {
                    let apart =
                        a.offset + a.n_bytes <= b.offset || b.offset + b.n_bytes <= a.offset;
                    assert!(apart || !a.moments.meets(b.moments), "{id}: {a:?} {b:?}");
                }
            }
            let parts = plan.category_bytes();
            assert_eq!(parts.total(), plan.peak_bytes() as u64);
        }
    }
}

#[test]
fn a_layout_resolves_to_the_planned_places() {
    for shape in shapes("smollm2-135m") {
        let mut plan = MemoryPlan::new(shape);
        let layout = plan.resolve(MemoryId(1));
        let end = plan.arena_bytes();
        for slice in layout.inputs.resident.iter().flatten() {
            assert!(slice.byte_range().end <= end);
        }
        assert!(layout.loss.workspace.byte_range().end <= end);
    }
}

#[test]
fn plan_equals_allocation_for_every_method() {
    for (weight_format, with_adapter) in
        [(WeightFormat::F32, false), (WeightFormat::Bf16, true), (WeightFormat::Nf4, true)]
    {
        let folder = golden().join("families").join("llama");
        let setup = Setup { weight_format, with_adapter, n_rows: 40, ..Setup::default() };
        let (trainer, _) = open_trainer(&folder, setup);
        let plan = MemoryPlan::new(trainer.shape().clone());
        assert_eq!(trainer.allocated_bytes(), plan.peak_bytes());
    }
}

#[test]
fn full_fine_tuning_of_13b_is_52_and_52_and_104_gigabytes() {
    let spec = catalog::find("llama-2-13b").unwrap().spec().unwrap();
    let settings = RunSettings::default();
    let profile = DeviceProfile::native_cpu();
    let plan_settings = PlanSettings {
        settings: &settings,
        profile,
        page_rates: PageRates::default(),
        available_bytes: u64::MAX,
    };
    let full = plan::method_plan(&spec, Method::Full, plan_settings, u64::MAX).unwrap();
    let gigabytes = |bytes: u64| (bytes as f64 / 1e9).round();
    assert_eq!(gigabytes(full.categories.weights), 52.0);
    assert_eq!(gigabytes(full.categories.gradients), 52.0);
    assert_eq!(gigabytes(full.categories.optimizer), 104.0);
}

#[test]
fn suggestions_are_true() {
    let spec = catalog::find("llama-3.2-1b").unwrap().spec().unwrap();
    let paged = Paging::Off;
    let profile = DeviceProfile::native_cpu();
    let methods = [Method::Full, Method::Lora, Method::Qlora];
    let cases = methods
        .into_iter()
        .flat_map(|method| [Recompute::Auto, Recompute::Off].map(|recompute| (method, recompute)));
    for (method, recompute) in cases {
        let settings =
            RunSettings { sequence: 2048, batch: 8, paged, recompute, ..RunSettings::default() };
        let plan_settings = PlanSettings {
            settings: &settings,
            profile,
            page_rates: PageRates::default(),
            available_bytes: u64::MAX,
        };
        let shape = plan::training_shape(&spec, method, plan_settings).unwrap();
        let plan = MemoryPlan::new(shape.clone());
        let budget_bytes = plan.peak_bytes() as u64 * 3 / 4;
        let Err(PlanError::DoesNotFit { suggestions, peak_bytes, .. }) =
            plan::check(&plan, budget_bytes, plan_settings)
        else {
            panic!("{method:?} is larger than three quarters of itself")
        };
        assert_eq!(peak_bytes, plan.peak_bytes() as u64);
        assert!(!suggestions.is_empty(), "{method:?}");
        for suggestion in suggestions {
            assert!(suggestion.peak_bytes <= budget_bytes, "{method:?} {suggestion:?}");
            // Planned as a run with these settings would be, it is as small as it says.
            let changed = RunSettings {
                sequence: suggestion.settings.sequence,
                batch: suggestion.settings.batch,
                recompute: suggestion.settings.recompute,
                paged: suggestion.settings.paged,
                lora: LoraSettings {
                    rank: suggestion.settings.rank.unwrap_or(16),
                    ..LoraSettings::default()
                },
                ..settings.clone()
            };
            let plan_settings = PlanSettings {
                settings: &changed,
                profile,
                page_rates: PageRates::default(),
                available_bytes: u64::MAX,
            };
            let method = suggestion.settings.method;
            let shape = plan::training_shape(&spec, method, plan_settings).unwrap();
            let plan = plan::choose(&shape, Allowance::of(plan_settings, budget_bytes));
            let total = plan.peak_bytes() as u64;
            // A change that brings recomputation with it says so, and no other.
            let recomputed = plan.shape().recomputed_layers() > 0;
            let says = suggestion.change.ends_with(", recomputed");
            let alone = suggestion.change == "recompute activations";
            let brings = recompute == Recompute::Off && changed.recompute != recompute;
            let expected = recomputed && brings && !alone;
            assert_eq!(says, expected, "{method:?} {suggestion:?}");
            assert_eq!(total, suggestion.peak_bytes, "{method:?} {suggestion:?}");
        }
    }
}

/// Everything of full fine-tuning is outside: each layer's weights come for either pass and for the update, but
/// for the two that are there where a sweep turns, and go once; states of twice their size come and go with the
/// update; inputs go in the forward pass and come in the other.
#[test]
fn what_comes_and_goes_in_one_phase_does_so_at_the_same_time_on_a_card() {
    let spec = catalog::find("llama-3.2-1b").unwrap().spec().unwrap();
    let (paged, recompute) = (Paging::On, Recompute::On);
    let settings = RunSettings { paged, recompute, ..RunSettings::default() };
    let planned = |method, profile, page_rates| {
        let available_bytes = u64::MAX;
        let settings = PlanSettings { settings: &settings, profile, page_rates, available_bytes };
        plan::method_plan(&spec, method, settings, u64::MAX).unwrap().paging.unwrap()
    };
    let card = DeviceProfile::cuda(Capability::OLDEST);
    for [to, from] in [[2e9, 1e9], [1e9, 4e9]] {
        let page_rates = PageRates { host: Some([to, from]), disk: None };
        for method in [Method::Full, Method::Lora, Method::Qlora] {
            let paging = planned(method, card, page_rates);
            let [weights, inputs, states] =
                [paging.weights_bytes, paging.activations_bytes, paging.optimizer_bytes]
                    .map(|bytes| bytes as f64);
            let some = (spec.n_layers - 2) as f64 / spec.n_layers as f64;
            let is_full = method == Method::Full;
            let cold = if is_full { 1.0 } else { some };
            let forward = f64::max(cold * weights / to, inputs / from);
            let backward = some * (weights + inputs) / to;
            let [weights_come, weights_go] =
                if is_full { [some * weights, weights] } else { [0.0; 2] };
            let update = f64::max((states + weights_come) / to, (states + weights_go) / from);
            let expected = forward + backward + update;
            let seconds = paging.step_seconds.unwrap();
            // Of layers all alike; sums of few terms.
            assert!((seconds / expected - 1.0).abs() < 1e-9, "{method:?}: {seconds} {expected}");
        }
    }
    let page_rates = PageRates { host: None, disk: Some(1e9) };
    let paging = planned(Method::Full, DeviceProfile::native_cpu(), page_rates);
    assert_eq!(paging.step_seconds.unwrap(), paging.step_bytes as f64 / 1e9);
}

#[test]
fn activations_are_kept_of_as_many_layers_as_memory_is_to_spare_for() {
    let spec = catalog::find("llama-3.2-1b").unwrap().spec().unwrap();
    let n_layers = spec.n_layers;
    let processor = DeviceProfile::native_cpu();
    let page_rates = PageRates::default();
    let planned_on = |profile, settings: &RunSettings, budget_bytes: u64, available_bytes: u64| {
        let settings = PlanSettings { settings, profile, page_rates, available_bytes };
        plan::method_plan(&spec, Method::Qlora, settings, budget_bytes.min(available_bytes))
            .unwrap()
    };
    let planned = |settings: &RunSettings, budget_bytes, available_bytes| {
        planned_on(processor, settings, budget_bytes, available_bytes)
    };
    let kept_layers = |plan: &MethodPlan| n_layers - plan.recomputed_layers.unwrap();
    let [auto, on, off] = [Recompute::Auto, Recompute::On, Recompute::Off]
        .map(|recompute| RunSettings { recompute, ..RunSettings::default() });
    let all_of_it = u64::MAX;
    let (kept, least) = (planned(&off, all_of_it, all_of_it), planned(&on, all_of_it, all_of_it));
    assert_eq!((kept_layers(&kept), kept_layers(&least)), (n_layers, 0));
    assert!(least.peak_bytes < kept.peak_bytes);
    let peaks: Vec<u64> = (0..=n_layers)
        .map(|kept_layers| {
            let available_bytes = all_of_it;
            let settings =
                PlanSettings { settings: &on, profile: processor, page_rates, available_bytes };
            let shape = plan::training_shape(&spec, Method::Qlora, settings).unwrap();
            MemoryPlan::new(TrainingShape { kept_layers, ..shape }).peak_bytes() as u64
        })
        .collect();
    assert_eq!([peaks[0], peaks[n_layers]], [least.peak_bytes, kept.peak_bytes]);
    let most_within = |bytes| (0..=n_layers).rev().find(|&n| peaks[n] <= bytes).unwrap_or(0);
    // As many as a budget holds, of enough memory.
    for budget in (least.peak_bytes..=kept.peak_bytes).step_by(16 << 20) {
        let plan = planned(&auto, budget, 4 * kept.peak_bytes);
        let most = most_within(budget);
        assert_eq!((kept_layers(&plan), plan.peak_bytes), (most, peaks[most]), "{budget}");
        assert!(plan.fits && plan.paging.is_none());
    }
    // Of all that is free never more than half (but for what makes that steady), and never less for a
    // larger budget, up to one beyond what there is, which nobody chose.
    for available in (2 * least.peak_bytes..=2 * kept.peak_bytes).step_by(64 << 20) {
        let mut last = 0;
        for budget in [available / 4, available / 2, available / 4 * 3, available, all_of_it] {
            let plan = planned(&auto, budget, available);
            assert!(plan.peak_bytes >= last, "{budget} of {available}");
            last = plan.peak_bytes;
        }
        let half = available / 2;
        assert!(last <= half, "{last} of {available}");
        assert!(last >= peaks[most_within(half - half / 16)].min(half), "{last} of {available}");
    }
    // A card's memory is little used by others.
    let card = DeviceProfile::cuda(Capability::OLDEST);
    let on_card =
        |settings: &RunSettings, available| planned_on(card, settings, all_of_it, available);
    let kept_on_card = on_card(&off, all_of_it).peak_bytes;
    assert_eq!(kept_layers(&on_card(&auto, kept_on_card / 3 * 4)), n_layers);
    let fewer = on_card(&auto, kept_on_card);
    assert!(
        (1..n_layers).contains(&kept_layers(&fewer)) && fewer.peak_bytes <= kept_on_card / 8 * 7
    );
    // Nothing leaves the device before they do, and what is asked for is done.
    let tight = planned(&auto, least.peak_bytes, least.peak_bytes);
    assert!(kept_layers(&tight) == 0 && tight.paging.is_none());
    assert!(planned(&auto, least.peak_bytes - 1, all_of_it).paging.is_some());
    let paged = RunSettings { paged: Paging::On, ..auto.clone() };
    assert_eq!(kept_layers(&planned(&paged, all_of_it, all_of_it)), 0);
    let paged = planned(&off, least.peak_bytes, all_of_it);
    assert!(kept_layers(&paged) == n_layers && (paged.paging.is_some() || !paged.fits));
    for settings in [auto, on] {
        let smallest = planned(&settings, all_of_it, all_of_it).smallest_bytes;
        assert_eq!(smallest, least.smallest_bytes);
    }
}

#[test]
fn unknown_targets_and_long_sequences_are_refused() {
    let spec = catalog::find("smollm2-135m").unwrap().spec().unwrap();
    let profile = DeviceProfile::native_cpu();
    let refused = |settings: &RunSettings| {
        let settings = PlanSettings {
            settings,
            profile,
            page_rates: PageRates::default(),
            available_bytes: u64::MAX,
        };
        plan::training_shape(&spec, Method::Lora, settings).unwrap_err().to_string()
    };
    let lora = LoraSettings { targets: vec!["banana".into()], ..LoraSettings::default() };
    let error = refused(&RunSettings { lora, ..RunSettings::default() });
    assert!(error.contains("banana") && error.contains("q_proj"), "{error}");
    let error = refused(&RunSettings { sequence: 1 << 20, ..RunSettings::default() });
    assert!(error.contains(&spec.max_context.to_string()), "{error}");
}

/// What passes between a layer's operations has two bytes a number where products are in bf16, but for what
/// some is dropped from; and so have the keys and values that text is written from.
#[test]
fn activations_are_in_bf16_where_products_are() {
    const SAMPLE_TOKENS: usize = 100;
    let cpu = |compute| DeviceProfile { compute, ..DeviceProfile::native_cpu() };
    let card = DeviceProfile::cuda(Capability { major: 8, minor: 6 });
    for (profile, dropout, width) in [
        (cpu(Compute::Bf16), false, 2),
        (cpu(Compute::F32), false, 4),
        (cpu(Compute::Bf16), true, 2),
        (card, false, 2),
        (DeviceProfile { compute: Compute::F32, ..card }, false, 4),
    ] {
        let dropped_from = if dropout { 4 } else { width };
        let trainable = Trainable::Adapter { targets: Targets::all_linear(), rank: 16, dropout };
        let mut shape = shapes("tinyllama-1.1b").remove(2);
        (shape.trainable, shape.profile) = (trainable, profile);
        shape.kept_layers = shape.spec.n_layers;
        shape.sample_tokens = SAMPLE_TOKENS;
        for qk_norm in [false, true] {
            shape.spec.qk_norm = qk_norm;
            let spec = shape.spec.clone();
            let (n_rows, n_layers) = (shape.n_rows(), spec.n_layers);
            let plan = MemoryPlan::new(shape.clone());
            let bytes = |name: &str| {
                let named = |region: &&Region| region.name.to_string() == name;
                plan.regions().iter().find(named).map(|region| region.n_bytes)
            };
            let (query_width, key_width) = (spec.query_width(), spec.kv_width());
            let [query, key] = match qk_norm {
                false => ["layers.query", "layers.key"],
                true => ["layers.query_raw", "layers.key_raw"],
            };
            for (name, width, n_layers, columns) in [
                ("layer.input_normed", dropped_from, 1, spec.hidden_width),
                ("layer.feed_forward_normed", dropped_from, 1, spec.hidden_width),
                ("layer.activated", dropped_from, 1, spec.ffn_width),
                (query, width, n_layers, query_width),
                (key, width, n_layers, key_width),
                ("layers.value", width, n_layers, key_width),
                ("layers.attention", dropped_from, n_layers, query_width),
                ("layers.gate", width, n_layers, spec.ffn_width),
                ("layers.up", width, n_layers, spec.ffn_width),
            ] {
                let expected = width * n_layers * n_rows * columns;
                assert_eq!(bytes(name), Some(expected), "{name}, {profile:?}, {dropout}");
            }
            for name in ["sample.keys", "sample.values"] {
                let expected = width * n_layers * SAMPLE_TOKENS * key_width;
                assert_eq!(bytes(name), Some(expected), "{name}, {profile:?}, {dropout}");
            }
            // What a norm makes again is not kept.
            let made_again = ["query", "key"].map(|name| bytes(&format!("layer.{name}")).is_some());
            assert_eq!(made_again, [qk_norm; 2]);
            assert!(!qk_norm || bytes("layers.query").is_none());
        }
    }
}

/// In bf16, sums over micro-batches would lose what is below its rounding.
#[test]
fn gradients_are_in_bf16_where_none_are_added_up() {
    let spec = catalog::find("tinyllama-1.1b").unwrap().spec().unwrap();
    let gradients = |method, weights, gradient_accumulation| {
        let settings = RunSettings { weights, gradient_accumulation, ..RunSettings::default() };
        let settings = PlanSettings {
            settings: &settings,
            profile: DeviceProfile::native_cpu(),
            page_rates: PageRates::default(),
            available_bytes: u64::MAX,
        };
        let plan = plan::method_plan(&spec, method, settings, u64::MAX).unwrap();
        (plan.categories.gradients, plan::training_shape(&spec, method, settings).unwrap())
    };
    let (in_f32, shape) = gradients(Method::Full, WeightPrecision::F32, 1);
    assert_eq!(shape.gradients, FloatFormat::F32);
    for n_batches in [1, 2, 8] {
        let (bytes, shape) = gradients(Method::Full, WeightPrecision::Bf16, n_batches);
        let expected = if n_batches == 1 { FloatFormat::Bf16 } else { FloatFormat::F32 };
        assert_eq!(shape.gradients, expected, "{n_batches}");
        // All but the embedding, the output matrix and the norms.
        let matrices = shape.trained_tensors().filter(|tensor| {
            matches!(
                tensor.gradient(DeviceSlice::new(MemoryId(0), 0, bytes as usize)),
                Floats::Bf16(_)
            )
        });
        let saved: usize = matrices.map(|tensor| 2 * tensor.n_elements).sum();
        assert_eq!(bytes + saved as u64, in_f32, "{n_batches}");
        assert_eq!(saved > 0, n_batches == 1);
    }
    // An adapter's are in f32, whatever lies beside it.
    for method in [Method::Lora, Method::Qlora] {
        let (_, shape) = gradients(method, WeightPrecision::Bf16, 1);
        assert_eq!(shape.gradients, FloatFormat::F32);
    }
}
