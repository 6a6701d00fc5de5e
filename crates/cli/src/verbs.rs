//! The verbs that answer at once.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use nibble_engine::{
    devices,
    evaluate::{EvaluateSettings, evaluate},
    export::{self, ExportError, ExportFormat},
    generate::{AnySession, SamplingSettings, SessionSettings},
    preview, train,
    weights::WeightFormat,
};
use nibble_run::{MethodPlan, PagingPlan, PlanReport, RunSettings, TrainingDevice};
use serde::Serialize;

use crate::{
    Failure,
    arguments::{
        DeviceArgument, EvalArguments, ExportArguments, FormatArgument, GenerateArguments,
        InspectArguments, PlanArguments, QuantizeArgument,
    },
    output::{self, say},
    show,
    train::{apply_columns, apply_sizes, device, failure, precision},
};

pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(Failure::running)?;
    say!("{text}");
    Ok(())
}

/// `nibble devices`.
pub fn devices(json: bool) -> Result<(), Failure> {
    let (devices, cuda) = (devices::devices(), devices::cuda());
    if json {
        return print_json(&serde_json::json!({ "devices": devices, "cuda": cuda }));
    }
    for device in &devices {
        say!(
            "{:<6} {}\n       {} total, {} free; {} threads, {}, products in {}",
            device.id.id(),
            device.name,
            show::bytes(device.total_bytes),
            show::bytes(device.free_bytes),
            device.n_threads,
            device.instructions,
            device.compute
        );
        let state = [
            device.temperature_celsius.map(|celsius| format!("{celsius:.0} °C")),
            device.power_watts.map(|watts| format!("{watts:.0} W")),
        ];
        let state: Vec<String> = state.into_iter().flatten().collect();
        if !state.is_empty() {
            say!("       {}", state.join(", "));
        }
    }
    if let Some(reason) = cuda.reason {
        say!("cuda   not available: {reason}");
    }
    Ok(())
}

/// `nibble plan`.
pub fn plan(arguments: &PlanArguments, json: bool) -> Result<(), Failure> {
    let mut settings = RunSettings::default();
    apply_sizes(&mut settings, &arguments.sizes);
    settings.device = device(arguments.sizes.device);
    let profile =
        devices::profile(settings.device, settings.threads, train::compute(settings.compute));
    // More than there is here is meant of another machine.
    let another =
        arguments.sizes.budget.filter(|&bytes| bytes > devices::available_bytes(&profile));
    let plan =
        || preview::plan_report(&arguments.model, &settings, another).map_err(Failure::input);
    let is_untimed = |method: &MethodPlan| method.paging.is_some_and(|p| p.step_seconds.is_none());
    if plan()?.methods.iter().any(is_untimed) {
        // Where a run would keep its page file, as long as none is named.
        devices::measure_page_rates(&profile, Path::new("."));
    }
    // The second plan of a process tells what every change of a setting costs in a window; the first
    // also brings the program's own code from the disk.
    let start = Instant::now();
    let report = plan()?;
    let time = start.elapsed();
    if json {
        return print_json(&report);
    }
    show_plan(&arguments.model, &report);
    say!("\nplanned in {:.2} ms", time.as_secs_f64() * 1e3);
    Ok(())
}

fn show_plan(model: &str, report: &PlanReport) {
    say!(
        "{model}: {} parameters, {} layers\n",
        show::count(report.model.parameters),
        report.model.layers
    );
    let row = |name: &str, of: &dyn Fn(&MethodPlan) -> String| {
        output::write(format_args!("{name:<14}"));
        for method in &report.methods {
            output::write(format_args!("{:>12}", of(method)));
        }
        say!("");
    };
    row("", &|method| method.method.name().to_owned());
    row("weights", &|m| show::bytes(m.categories.weights));
    row("adapters", &|m| show::bytes(m.categories.adapters));
    row("gradients", &|m| show::bytes(m.categories.gradients));
    row("optimizer", &|m| show::bytes(m.categories.optimizer));
    row("activations", &|m| show::bytes(m.categories.activations));
    row("workspace", &|m| show::bytes(m.categories.workspace));
    row("total", &|m| show::bytes(m.peak_bytes));
    row("  activations", &|m| match m.recomputed_layers {
        Some(0) => "kept".to_owned(),
        Some(n) if n < report.model.layers => {
            format!("{}/{} kept", report.model.layers - n, report.model.layers)
        }
        _ => "recomputed".to_owned(),
    });
    row("  would do with", &|m| if m.fits { show::bytes(m.smallest_bytes) } else { "–".into() });
    if report.methods.iter().any(|method| method.paging.is_some()) {
        let of = |of: fn(&PagingPlan) -> u64| {
            move |m: &MethodPlan| m.paging.map_or("–".into(), |p| show::bytes(of(&p)))
        };
        say!("outside");
        row("  optimizer", &of(|paging| paging.optimizer_bytes));
        row("  weights", &of(|paging| paging.weights_bytes));
        row("  activations", &of(|paging| paging.activations_bytes));
        row("  each step", &of(|paging| paging.step_bytes));
        row("  at most", &|m| {
            let seconds = m.paging.and_then(|paging| paging.step_seconds);
            seconds.map_or("–".into(), |seconds| format!("+{}", show::seconds(seconds)))
        });
    }
    let budget = show::bytes(report.budget_bytes);
    row(&format!("in {budget}"), &|m| if m.fits { "fits" } else { "too large" }.to_owned());
    for method in &report.methods {
        if let Some(bytes) = report.host_available_bytes.filter(|&bytes| method.host_bytes > bytes)
        {
            say!(
                "\n{} keeps {} in the computer's own memory, and {} is available there.",
                method.method.name(),
                show::bytes(method.host_bytes),
                show::bytes(bytes)
            );
        }
    }
    if report.device == TrainingDevice::Cuda {
        match report.device_overhead_bytes {
            Some(bytes) => say!(
                "\nThe card's driver takes another {}, which is not counted as available.",
                show::bytes(bytes)
            ),
            None => say!(
                "\nWhat the card's driver takes for itself comes on top; it is measured when the card \
                 is first used."
            ),
        }
    }
    for method in report.methods.iter().filter(|method| !method.fits) {
        if method.smallest_bytes < method.peak_bytes {
            let least = show::bytes(method.smallest_bytes);
            let name = method.method.name();
            say!("\n{name} fits in {least} with all paged that can be.");
        }
        if method.suggestions.is_empty() {
            say!("\n{} does not fit at any length or batch.", method.method.name());
        } else {
            say!("\n{} fits with", method.method.name());
            for suggestion in &method.suggestions {
                say!("  {} ({})", suggestion.change, show::bytes(suggestion.peak_bytes));
            }
        }
    }
}

/// `nibble inspect`.
pub fn inspect(arguments: &InspectArguments, json: bool) -> Result<(), Failure> {
    let mut settings = RunSettings { sequence: arguments.seq, ..RunSettings::default() };
    apply_columns(&mut settings, &arguments.columns);
    settings.data.clone_from(&arguments.data);
    settings.check().map_err(Failure::input)?;
    let to_the_end = &mut |_| ControlFlow::Continue(());
    let inspection = preview::inspect(&arguments.model, &settings, arguments.limit, to_the_end)
        .map_err(failure)?;
    if json {
        return print_json(&inspection);
    }
    say!(
        "{} examples ({}), {} tokens, {} of them trained on; {} cut at {} tokens, {} left out",
        show::count(inspection.examples as u64),
        inspection.format.name(),
        show::count(inspection.tokens as u64),
        show::count(inspection.trained_tokens as u64),
        inspection.cut,
        arguments.seq,
        inspection.skipped,
    );
    for line in &inspection.malformed {
        say!("line {}: {}", line.line, line.error);
    }
    let n_more = inspection.n_malformed - inspection.malformed.len();
    if n_more > 0 {
        say!("{} more lines cannot be read", show::count(n_more as u64));
    }
    for (i, sample) in inspection.samples.iter().enumerate() {
        say!("\nExample {} (trained on: \u{27e6}…\u{27e7})", i + 1);
        let mut inside = false;
        for (piece, &trained) in sample.pieces.iter().zip(&sample.trained) {
            if trained != inside {
                output::write(format_args!("{}", if trained { '\u{27e6}' } else { '\u{27e7}' }));
                inside = trained;
            }
            output::write(format_args!("{piece}"));
        }
        say!("{}", if inside { "\u{27e7}" } else { "" });
    }
    Ok(())
}

/// `nibble export`.
pub fn export(arguments: &ExportArguments, json: bool) -> Result<(), Failure> {
    let format = match arguments.format {
        FormatArgument::Adapter => ExportFormat::Adapter,
        FormatArgument::Merged => ExportFormat::Merged,
    };
    let to = std::path::absolute(&arguments.to).map_err(Failure::input)?;
    let report = export::export(&arguments.run, arguments.step, &to, format, &mut |_| {}).map_err(
        |error| match error {
            ExportError::Write { .. } | ExportError::Open(_) | ExportError::Differs { .. } => {
                Failure::running(error)
            }
            _ => Failure::input(error),
        },
    )?;
    if json {
        return print_json(&report);
    }
    say!("Exported to {}", report.path.display());
    say!(
        "Verified: read back, its logits differ from the run's by at most {}",
        show::difference(report.max_abs_logit_diff)
    );
    if let Some(second) = report.second_max_abs_logit_diff {
        let second = show::difference(second);
        say!("An independent implementation (candle) agrees within {second}");
    }
    Ok(())
}

fn session_settings(
    model: PathBuf,
    adapter: Option<PathBuf>,
    quantize: Option<QuantizeArgument>,
    compute: crate::arguments::ComputeArgument,
    device_argument: DeviceArgument,
    context: usize,
) -> SessionSettings {
    SessionSettings {
        model,
        adapter,
        weight_format: quantize.map(|QuantizeArgument::Nf4| WeightFormat::Nf4),
        context,
        profile: devices::profile(
            device(Some(device_argument)),
            None,
            train::compute(precision(compute)),
        ),
        cache: None,
    }
}

/// `nibble generate`.
pub fn generate(arguments: &GenerateArguments, json: bool) -> Result<(), Failure> {
    let GenerateArguments { model, adapter, quantize, compute, max_tokens, .. } = arguments.clone();
    // As long a prompt again as the answer, or a page, whichever is more.
    let context = max_tokens.saturating_mul(2).max(1024);
    let settings = session_settings(model, adapter, quantize, compute, arguments.device, context);
    let sampling = SamplingSettings {
        temperature: arguments.temperature,
        top_p: arguments.top_p,
        seed: arguments.seed,
        max_tokens,
    };
    sampling.check().map_err(Failure::input)?;
    let mut session = AnySession::open(&settings).map_err(Failure::session)?;
    let start = Instant::now();
    let mut text = String::new();
    let (n_tokens, _) = session
        .answer(&arguments.prompt, &sampling, |piece| {
            text.push_str(piece);
            if json {
                return true;
            }
            // A closed pipe is a reason to stop.
            output::write(format_args!("{piece}"))
        })
        .map_err(Failure::running)?;
    let tokens_per_s = n_tokens as f64 / start.elapsed().as_secs_f64();
    if json {
        let text = text.trim();
        return print_json(&serde_json::json!({
            "text": text, "tokens": n_tokens, "tokens_per_s": tokens_per_s,
        }));
    }
    say!("");
    Ok(())
}

/// `nibble eval`.
pub fn eval(arguments: &EvalArguments, json: bool) -> Result<(), Failure> {
    let EvalArguments { model, adapter, data, quantize, compute, device, seq, columns } =
        arguments.clone();
    let mut settings = RunSettings { sequence: seq, ..RunSettings::default() };
    settings.check().map_err(Failure::input)?;
    apply_columns(&mut settings, &columns);
    let settings = EvaluateSettings {
        session: session_settings(model, adapter, quantize, compute, device, seq),
        data,
        columns: train::column_mapping(&settings),
        tokenize: train::tokenize_options(&settings),
    };
    let evaluation = evaluate(&settings).map_err(Failure::session)?;
    if json {
        return print_json(&evaluation);
    }
    say!(
        "loss {:.4}, perplexity {:.3}, over {} trained tokens; {} examples cut",
        evaluation.loss,
        evaluation.perplexity,
        show::count(evaluation.trained_tokens),
        evaluation.cut,
    );
    Ok(())
}
