use nibble_run::{MetricsWriter, RunSettings};

use super::*;

/// A run folder with `n_steps` steps and, after every tenth, an evaluation.
fn run(folder: &Path, n_steps: u64) -> RunFolder {
    let run = RunFolder::create(&folder.join("a & run"), &RunSettings::default()).unwrap();
    let mut metrics = MetricsWriter::open(&run, 0).unwrap();
    for step in 1..=n_steps {
        let loss = 3.0 / (step as f64).sqrt();
        let event = Event::Step {
            step,
            loss,
            lr: 1e-4,
            grad_norm: 1.0,
            tokens: 512,
            tokens_per_s: 900.0 + (step % 7) as f64,
            // Lines that end in one place need their labels apart.
            host_bytes: 3 << 30,
            device_bytes: if n_steps.is_multiple_of(2) { 3 << 30 } else { 2 << 30 },
            paged_bytes: 0,
            card: None,
        };
        metrics.write(&event).unwrap();
        if step % 10 == 0 {
            let perplexity = loss.exp();
            let event = Event::Eval { step, loss, perplexity, trained_tokens: 9 };
            metrics.write(&event).unwrap();
        }
    }
    run
}

#[test]
fn runs_of_any_length_have_charts_and_a_page() {
    for n_steps in [0, 1, 2, 40, 5000] {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), n_steps);
        let page = fs::read_to_string(write(&run).unwrap()).unwrap();
        assert!(page.contains("a &amp; run") && page.ends_with("</html>\n"));
        for name in ["loss", "memory", "throughput"] {
            let png = fs::read(run.report().join(format!("{name}.png"))).unwrap();
            assert!(png.starts_with(b"\x89PNG"), "{n_steps} {name}");
            let svg = fs::read_to_string(run.report().join(format!("{name}.svg"))).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            assert!(!svg.contains("NaN"), "{n_steps} {name}");
        }
    }
}
