//! The table of `--profile`.

use nibble_run::OperationTime;

use crate::output::say;

/// Prints where the time of `n_steps` steps of `seconds` in all went, most first, beside what the
/// device could do at most: multiplications and additions, and copied bytes, a second.
pub fn show(
    n_steps: u64,
    seconds: f64,
    operations: &[OperationTime],
    (product_flops_per_s, copy_bytes_per_s): (Option<f64>, Option<f64>),
) {
    if n_steps == 0 {
        say!("\nNothing to tell of the steps: the first is never watched, and there was no other.");
        return;
    }
    let of_step = |seconds: f64| seconds / n_steps as f64 * 1e3;
    let share = |of: f64| 100.0 * of / seconds;
    let mut operations: Vec<&OperationTime> = operations.iter().collect();
    operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let ceilings = match (product_flops_per_s, copy_bytes_per_s) {
        (Some(flops), Some(bytes)) => {
            let (flops, bytes) = (flops / 1e9, bytes / 1e9);
            format!(". Ceilings: {flops:.0} GFLOP/s in products, {bytes:.1} GB/s in copies")
        }
        _ => String::new(),
    };
    say!("\n{n_steps} steps of {:.1} ms{ceilings}", of_step(seconds));
    let of_ceiling = if ceilings.is_empty() { "rate" } else { "rate, of ceiling" };
    say!("{:<20} {:>8} {:>10} {:>7} {of_ceiling:>19}", "a step", "calls", "ms", "time");
    let percent = |rate: f64, ceiling: Option<f64>| {
        ceiling.map_or(String::new(), |ceiling| format!("{:>3.0}%", 100.0 * rate / ceiling))
    };
    for operation in &operations {
        let (of, unit, ceiling) = if operation.flops > 0.0 {
            (operation.flops, "GFLOP/s", product_flops_per_s)
        } else {
            (operation.bytes, "GB/s", copy_bytes_per_s)
        };
        let rate = of / operation.seconds;
        say!(
            "{:<20} {:>8.0} {:>10.2} {:>6.1}% {:>7.1} {unit:<7} {}",
            operation.name,
            operation.calls as f64 / n_steps as f64,
            of_step(operation.seconds),
            share(operation.seconds),
            rate / 1e9,
            percent(rate, ceiling)
        );
    }
    let between = seconds - operations.iter().map(|operation| operation.seconds).sum::<f64>();
    let ms = of_step(between);
    say!("{:<20} {:>8} {ms:>10.2} {:>6.1}%", "between operations", "", share(between));
    let rate = operations.iter().map(|operation| operation.flops).sum::<f64>() / seconds;
    say!(
        "{:<20} {:>8} {:>10.2} {:>6.1}% {:>7.1} {:<7} {}",
        "all",
        "",
        of_step(seconds),
        100.0,
        rate / 1e9,
        "GFLOP/s",
        percent(rate, product_flops_per_s)
    );
}
