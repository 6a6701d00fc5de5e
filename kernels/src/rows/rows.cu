// Sums and moves; a thread has four numbers. `x` and `y` of one call never overlap.

#include "quads.cuh"

extern "C" __global__ void __launch_bounds__(256)
    rows_add(const f32* __restrict__ x, f32* __restrict__ y, u64 n) {
    const u64 i = 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (i >= n) return;
    const u32 n_left = static_cast<u32>(smaller<u64>(n - i, 4));
    const bool aligned = are_aligned(x, y);
    const quad terms = load_quad(x + i, n_left, aligned);
    quad sums = load_quad(y + i, n_left, aligned);
#pragma unroll
    for (u32 k = 0; k < 4; k++) sums.of[k] += terms.of[k];
    store_quad(y + i, sums, n_left, aligned);
}

// Blocks have rows in y and columns in x; the grid has them the other way round, because it may be
// long in x only.
extern "C" __global__ void __launch_bounds__(256)
    rows_gather(const u32* __restrict__ index, const f32* __restrict__ x, f32* __restrict__ y, u32 n,
                u32 n_rows, u32 width) {
    const u32 row = blockIdx.x * blockDim.y + threadIdx.y;
    const u32 i = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (row >= n || i >= width) return;
    const bool aligned = are_rows_aligned(width, x, y);
    const u32 from = index[row];
    const quad values = from < n_rows
        ? load_quad(x + static_cast<u64>(from) * width + i, width - i, aligned)
        : four(nothing());
    store_quad(y + static_cast<u64>(row) * width + i, values, width - i, aligned);
}

extern "C" __global__ void __launch_bounds__(256)
    rows_scatter(const u32* __restrict__ index, const f32* __restrict__ x, f32* __restrict__ y, u32 n,
                 u32 n_rows, u32 width) {
    const u32 row = blockIdx.x * blockDim.y + threadIdx.y;
    const u32 i = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (row >= n || i >= width) return;
    const bool aligned = are_rows_aligned(width, x, y);
    const u32 to = index[row];
    if (to >= n_rows) return;
    const quad values = load_quad(x + static_cast<u64>(row) * width + i, width - i, aligned);
    store_quad(y + static_cast<u64>(to) * width + i, values, width - i, aligned);
}
