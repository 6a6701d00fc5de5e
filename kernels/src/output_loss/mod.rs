//! Output projection fused with cross-entropy, over chunks of rows: the full logits never exist.
//!
//! ```text
//! logits[t, :] = x[t, :] · Wᵀ                              W [V, D]
//! loss[t]      = log Σ_v exp logits[t, v] − logits[t, target[t]]
//! dlogits      = gradient_scale · (softmax(logits) − onehot(target))
//! dx           = dlogits · W
//! dW     (store) dlogitsᵀ · x
//! ```
//! `gradient_scale` is one over the number of trained tokens of the whole optimizer step, so that
//! accumulated micro-batches of any lengths weigh every token alike.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use half::bf16;

use crate::{
    DeviceProfile,
    linear::{self, Linear, LinearShape, Weight},
    memory::{DeviceSlice, FloatFormat, Floats, Gradient, Memory, Store},
};

/// The extents of one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLossShape {
    /// Rows, every one with a target.
    pub n_rows: usize,
    /// D.
    pub width: usize,
    /// V.
    pub vocabulary: usize,
    /// Rows whose logits exist at a time.
    pub chunk_rows: usize,
}

/// What the backward half of the loss writes.
#[derive(Clone, Copy, Debug)]
pub struct OutputLossGradient {
    /// Factor on every gradient.
    pub scale: f32,
    /// `[n_rows, D]` `=`.
    pub dx: DeviceSlice<f32>,
    /// `[V, D]`, or not wanted.
    pub dweight: Option<Gradient>,
}

/// The loss and, in the same pass, its gradients.
pub trait OutputLoss: Memory {
    /// The cross-entropy of every row and, if wanted, the gradients.
    ///
    /// `x` `[n_rows, D]`, `weight` `[V, D]`, `targets` `[n_rows]` each below V,
    /// `losses` `[n_rows]` `=`, in nats; `workspace`: [`workspace_bytes`].
    fn output_loss(
        &mut self,
        shape: OutputLossShape,
        x: DeviceSlice<f32>,
        weight: Weight,
        targets: DeviceSlice<u32>,
        losses: DeviceSlice<f32>,
        gradient: Option<OutputLossGradient>,
        workspace: DeviceSlice<u8>,
    );

    /// `sum (store) Σ losses` in f64; `sum` one number, so that the host need not fetch those of each
    /// micro-batch.
    fn sum_losses(&mut self, losses: DeviceSlice<f32>, sum: DeviceSlice<f64>, store: Store);
}

/// Rows whose logits exist at a time: as many as 48 MiB hold, but no fewer than 256. Every chunk
/// expands the whole output matrix, and reads and writes its gradient, so that few rows are slow; the
/// logits of many are most of a small model's memory.
pub fn default_chunk_rows(vocabulary: usize) -> usize {
    const LOGITS: usize = (48 << 20) / size_of::<f32>();
    (LOGITS / vocabulary.max(1)).clamp(256, 1024) / 16 * 16
}

impl OutputLossShape {
    /// The product of one chunk.
    fn chunk(&self, n_rows: usize) -> LinearShape {
        LinearShape { n_rows, n_in: self.width, n_out: self.vocabulary }
    }

    /// Bytes of one chunk of logits, or of their gradient.
    fn logits_bytes(&self, format: FloatFormat) -> usize {
        const ALIGNMENT: usize = 256;
        let rows = self.chunk_rows.min(self.n_rows);
        let n_bytes = rows.saturating_mul(self.vocabulary).saturating_mul(format.n_bytes());
        n_bytes.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT)
    }
}

/// How the gradient of logits is stored: in their place; or, on a card, rounded beside them, where products would
/// first make that of it. The processor rounds on the way into its panels.
fn gradient_format(profile: &DeviceProfile, vocabulary: usize) -> FloatFormat {
    if profile.is_cuda() { linear::input_format(profile, vocabulary) } else { FloatFormat::F32 }
}

/// Bytes of workspace that `shape`, or fewer rows, needs on `profile`: one chunk of logits and the
/// products' own.
pub fn workspace_bytes(profile: &DeviceProfile, shape: OutputLossShape) -> usize {
    let chunk = shape.chunk(shape.chunk_rows.min(shape.n_rows));
    let format = gradient_format(profile, shape.vocabulary);
    let rounded = match format {
        FloatFormat::F32 => 0,
        FloatFormat::Bf16 => shape.logits_bytes(format),
    };
    let products = linear::workspace_bytes_of(profile, chunk, format);
    shape.logits_bytes(FloatFormat::F32).saturating_add(rounded).saturating_add(products)
}

/// The gradient of a chunk of logits.
#[derive(Clone, Copy, Debug)]
struct LogitsGradient {
    scale: f32,
    /// Where it goes rounded; `None`: in the place of the logits.
    rounded: Option<DeviceSlice<bf16>>,
}

/// What stands between the products of one chunk.
trait RowLosses: Linear {
    /// The losses of `logits` `[n, vocabulary]`, which become their gradient where that has no place of its own;
    /// `targets` and `losses` `[n]`.
    fn row_losses(
        &mut self,
        vocabulary: usize,
        logits: DeviceSlice<f32>,
        targets: DeviceSlice<u32>,
        losses: DeviceSlice<f32>,
        gradient: Option<LogitsGradient>,
    );
}

/// The operation on any device: for each chunk of rows the product, the losses, the two products of the
/// gradients.
fn in_chunks(
    device: &mut impl RowLosses,
    shape: OutputLossShape,
    (x, weight): (DeviceSlice<f32>, Weight),
    targets: DeviceSlice<u32>,
    losses: DeviceSlice<f32>,
    gradient: Option<OutputLossGradient>,
    workspace: DeviceSlice<u8>,
) {
    let OutputLossShape { n_rows, width, vocabulary, chunk_rows } = shape;
    let logits_bytes = shape.logits_bytes(FloatFormat::F32);
    let logits = workspace.first(logits_bytes).cast::<f32>();
    let mut products = workspace.slice(logits_bytes..workspace.len());
    let rounded = match gradient_format(&device.profile(), vocabulary) {
        FloatFormat::F32 => None,
        format @ FloatFormat::Bf16 => {
            let n_bytes = shape.logits_bytes(format);
            let rounded = products.first(n_bytes).cast::<bf16>();
            products = products.slice(n_bytes..products.len());
            Some(rounded)
        }
    };
    // Chunks of like size: each expands the whole output matrix, however few its rows.
    let chunk_rows = n_rows.div_ceil(n_rows.div_ceil(chunk_rows).max(1)).max(1);
    let mut dweight = gradient.and_then(|gradient| gradient.dweight);
    for first in (0..n_rows).step_by(chunk_rows) {
        let n = chunk_rows.min(n_rows - first);
        let chunk = shape.chunk(n);
        let rows = |matrix: DeviceSlice<f32>| matrix.slice(first * width..(first + n) * width);
        let logits = logits.first(n * vocabulary);
        let rounded = rounded.map(|rounded| rounded.first(n * vocabulary));
        device.linear(chunk, rows(x).into(), weight, None, Store::Overwrite, logits, products);
        device.row_losses(
            vocabulary,
            logits,
            targets.slice(first..first + n),
            losses.slice(first..first + n),
            gradient.map(|OutputLossGradient { scale, .. }| LogitsGradient { scale, rounded }),
        );
        let Some(gradient) = gradient else { continue };
        let (store, dx) = (Store::Overwrite, rows(gradient.dx));
        let dlogits: Floats = rounded.map_or(logits.into(), Floats::from);
        device.linear_input_gradient(chunk, dlogits, weight, store, dx, products);
        if let Some(dweight) = &mut dweight {
            let x = rows(x).into();
            device.linear_weight_gradient(chunk, x, dlogits, (*dweight).into(), products);
            dweight.store = Store::Accumulate;
        }
    }
    // Without a row there is no gradient.
    if let Some(Gradient { values, store: Store::Overwrite }) = dweight {
        device.clear(values);
    }
}
