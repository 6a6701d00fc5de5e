use super::*;
use crate::testing::{Random, assert_same_on_any_number_of_threads, fetch, on_every_device, place};

/// Rows of the table, width, tokens.
const SHAPES: [(usize, usize, usize); 4] = [(1, 1, 9), (5, 123, 77), (300, 64, 1), (33, 1031, 150)];

fn ids(n_rows: usize, n: usize) -> Vec<u32> {
    let mut random = Random::new(n as u64);
    (0..n).map(|_| random.below(n_rows) as u32).collect()
}

fn rows_are_gathered_exactly(device: &mut impl Embedding) {
    for (n_rows, width, n) in SHAPES {
        let ids = ids(n_rows, n);
        let table = Random::new(1).normal(n_rows * width);
        let narrow: Vec<_> = table.iter().map(|&x| bf16::from_f32(x)).collect();
        let ids_slice = place(device, &ids);
        let y = place(device, &vec![f32::NAN; n * width]);
        let table_slice = EmbeddingTable::F32(place(device, &table));
        device.embedding(width, ids_slice, table_slice, y);
        assert_eq!(fetch(device, y), reference::forward(width, &ids, &table));
        let table_slice = EmbeddingTable::Bf16(place(device, &narrow));
        device.embedding(width, ids_slice, table_slice, y);
        let expected = reference::forward(width, &ids, &narrow);
        assert_eq!(fetch(device, y), expected.into_iter().map(f32::from).collect::<Vec<_>>());
    }
}

fn scatter(
    device: &mut impl Embedding,
    (n_rows, width, n): (usize, usize, usize),
) -> [Vec<f32>; 2] {
    let ids = ids(n_rows, n);
    let (dy, before) = (Random::new(2).normal(n * width), Random::new(3).normal(n_rows * width));
    let [dy_slice, dtable] = [&dy, &before].map(|values| place(device, values));
    let ids_slice = place(device, &ids);
    device.embedding_backward(width, ids_slice, dy_slice, dtable);
    let mut expected = before;
    reference::backward(width, &ids, &dy, &mut expected);
    [fetch(device, dtable), expected]
}

fn gradients_are_summed_in_the_order_of_the_tokens(device: &mut impl Embedding) {
    for shape in SHAPES {
        let [actual, expected] = scatter(device, shape);
        assert_eq!(actual, expected, "{shape:?}");
    }
}

on_every_device! {
    rows_are_gathered_exactly,
    gradients_are_summed_in_the_order_of_the_tokens,
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for shape in SHAPES {
        assert_same_on_any_number_of_threads(|device| scatter(device, shape).into());
    }
}
