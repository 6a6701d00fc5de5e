//! Normalisation as its formulas read, one row at a time; every result goes through `round`.

/// A sum in order.
fn sum(terms: impl Iterator<Item = f64>, round: impl Fn(f64) -> f64) -> f64 {
    terms.fold(0.0, |sum, term| round(sum + round(term)))
}

fn inverse_deviation(x: &[f64], epsilon: f64, round: impl Fn(f64) -> f64) -> f64 {
    let mean = round(sum(x.iter().map(|x| x * x), &round) / x.len() as f64);
    round(1.0 / round(round(mean + epsilon).sqrt()))
}

/// `y`.
pub fn forward(x: &[f64], weight: &[f64], epsilon: f64, round: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks(weight.len()) {
        let rstd = inverse_deviation(x, epsilon, &round);
        y.extend(x.iter().zip(weight).map(|(x, w)| round(round(x * rstd) * w)));
    }
    y
}

/// `dx` and `dw`, not added to anything.
pub fn backward(
    x: &[f64],
    weight: &[f64],
    epsilon: f64,
    dy: &[f64],
    round: impl Fn(f64) -> f64,
) -> (Vec<f64>, Vec<f64>) {
    let width = weight.len();
    let mut dx = Vec::with_capacity(x.len());
    let mut dweight = vec![0.0; width];
    for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
        let rstd = inverse_deviation(x, epsilon, &round);
        let products = (0..width).map(|i| round(weight[i] * dy[i]) * x[i]);
        let mean = round(sum(products, &round) / width as f64);
        let along = round(round(mean * rstd) * rstd);
        for i in 0..width {
            dx.push(round(rstd * round(round(weight[i] * dy[i]) - round(x[i] * along))));
            dweight[i] = round(dweight[i] + round(round(dy[i] * x[i]) * rstd));
        }
    }
    (dx, dweight)
}
