use super::*;
use crate::{
    Compute,
    testing::{Random, fetch, on_every_device, place, relative_error, workspace},
};

/// Losses, dx, dW in f64, from inputs as the products see them.
fn reference(
    shape: &OutputLossShape,
    x: &[f32],
    w: &[f32],
    targets: &[u32],
    scale: f64,
) -> [Vec<f64>; 3] {
    let OutputLossShape { n_rows, width, vocabulary, .. } = *shape;
    let mut losses = vec![0.0; n_rows];
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    for row in 0..n_rows {
        let x = &x[row * width..(row + 1) * width];
        let logits: Vec<f64> = w
            .chunks(width)
            .map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum())
            .collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = most + logits.iter().map(|l| (l - most).exp()).sum::<f64>().ln();
        let target = targets[row] as usize;
        losses[row] = lse - logits[target];
        for v in 0..vocabulary {
            let onehot = f64::from(u8::from(v == target));
            let d = scale * ((logits[v] - lse).exp() - onehot);
            for i in 0..width {
                dx[row * width + i] += d * f64::from(w[v * width + i]);
                dw[v * width + i] += d * f64::from(x[i]);
            }
        }
    }
    [losses, dx, dw]
}

fn loss_and_gradients_match_the_reference(device: &mut impl OutputLoss) {
    let profile = device.profile();
    for (n_rows, width, vocabulary, chunk_rows) in
        [(1, 3, 2, 64), (5, 77, 123, 2), (33, 64, 300, 16), (40, 31, 17, 40)]
    {
        let shape = OutputLossShape { n_rows, width, vocabulary, chunk_rows };
        let mut random = Random::new(vocabulary as u64);
        let round = |values: Vec<f32>| crate::linear::rounded(&values, profile.compute);
        let x = round(random.normal(n_rows * width));
        let w = round(random.normal(vocabulary * width));
        let targets: Vec<u32> = (0..n_rows).map(|_| random.below(vocabulary) as u32).collect();
        let scale = 0.125;
        let expected = reference(&shape, &x, &w, &targets, scale);

        let scratch = workspace(device, workspace_bytes(&profile, shape));
        let (x, w) = (place(device, &x), place(device, &w));
        let targets = place(device, &targets);
        let nans = |device: &mut _, n| place(device, &vec![f32::NAN; n]);
        let (losses, dx) = (nans(device, n_rows), nans(device, n_rows * width));
        let dweight = place(device, &vec![0.0_f32; vocabulary * width]);
        let gradient = OutputLossGradient { scale: scale as f32, dx, dweight: Some(dweight) };
        let weight = Weight::F32(w);
        device.output_loss(shape, x, weight, targets, losses, Some(gradient), scratch);
        let trained = fetch(device, losses);
        // In f32: a rounding for each of the 77 terms of a logit at most, and of its softmax; in
        // bf16 the gradients of the logits are rounded to 9 bits as well.
        let limit = |rounded_logits: bool| match (profile.compute, rounded_logits) {
            (Compute::Bf16, true) => 2.0_f64.powi(-8),
            _ => 300.0 * f64::from(f32::EPSILON),
        };
        for (name, actual, expected, rounded) in [
            ("losses", trained.clone(), &expected[0], false),
            ("dx", fetch(device, dx), &expected[1], true),
            ("dweight", fetch(device, dweight), &expected[2], true),
        ] {
            let error = relative_error(&actual, expected);
            assert!(error <= limit(rounded), "{shape:?} {name}: {error:e}");
        }
        device.output_loss(shape, x, weight, targets, losses, None, scratch);
        assert_eq!(fetch(device, losses), trained, "the loss is the same without gradients");
    }
}

on_every_device! {
    loss_and_gradients_match_the_reference,
}
