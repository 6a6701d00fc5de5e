use super::{reference::attend, *};
use crate::{
    DeviceKind, DeviceProfile,
    testing::{Random, fetch, on_every_device, place, relative_error, workspace},
};

fn segment(start: u32, n: u32) -> Segment {
    Segment { query_start: start, n_queries: n, key_start: start, n_keys: n }
}

/// A shape, its segments, and whether it has as many queries as keys.
fn cases() -> Vec<(AttentionShape, Vec<Segment>)> {
    let shape = |n_rows, n_key_rows, n_heads, n_kv_heads, head_size, window| AttentionShape {
        n_rows,
        n_key_rows,
        n_heads,
        n_kv_heads,
        head_size,
        window,
        scale: 1.0 / (head_size as f32).sqrt(),
        max_segment: n_rows,
    };
    vec![
        (shape(1, 1, 1, 1, 2, None), vec![segment(0, 1)]),
        (shape(77, 77, 4, 2, 16, None), vec![segment(0, 77)]),
        // Packed sequences, one of a single token, and rows that belong to none.
        (shape(150, 150, 6, 3, 5, None), vec![segment(0, 40), segment(40, 1), segment(41, 101)]),
        (shape(200, 200, 2, 1, 64, Some(7)), vec![segment(0, 130), segment(130, 70)]),
        (shape(140, 140, 2, 2, 80, Some(64)), vec![segment(0, 140)]),
        (shape(67, 67, 3, 1, 128, None), vec![segment(0, 67)]),
        // Writing text: the last queries of a longer past.
        (
            shape(3, 150, 4, 2, 32, None),
            vec![Segment { query_start: 0, n_queries: 3, key_start: 0, n_keys: 150 }],
        ),
        (
            shape(1, 99, 4, 4, 16, Some(20)),
            vec![Segment { query_start: 0, n_queries: 1, key_start: 0, n_keys: 99 }],
        ),
    ]
}

/// Runs both passes; returns out, log-sum-exp, dq, dk, dv.
fn run(
    device: &mut impl Attention,
    shape: AttentionShape,
    segments: &[Segment],
    [q, k, v, dout]: [&[f32]; 4],
) -> [Vec<f32>; 5] {
    let profile = device.profile();
    let scratch = workspace(device, workspace_bytes(&profile, shape, true));
    let segments = place(device, segments);
    let [q, k, v, dout] = [q, k, v, dout].map(|values| place(device, values));
    let nans = |device: &mut _, n| place(device, &vec![f32::NAN; n]);
    let out = nans(device, q.len());
    let lse = nans(device, shape.n_rows * shape.n_heads);
    device.attention(shape, segments, q, k, v, out, lse, scratch);
    let (dq, dk, dv) = (nans(device, q.len()), nans(device, k.len()), nans(device, v.len()));
    device.attention_backward(shape, segments, q, k, v, out, lse, dout, dq, dk, dv, scratch);
    [out, lse, dq, dk, dv].map(|slice| fetch(device, slice))
}

fn inputs(shape: &AttentionShape, seed: u64) -> [Vec<f32>; 4] {
    let mut random = Random::new(seed);
    let (queries, keys) = (shape.n_rows * shape.n_heads, shape.n_key_rows * shape.n_kv_heads);
    [queries, keys, keys, queries].map(|n| random.normal(n * shape.head_size))
}

fn both_passes_match_the_reference(device: &mut impl Attention) {
    for (case, (shape, segments)) in cases().into_iter().enumerate() {
        let inputs = inputs(&shape, case as u64);
        let inputs = inputs.each_ref().map(Vec::as_slice);
        let exact = attend(&shape, &segments, inputs, |x| x);
        let plain = attend(&shape, &segments, inputs, |x| f64::from(x as f32));
        let actual = run(device, shape, &segments, inputs);
        let pairs = [
            ("out", exact.out, plain.out),
            ("log_sum_exp", exact.log_sum_exp, plain.log_sum_exp),
            ("dq", exact.dq, plain.dq),
            ("dk", exact.dk, plain.dk),
            ("dv", exact.dv, plain.dv),
        ];
        for ((name, exact, plain), actual) in pairs.into_iter().zip(actual) {
            let plain: Vec<f32> = plain.into_iter().map(|x| x as f32).collect();
            // A result that is one rounding in the plain version may be two in another order.
            let limit = 2.0 * relative_error(&plain, &exact) + 2.0 * f64::from(f32::EPSILON);
            let error = relative_error(&actual, &exact);
            assert!(error <= limit, "case {case}, {name}: {error:e} beyond {limit:e}");
        }
    }
}

on_every_device! {
    both_passes_match_the_reference,
}

#[test]
fn the_gradients_are_those_of_the_output() {
    let (shape, segments) = cases().remove(2);
    let inputs = inputs(&shape, 9);
    let slices = inputs.each_ref().map(Vec::as_slice);
    let result = attend(&shape, &segments, slices, |x| x);
    let loss = |inputs: &[Vec<f32>; 4]| -> f64 {
        let slices = inputs.each_ref().map(Vec::as_slice);
        let out = attend(&shape, &segments, slices, |x| x).out;
        out.iter().zip(&inputs[3]).map(|(o, d)| o * f64::from(*d)).sum()
    };
    for (which, gradient) in [&result.dq, &result.dk, &result.dv].into_iter().enumerate() {
        for at in (0..gradient.len()).step_by(gradient.len() / 17) {
            let difference = |step: f32| {
                let mut moved = inputs.clone();
                moved[which][at] += step;
                (loss(&moved), f64::from(moved[which][at]))
            };
            let ((up, above), (down, below)) = (difference(1e-2), difference(-1e-2));
            let slope = (up - down) / (above - below);
            // The central difference errs by step²/6 times the third derivative, of order one.
            assert!((slope - gradient[at]).abs() < 1e-3, "{which} {at}: {slope} {}", gradient[at]);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for (shape, segments) in cases() {
        let inputs = inputs(&shape, 3);
        let inputs = inputs.each_ref().map(Vec::as_slice);
        let results = [1, 2, 5].map(|n_threads| {
            let kind = DeviceKind::Cpu { isa: crate::Isa::best(), n_threads };
            let profile = DeviceProfile { kind, compute: crate::Compute::Bf16 };
            let mut device = crate::Cpu::new(profile).unwrap();
            run(&mut device, shape, &segments, inputs)
                .map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        assert!(results.iter().all(|result| *result == results[0]));
    }
}
