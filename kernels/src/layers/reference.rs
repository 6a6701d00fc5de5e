//! One layer and its pair, naively: exactly in f64, and in plain f32 as a measure of what precision allows.

use crate::linear::rounded;

/// The extents of a layer and its pair; a rank of 0 is none.
#[derive(Clone, Copy)]
pub struct PairShape {
    pub n_rows: usize,
    pub n_in: usize,
    pub n_out: usize,
    pub rank: usize,
}

/// A number type to compute in.
pub trait Number:
    Copy + From<f32> + std::ops::Add<Output = Self> + std::ops::Mul<Output = Self> + std::ops::AddAssign
{
    /// What a product sees of the number; see [`Pair::products_see`].
    fn seen(self, compute: crate::Compute) -> Self;
}

impl Number for f32 {
    fn seen(self, compute: crate::Compute) -> Self {
        rounded(&[self], compute)[0]
    }
}

impl Number for f64 {
    /// Nothing is rounded: the truth that both precisions are held to.
    fn seen(self, _compute: crate::Compute) -> Self {
        self
    }
}

/// Inputs of both; `mask` holds 0 or `1 / (1 − p)` for each element of `x`.
pub struct Pair<'a> {
    pub shape: PairShape,
    pub scale: f32,
    pub mask: &'a [f32],
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub a: &'a [f32],
    pub b: &'a [f32],
    /// The precision in which products see their operands.
    pub products_see: crate::Compute,
}

/// What the backward pass leaves.
pub struct Gradients<N> {
    pub da: Vec<N>,
    pub db: Vec<N>,
    pub dx: Vec<N>,
}

impl Pair<'_> {
    /// `C[i, j] = Σ_k a(i, k) · b(k, j)`, summed in order.
    fn product<N: Number>(
        &self,
        (m, n, k): (usize, usize, usize),
        a: impl Fn(usize, usize) -> N,
        b: impl Fn(usize, usize) -> N,
    ) -> Vec<N> {
        let see = |number: N| number.seen(self.products_see);
        let mut c = Vec::with_capacity(m * n);
        for i in 0..m {
            for j in 0..n {
                let mut sum = N::from(0.0);
                for k in 0..k {
                    sum += see(a(i, k)) * see(b(k, j));
                }
                c.push(sum);
            }
        }
        c
    }

    /// `drop(x)[row, column]`.
    fn dropped<N: Number>(&self, row: usize, column: usize) -> N {
        let i = row * self.shape.n_in + column;
        N::from(self.x[i]) * N::from(self.mask[i])
    }

    /// `xa`, and what is added to `y`.
    pub fn forward<N: Number>(&self) -> (Vec<N>, Vec<N>) {
        let PairShape { n_rows, n_in, n_out, rank } = self.shape;
        let xa = self.product(
            (n_rows, rank, n_in),
            |t, i| self.dropped(t, i),
            |i, r| N::from(self.a[r * n_in + i]),
        );
        let pair = self.product(
            (n_rows, n_out, rank),
            |t, r| xa[t * rank + r],
            |r, o| N::from(self.b[o * rank + r]),
        );
        let layer = self.product(
            (n_rows, n_out, n_in),
            |t, i| N::from(self.x[t * n_in + i]),
            |i, o| N::from(self.weight[o * n_in + i]),
        );
        let bias = self.bias.iter().cycle();
        let sums = pair.into_iter().zip(layer).zip(bias);
        let y =
            sums.map(|((pair, layer), &bias)| layer + N::from(self.scale) * pair + N::from(bias));
        (xa, y.collect())
    }

    /// All gradients, of zero before.
    pub fn backward<N: Number>(&self, xa: &[N], dy: &[f32]) -> Gradients<N> {
        let PairShape { n_rows, n_in, n_out, rank } = self.shape;
        let scale = N::from(self.scale);
        let scaled = |sums: Vec<N>| sums.into_iter().map(|sum| scale * sum).collect::<Vec<_>>();
        let dy = |t: usize, o: usize| N::from(dy[t * n_out + o]);
        let dxa =
            scaled(self.product((n_rows, rank, n_out), dy, |o, r| N::from(self.b[o * rank + r])));
        let db =
            scaled(self.product((n_out, rank, n_rows), |o, t| dy(t, o), |t, r| xa[t * rank + r]));
        let da =
            self.product((rank, n_in, n_rows), |r, t| dxa[t * rank + r], |t, i| self.dropped(t, i));
        let dx = self.product(
            (n_rows, n_in, rank),
            |t, r| dxa[t * rank + r],
            |r, i| N::from(self.a[r * n_in + i]),
        );
        let layer =
            self.product((n_rows, n_in, n_out), dy, |o, i| N::from(self.weight[o * n_in + i]));
        let masked = dx.into_iter().zip(self.mask).map(|(dx, &mask)| dx * N::from(mask));
        let dx = masked.zip(layer).map(|(pair, layer)| layer + pair).collect();
        Gradients { da, db, dx }
    }
}
