//! The activation as its formulas read; every result goes through `round`.

fn sigmoid(x: f64, round: impl Fn(f64) -> f64) -> f64 {
    round(1.0 / round(1.0 + round((-x).exp())))
}

/// `y`.
pub fn forward(gate: &[f64], up: &[f64], round: impl Fn(f64) -> f64) -> Vec<f64> {
    let one = |(&gate, &up)| round(round(gate * sigmoid(gate, &round)) * up);
    gate.iter().zip(up).map(one).collect()
}

/// `dgate` and `dup`.
pub fn backward(
    dy: &[f64],
    gate: &[f64],
    up: &[f64],
    round: impl Fn(f64) -> f64,
) -> (Vec<f64>, Vec<f64>) {
    let one = |((&dy, &gate), &up): ((&f64, &f64), &f64)| {
        let share = sigmoid(gate, &round);
        let slope = round(share * round(1.0 + round(gate * round(1.0 - share))));
        (round(round(dy * up) * slope), round(dy * round(gate * share)))
    };
    dy.iter().zip(gate).zip(up).map(one).unzip()
}
