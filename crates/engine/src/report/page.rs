//! The page: pictures, numbers and settings in one file that any browser shows.

use std::fmt::Write;

use nibble_run::{Event, RunFolder};

use super::ReportError;

const STYLE: &str = "\
:root{color-scheme:light dark;--background:#fff;--text:#1c2127;--muted:#6b7480;--line:#e1e5ea}
@media(prefers-color-scheme:dark){:root{--background:#14171b;--text:#e6e9ed;--muted:#93a0ad;--line:#2c333b}
.light{display:none}}
@media(prefers-color-scheme:light){.dark{display:none}}
body{background:var(--background);color:var(--text);font:14px/1.5 system-ui,sans-serif;max-width:880px;margin:32px auto;padding:0 16px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:32px 0 8px}p{color:var(--muted);margin:0 0 16px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td{padding:4px 24px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
td+td{text-align:right}pre{white-space:pre-wrap;margin:0;font:inherit}.wide td{text-align:left}svg{max-width:100%;height:auto}
";

/// The page of a run.
///
/// # Errors
/// When the settings cannot be read.
pub fn page(
    folder: &RunFolder,
    events: &[Event],
    pictures: &[(String, String)],
) -> Result<String, ReportError> {
    let settings = folder.settings()?;
    let name = folder.path().file_name().unwrap_or_default().to_string_lossy();
    let mut page = String::new();
    let mut add = |text: &str| page.push_str(text);
    add("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">");
    add("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">");
    add(&format!("<title>{} · Nibble</title><style>{STYLE}</style>", escape(&name)));
    add(&format!(
        "<h1>{}</h1><p>{} on {}, {}</p>",
        escape(&name),
        settings.method.name(),
        escape(&settings.model.display().to_string()),
        escape(&settings.data.display().to_string())
    ));
    for (light, dark) in pictures {
        add(&format!("<div class=\"light\">{light}</div><div class=\"dark\">{dark}</div>"));
    }
    add("<h2>Result</h2><table>");
    add(&rows(&results(events)));
    add("</table>");
    if let Ok(plan) = folder.plan()
        && let Some(method) = plan.methods.first()
    {
        let parts = method.categories;
        let gib = |bytes: u64| format!("{:.3} GiB", bytes as f64 / (1_u64 << 30) as f64);
        add("<h2>Memory plan</h2><table>");
        add(&rows(&[
            ("Weights", gib(parts.weights)),
            ("Adapters", gib(parts.adapters)),
            ("Gradients", gib(parts.gradients)),
            ("Optimizer", gib(parts.optimizer)),
            ("Activations", gib(parts.activations)),
            ("Workspace", gib(parts.workspace)),
            ("Total", gib(method.peak_bytes)),
        ]));
        add("</table>");
    }
    let samples: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Sample { step, prompt, text } => Some((step, prompt, text)),
            _ => None,
        })
        .collect();
    if !samples.is_empty() {
        add("<h2>Samples</h2><table class=\"wide\">");
        for (step, prompt, text) in samples {
            add(&format!(
                "<tr><td>step {step}</td><td>{}</td><td><pre>{}</pre></td></tr>",
                escape(prompt),
                escape(text)
            ));
        }
        add("</table>");
    }
    add("<h2>Settings</h2><table class=\"wide\"><tr><td><pre>");
    let path = folder.path().join("run.toml");
    let text = std::fs::read_to_string(&path)
        .map_err(|source| nibble_run::RunError::Read { path, source })?;
    add(&escape(&text));
    add("</pre></td></tr></table></html>\n");
    Ok(page)
}

fn rows(rows: &[(&str, String)]) -> String {
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a string cannot fail.
        let _ = write!(text, "<tr><td>{name}</td><td>{}</td></tr>", escape(value));
        text
    })
}

fn results(events: &[Event]) -> Vec<(&'static str, String)> {
    let mut results = Vec::new();
    let mut speeds: Vec<f64> = Vec::new();
    for event in events {
        match event {
            Event::Step { tokens_per_s, .. } => speeds.push(*tokens_per_s),
            Event::Eval { loss, perplexity, .. } => {
                results.retain(|(name, _)| *name != "Held-out loss");
                results.push(("Held-out loss", format!("{loss:.4} (perplexity {perplexity:.2})")));
            }
            Event::Done { steps, final_loss, planned_peak_bytes, peak_rss_bytes, .. } => {
                let gib = |bytes: &u64| *bytes as f64 / (1_u64 << 30) as f64;
                results.push(("Steps", steps.to_string()));
                results.push(("Loss of the last step", format!("{final_loss:.4}")));
                results.push(("Planned peak", format!("{:.3} GiB", gib(planned_peak_bytes))));
                results
                    .push(("The most the process held", format!("{:.3} GiB", gib(peak_rss_bytes))));
            }
            _ => {}
        }
    }
    speeds.sort_by(f64::total_cmp);
    if let Some(median) = speeds.get(speeds.len() / 2) {
        results.push(("Median speed", format!("{median:.0} tokens/s")));
    }
    results
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
