//! Long series in as many points as a screen has columns.

use egui_plot::PlotPoint;

/// A part of a series, thinned where it has more points than there is room for.
#[derive(Debug, Default)]
pub struct Thinned {
    /// What is left, in order.
    pub points: Vec<PlotPoint>,
    /// The same as a band; empty where nothing was left out.
    pub band: Band,
}

/// From the lowest to the highest value of each column.
#[derive(Debug, Default)]
pub struct Band {
    /// Where the columns are.
    pub steps: Vec<f64>,
    /// Their lowest values.
    pub lows: Vec<f64>,
    /// Their highest values.
    pub highs: Vec<f64>,
}

impl Thinned {
    /// Takes the part of a series within `range` (and one point beyond each end, so that lines
    /// reach the edges), in at most `2 * n_columns + 2` points: the lowest and the highest of each
    /// column. `xs` rise.
    pub fn update(&mut self, (xs, ys): (&[f64], &[f64]), range: (f64, f64), n_columns: usize) {
        let Self { points, band } = self;
        points.clear();
        for column in [&mut band.steps, &mut band.lows, &mut band.highs] {
            column.clear();
        }
        let n = xs.len().min(ys.len());
        let start = xs[..n].partition_point(|&x| x < range.0).saturating_sub(1);
        let end = n.min(xs[..n].partition_point(|&x| x <= range.1) + 1);
        if start >= end {
            return;
        }
        let n_columns = n_columns.max(1);
        let point = |i: usize| PlotPoint::new(xs[i], ys[i]);
        if end - start <= 2 * n_columns {
            points.extend((start..end).map(point));
            return;
        }
        let (first, last) = (xs[start], xs[end - 1]);
        let per_column = (last - first) / n_columns as f64;
        let mut next = start;
        for column in 1..=n_columns {
            let begin = next;
            let edge = first + per_column * column as f64;
            let rest = &xs[begin..end];
            next =
                if column == n_columns { end } else { begin + rest.partition_point(|&x| x < edge) };
            if begin == next {
                continue;
            }
            let (mut low, mut high) = (begin, begin);
            for i in begin..next {
                if ys[i] < ys[low] {
                    low = i;
                }
                if ys[i] > ys[high] {
                    high = i;
                }
            }
            points.push(point(low.min(high)));
            if low != high {
                points.push(point(low.max(high)));
            }
            band.steps.push((xs[begin] + xs[next - 1]) / 2.0);
            band.lows.push(ys[low]);
            band.highs.push(ys[high]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimated(n: usize, range: (f64, f64), n_columns: usize) -> Vec<PlotPoint> {
        let xs: Vec<f64> = (1..=n).map(|i| i as f64).collect();
        let ys: Vec<f64> = (1..=n).map(|i| ((i * 7919) % 1009) as f64).collect();
        let mut thinned = Thinned::default();
        thinned.update((&xs, &ys), range, n_columns);
        let Band { steps, lows, highs } = &thinned.band;
        assert_eq!((steps.len(), lows.len()), (lows.len(), highs.len()));
        assert!(steps.len() <= n_columns.max(1));
        assert!(lows.iter().zip(highs).all(|(low, high)| low <= high));
        thinned.points
    }

    #[test]
    fn extremes_survive_and_points_are_few() {
        for n_columns in [1, 7, 333, 1000] {
            let points = decimated(100_000, (1.0, 1e5), n_columns);
            assert!(points.len() <= 2 * n_columns + 2, "{} points", points.len());
            let range = |pick: fn(f64, f64) -> f64| points.iter().map(|p| p.y).reduce(pick);
            assert_eq!(range(f64::min), Some(0.0));
            assert_eq!(range(f64::max), Some(1008.0));
            assert!(points.windows(2).all(|pair| pair[0].x < pair[1].x), "the order is kept");
        }
    }

    #[test]
    fn few_points_are_all_kept() {
        assert_eq!(decimated(60, (1.0, 60.0), 100).len(), 60);
        assert_eq!(decimated(0, (0.0, 1.0), 100).len(), 0);
        assert_eq!(decimated(1, (0.0, 1.0), 0).len(), 1);
    }

    #[test]
    fn a_part_reaches_one_point_beyond_its_edges() {
        let points = decimated(1000, (100.0, 110.0), 100);
        assert_eq!((points[0].x, points[points.len() - 1].x), (99.0, 111.0));
        assert_eq!(decimated(1000, (5000.0, 6000.0), 100).len(), 1);
    }
}
