// Cross-entropy of rows of logits, and their gradient in their place or rounded elsewhere; the formulas stand in
// mod.rs.

#include "quads.cuh"

constexpr u32 N_THREADS = 512;

// The lowest finite number: its difference to an infinite one is no NaN, as infinity's would be.
constexpr f32 LOWEST = -3.402823466e38f;

// A block has a row. It is read once for its maximum and its sum of exponentials: a thread keeps the
// sum as a multiple of e^highest, its highest logit so far (Milakov and Gimelshein, "Online normalizer
// calculation for softmax", 2018). Then, where the gradient is wanted, it is read again, and replaced unless there
// is a place for rounded numbers.
extern "C" __global__ void __launch_bounds__(N_THREADS)
    output_loss_rows(f32* logits, bf16* rounded, const u32* __restrict__ targets, f32* __restrict__ losses,
                     u32 vocabulary, f32 scale, u32 wants_gradient) {
    const u32 row = blockIdx.x;
    const bool aligned = are_rows_aligned(vocabulary, logits);
    logits += static_cast<u64>(row) * vocabulary;

    f32 highest = LOWEST, sum = 0.0f;
    for (u32 i = 4 * threadIdx.x; i < vocabulary; i += 4 * N_THREADS) {
        const u32 n_left = vocabulary - i;
        const quad values = load_quad(logits + i, n_left, aligned);
        f32 most = values.of[0];
#pragma unroll
        for (u32 k = 1; k < 4; k++)
            if (k < n_left) most = fmaxf(most, values.of[k]);
        if (most > highest) {
            sum *= expf(highest - most);
            highest = most;
        }
#pragma unroll
        for (u32 k = 0; k < 4; k++)
            if (k < n_left) sum += expf(values.of[k] - highest);
    }
    const f32 highest_of_row = block_max<N_THREADS>(highest);
    const f32 total = block_sum<N_THREADS>(sum * expf(highest - highest_of_row));

    const u32 target = targets[row];
    if (threadIdx.x == 0) {
        const f32 of_target = target < vocabulary ? logits[target] : nothing();
        losses[row] = highest_of_row + logf(total) - of_target;
    }
    if (!wants_gradient) return;
    // The target's logit may be replaced below.
    __syncthreads();

    const f32 factor = scale / total;
    for (u32 i = 4 * threadIdx.x; i < vocabulary; i += 4 * N_THREADS) {
        const u32 n_left = vocabulary - i;
        quad values = load_quad(logits + i, n_left, aligned);
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            values.of[k] = expf(values.of[k] - highest_of_row) * factor;
            if (i + k == target) values.of[k] -= scale;
        }
        if (rounded != nullptr)
            store_quad(rounded + static_cast<u64>(row) * vocabulary + i, values, n_left, aligned);
        else
            store_quad(logits + i, values, n_left, aligned);
    }
}

// The sum of all losses, beside what is there where that is wanted. One block: a thread adds every 512th
// loss, and then the threads' sums are added up.
extern "C" __global__ void __launch_bounds__(N_THREADS)
    output_loss_sum(const f32* __restrict__ losses, f64* __restrict__ sum, u32 n, u32 accumulates) {
    f64 own = 0.0;
    for (u32 i = threadIdx.x; i < n; i += N_THREADS) own += losses[i];
    const f64 all = block_sum<N_THREADS>(own);
    if (threadIdx.x == 0) *sum = accumulates ? *sum + all : all;
}
