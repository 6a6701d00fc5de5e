//! Causal grouped-query attention without the T×T matrix (Dao et al., "FlashAttention", 2022).
//!
//! ```text
//! s[i, j] = scale · q[i] · k[j]      j ≤ i, i − j < window, same segment
//! lse[i]  = log Σ_j exp s[i, j]
//! p[i, j] = exp(s[i, j] − lse[i])
//! out[i]  = Σ_j p[i, j] · v[j]
//!
//! delta[i] = Σ_d dout[i, d] · out[i, d]
//! dv[j]   += Σ_i p[i, j] · dout[i]
//! ds[i, j] = p[i, j] · (dout[i] · v[j] − delta[i])
//! dq[i]   += scale · Σ_j ds[i, j] · k[j]
//! dk[j]   += scale · Σ_i ds[i, j] · q[i]
//! ```
//! Query head `h` reads key/value head `h / (H / G)`. `s` is made in tiles and never stored; the
//! backward pass makes it again from `lse`. The inputs of every product (`q`, `k`, `v`, `p`, `dout`,
//! `ds`) are rounded where the device multiplies in bf16.
//!
//! A [`Segment`] is one sequence. Packed sequences are several segments of one batch and do not see
//! each other. Generation has fewer queries than keys: the last query sees the last key.

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use cuda::MAX_HEAD_SIZE as MAX_CARD_HEAD_SIZE;

use crate::{
    Compute, DeviceKind, DeviceProfile,
    memory::{DeviceSlice, Element, FloatFormat, Floats, Memory},
};

/// The extents of one attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// T, rows of `q`.
    pub n_rows: usize,
    /// Rows of `k` and `v`: T in training, the filled cache in generation.
    pub n_key_rows: usize,
    /// H.
    pub n_heads: usize,
    /// G; divides H.
    pub n_kv_heads: usize,
    /// K.
    pub head_size: usize,
    /// Keys that a query sees, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Factor on the scores, above zero; usually 1/√K.
    pub scale: f32,
    /// The most queries any segment has; sizes the workspace.
    pub max_segment: usize,
}

/// One sequence: its rows among the queries and among the keys.
/// Query `i` of the segment sees keys up to `n_keys − n_queries + i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Segment {
    /// First row of `q`.
    pub query_start: u32,
    /// Rows of `q`.
    pub n_queries: u32,
    /// First row of `k` and `v`.
    pub key_start: u32,
    /// Rows of `k` and `v`; at least `n_queries`.
    pub n_keys: u32,
}

impl Element for Segment {
    const NAME: &'static str = "segment";
}

/// The attention, forward and backward.
pub trait Attention: Memory {
    /// `out` and `log_sum_exp` of every query in a segment; other rows are set to zero.
    ///
    /// `q` `[T, H·K]`, `k`, `v` `[n_key_rows, G·K]`, all in [`input_format`]; `out` `[T, H·K]` `=`, in bf16
    /// rounded; `log_sum_exp` `[T, H]` `=`; `workspace`: [`workspace_bytes`].
    fn attention(
        &mut self,
        shape: AttentionShape,
        segments: DeviceSlice<Segment>,
        q: Floats,
        k: Floats,
        v: Floats,
        out: Floats,
        log_sum_exp: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    );

    /// The gradients of `q`, `k` and `v`.
    ///
    /// Inputs as given to and left by [`Attention::attention`], `dout` `[T, H·K]`;
    /// `dq` `[T, H·K]` `=`, `dk`, `dv` `[n_key_rows, G·K]` `=`.
    fn attention_backward(
        &mut self,
        shape: AttentionShape,
        segments: DeviceSlice<Segment>,
        q: Floats,
        k: Floats,
        v: Floats,
        out: Floats,
        log_sum_exp: DeviceSlice<f32>,
        dout: DeviceSlice<f32>,
        dq: DeviceSlice<f32>,
        dk: DeviceSlice<f32>,
        dv: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    );
}

/// How queries, keys and values are stored: as the products see them.
pub fn input_format(compute: Compute) -> FloatFormat {
    match compute {
        Compute::F32 => FloatFormat::F32,
        Compute::Bf16 => FloatFormat::Bf16,
    }
}

/// Bytes of workspace that `shape` needs on `profile`, forward alone or with the backward pass.
pub fn workspace_bytes(profile: &DeviceProfile, shape: AttentionShape, backward: bool) -> usize {
    let DeviceKind::Cpu { n_threads, .. } = profile.kind else {
        return cuda::workspace_bytes(profile, shape, backward);
    };
    cpu::workspace_len(profile, &shape, n_threads, backward).saturating_mul(size_of::<f32>())
}
