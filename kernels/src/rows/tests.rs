use super::*;
use crate::testing::{Random, fetch, on_every_device, place};

/// Rows, width; every third row is moved.
const SHAPES: [(usize, usize); 4] = [(1, 1), (37, 123), (500, 77), (20, 20_000)];

fn adding_adds(device: &mut impl Rows) {
    for n in [1, 123, 1 << 14, 40_001] {
        let (x, y) = (Random::new(1).normal(n), Random::new(2).normal(n));
        let [x_slice, y_slice] = [&x, &y].map(|values| place(device, values));
        device.add(x_slice, y_slice);
        let expected: Vec<_> = x.iter().zip(&y).map(|(x, y)| y + x).collect();
        assert_eq!(fetch(device, y_slice), expected);
    }
}

fn rows_are_gathered_and_scattered_exactly(device: &mut impl Rows) {
    for (n_rows, width) in SHAPES {
        // Falling, so that neither direction is a plain copy.
        let index: Vec<u32> = (0..n_rows as u32).rev().step_by(3).collect();
        let x = Random::new(3).normal(n_rows * width);
        let (x_slice, index_slice) = (place(device, &x), place(device, &index));
        let y = place(device, &vec![f32::NAN; index.len() * width]);
        device.gather_rows(width, index_slice, x_slice, y);
        let gathered = fetch(device, y);
        assert_eq!(gathered, reference::gather(width, &index, &x));
        device.scatter_rows(width, index_slice, y, x_slice);
        let expected = reference::scatter(width, &index, &gathered, n_rows);
        assert_eq!(fetch(device, x_slice), expected);
    }
}

on_every_device! {
    adding_adds,
    rows_are_gathered_and_scattered_exactly,
}
