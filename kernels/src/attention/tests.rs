use super::{reference::attend, *};
use crate::{
    Compute, FloatFormat,
    testing::{
        Random, assert_as_close_as_plain, assert_same_on_any_number_of_threads, fetch,
        fetch_floats, on_every_device, place, place_in, relative_error, rounded_to_bf16, to_f32,
        unrounded, workspace,
    },
};

fn segment(start: u32, n: u32) -> Segment {
    Segment { query_start: start, n_queries: n, key_start: start, n_keys: n }
}

fn behind_pasts() -> Vec<Segment> {
    vec![
        Segment { query_start: 2, n_queries: 1, key_start: 5, n_keys: 40 },
        Segment { query_start: 10, n_queries: 8, key_start: 100, n_keys: 110 },
    ]
}

/// A shape, its segments, and whether it has as many queries as keys.
pub(super) fn cases() -> Vec<(AttentionShape, Vec<Segment>)> {
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
        // The widest that a card has kernels for.
        (shape(70, 70, 2, 1, 160, None), vec![segment(0, 70)]),
        (shape(90, 90, 2, 2, 136, Some(20)), vec![segment(0, 30), segment(30, 60)]),
        // Several tiles of queries and of keys, with and without a window over them.
        (shape(300, 300, 2, 1, 24, None), vec![segment(0, 300)]),
        (shape(270, 270, 1, 1, 16, Some(150)), vec![segment(0, 270)]),
        // Writing text: the last queries of a longer past.
        (
            shape(3, 150, 4, 2, 32, None),
            vec![Segment { query_start: 0, n_queries: 3, key_start: 0, n_keys: 150 }],
        ),
        (
            shape(1, 99, 4, 4, 16, Some(20)),
            vec![Segment { query_start: 0, n_queries: 1, key_start: 0, n_keys: 99 }],
        ),
        // Pasts of several, with rows of queries and of keys that belong to none.
        (shape(20, 220, 4, 4, 16, None), behind_pasts()),
        (shape(20, 220, 4, 2, 16, Some(7)), behind_pasts()),
    ]
}

/// Runs both passes; returns out, log-sum-exp, dq, dk, dv.
pub(super) fn run(
    device: &mut impl Attention,
    shape: AttentionShape,
    segments: &[Segment],
    inputs: [&[f32]; 4],
) -> [Vec<f32>; 5] {
    run_in(device, shape, segments, inputs, FloatFormat::F32, <[f32]>::to_vec)
}

/// The same with the output in a format, of which the backward pass reads what `left` makes.
fn run_in(
    device: &mut impl Attention,
    shape: AttentionShape,
    segments: &[Segment],
    [q, k, v, dout]: [&[f32]; 4],
    output: FloatFormat,
    left: fn(&[f32]) -> Vec<f32>,
) -> [Vec<f32>; 5] {
    let profile = device.profile();
    let scratch = workspace(device, workspace_bytes(&profile, shape, true));
    let segments = place(device, segments);
    let [q, k, v] = [q, k, v].map(|values| place_in(device, values, input_format(profile.compute)));
    let dout = place(device, dout);
    let nans = |device: &mut _, n| place(device, &vec![f32::NAN; n]);
    let out = place_in(device, &vec![f32::NAN; q.len()], output);
    let lse = nans(device, shape.n_rows * shape.n_heads);
    device.attention(shape, segments, q, k, v, out, lse, scratch);
    let attended = fetch_floats(device, out);
    let out = place_in(device, &left(&attended), output);
    let (dq, dk, dv) = (nans(device, q.len()), nans(device, k.len()), nans(device, v.len()));
    device.attention_backward(shape, segments, q, k, v, out, lse, dout, dq, dk, dv, scratch);
    let [lse, dq, dk, dv] = [lse, dq, dk, dv].map(|slice| fetch(device, slice));
    [attended, lse, dq, dk, dv]
}

pub(super) fn inputs(shape: &AttentionShape, seed: u64) -> [Vec<f32>; 4] {
    let mut random = Random::new(seed);
    let (queries, keys) = (shape.n_rows * shape.n_heads, shape.n_key_rows * shape.n_kv_heads);
    [queries, keys, keys, queries].map(|n| random.normal(n * shape.head_size))
}

fn both_passes_match_the_reference(device: &mut impl Attention) {
    for (case, (shape, segments)) in cases().into_iter().enumerate() {
        let inputs = inputs(&shape, case as u64);
        let inputs = inputs.each_ref().map(Vec::as_slice);
        let exact = attend(&shape, &segments, inputs, unrounded, unrounded);
        let compute = device.profile().compute;
        let seen = inputs.map(|values| crate::linear::rounded(values, compute));
        let seen = seen.each_ref().map(Vec::as_slice);
        let plain = attend(&shape, &segments, seen, to_f32, |x| match compute {
            Compute::F32 => x,
            Compute::Bf16 => half::bf16::from_f64(x).to_f64(),
        });
        let actual = run(device, shape, &segments, inputs);
        let pairs = [
            ("out", exact.out, plain.out),
            ("log_sum_exp", exact.log_sum_exp, plain.log_sum_exp),
            ("dq", exact.dq, plain.dq),
            ("dk", exact.dk, plain.dk),
            ("dv", exact.dv, plain.dv),
        ];
        for ((name, exact, plain), actual) in pairs.into_iter().zip(actual) {
            assert_as_close_as_plain(&format!("case {case}, {name}"), &actual, &exact, &plain);
        }
    }
}

/// In an output in bf16 stands what would be in f32, rounded, and the backward pass reads that.
fn an_output_in_bf16_is_rounded_once(device: &mut impl Attention) {
    use FloatFormat::{Bf16, F32};
    if device.profile().compute == Compute::F32 {
        return;
    }
    for (case, (shape, segments)) in cases().into_iter().enumerate() {
        let inputs = inputs(&shape, 7);
        let inputs = inputs.each_ref().map(Vec::as_slice);
        let mut run = |format, left| run_in(device, shape, &segments, inputs, format, left);
        let [out, lse, ..] = run(F32, <[f32]>::to_vec);
        let [_, _, dq, dk, dv] = run(F32, rounded_to_bf16);
        let expected = [rounded_to_bf16(&out), lse, dq, dk, dv];
        assert!(run(Bf16, <[f32]>::to_vec) == expected, "case {case}");
    }
}

fn results_do_not_depend_on_where_the_rows_lie(device: &mut impl Attention) {
    let (shape, segments) = cases().remove(3);
    let inputs = inputs(&shape, 8);
    let expected = run(device, shape, &segments, inputs.each_ref().map(Vec::as_slice));
    let scratch = workspace(device, workspace_bytes(&device.profile(), shape, true));
    let segments = place(device, &segments);
    // One number further on than the start of a block.
    let moved = |device: &mut _, values: &[f32], format| {
        let whole = place_in(device, &[&[0.0], values].concat(), format);
        whole.slice(1..whole.len())
    };
    let [q, k, v, dout] = inputs.each_ref();
    let format = input_format(device.profile().compute);
    let [q, k, v] = [q, k, v].map(|values| moved(device, values, format));
    let mut rows = |values: &[f32]| moved(device, values, FloatFormat::F32).into_f32();
    let (dout, out, dq) = (rows(dout), rows(&inputs[0]), rows(&inputs[0]));
    let (dk, dv) = (rows(&inputs[1]), rows(&inputs[1]));
    let lse = rows(&vec![0.0; shape.n_rows * shape.n_heads]);
    device.attention(shape, segments, q, k, v, out.into(), lse, scratch);
    device.attention_backward(shape, segments, q, k, v, out.into(), lse, dout, dq, dk, dv, scratch);
    assert!([out, lse, dq, dk, dv].map(|slice| fetch(device, slice)) == expected);
}

on_every_device! {
    results_do_not_depend_on_where_the_rows_lie,
    both_passes_match_the_reference,
    an_output_in_bf16_is_rounded_once,
    segments_see_nothing_but_themselves,
    writing_one_token_at_a_time_attends_as_all_at_once,
}

#[test]
fn the_gradients_are_those_of_the_output() {
    let (shape, segments) = cases().remove(2);
    let inputs = inputs(&shape, 9);
    let slices = inputs.each_ref().map(Vec::as_slice);
    let result = attend(&shape, &segments, slices, unrounded, unrounded);
    let loss = |inputs: &[Vec<f32>; 4]| -> f64 {
        let slices = inputs.each_ref().map(Vec::as_slice);
        let out = attend(&shape, &segments, slices, unrounded, unrounded).out;
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
        assert_same_on_any_number_of_threads(|device| run(device, shape, &segments, inputs).into());
    }
}

/// Rows of garbage outside the segments change nothing and come out as zero.
fn segments_see_nothing_but_themselves(device: &mut impl Attention) {
    let (shape, _) = cases().remove(2);
    let segments = [segment(3, 40), segment(50, 1), segment(60, 77)];
    let clean = inputs(&shape, 5);
    let mut dirty = clean.clone();
    let inside = |row: usize| {
        let row = row as u32;
        segments.iter().any(|s| (s.query_start..s.query_start + s.n_queries).contains(&row))
    };
    for values in &mut dirty {
        let width = values.len() / shape.n_rows;
        for (row, values) in values.chunks_mut(width).enumerate() {
            if !inside(row) {
                values.fill(f32::NAN);
            }
        }
    }
    let clean = run(device, shape, &segments, clean.each_ref().map(Vec::as_slice));
    let dirty = run(device, shape, &segments, dirty.each_ref().map(Vec::as_slice));
    for (clean, dirty) in clean.iter().zip(&dirty) {
        assert_eq!(clean, dirty);
        let width = dirty.len() / shape.n_rows;
        for (row, values) in dirty.chunks(width).enumerate() {
            assert!(inside(row) || values.iter().all(|value| *value == 0.0), "row {row}");
        }
    }
}

/// What a token reads does not depend on how many are computed with it.
fn writing_one_token_at_a_time_attends_as_all_at_once(device: &mut impl Attention) {
    let (shape, segments) = cases().remove(1);
    let inputs = inputs(&shape, 6);
    let [q, k, v, dout] = inputs.each_ref().map(Vec::as_slice);
    let whole = run(device, shape, &segments, [q, k, v, dout]);
    let exact = attend(&shape, &segments, [q, k, v, dout], unrounded, unrounded);
    let error = relative_error(&whole[0], &exact.out);
    let width = shape.n_heads * shape.head_size;
    for row in 0..shape.n_rows {
        let one = AttentionShape { n_rows: 1, n_key_rows: row + 1, max_segment: 1, ..shape };
        let n_keys = row as u32 + 1;
        let segment = Segment { query_start: 0, n_queries: 1, key_start: 0, n_keys };
        let range = row * width..(row + 1) * width;
        let keys = ..(row + 1) * shape.n_kv_heads * shape.head_size;
        let inputs = [&q[range.clone()], &k[keys], &v[keys], &dout[range.clone()]];
        let [out, ..] = run(device, one, &[segment], inputs);
        for (one, whole) in out.iter().zip(&whole[0][range]) {
            // Each is at most as far from the exact value as the tiles are at their worst.
            let scale = exact.out.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            assert!(f64::from((one - whole).abs()) <= 4.0 * error * scale, "row {row}");
        }
    }
}
