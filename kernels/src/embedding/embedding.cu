// Token embeddings; the formulas stand in mod.rs.

#include "quads.cuh"

// Blocks have tokens in y and columns in x, the grid the other way round; a thread has four columns.
template <class T>
__device__ __forceinline__ void forward(const u32* ids, const T* table, f32* y, u32 n_tokens, u32 n_rows,
                                        u32 width) {
    const u32 token = blockIdx.x * blockDim.y + threadIdx.y;
    const u32 i = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (token >= n_tokens || i >= width) return;
    const u32 id = ids[token];
    const quad values = id < n_rows
        ? load_quad(table + static_cast<u64>(id) * width + i, width - i, are_rows_aligned(width, table))
        : four(nothing());
    store_quad(y + static_cast<u64>(token) * width + i, values, width - i, are_rows_aligned(width, y));
}

extern "C" __global__ void __launch_bounds__(256)
    embedding_forward_f32(const u32* __restrict__ ids, const f32* __restrict__ table, f32* __restrict__ y,
                          u32 n_tokens, u32 n_rows, u32 width) {
    forward(ids, table, y, n_tokens, n_rows, width);
}

extern "C" __global__ void __launch_bounds__(256)
    embedding_forward_bf16(const u32* __restrict__ ids, const bf16* __restrict__ table,
                           f32* __restrict__ y, u32 n_tokens, u32 n_rows, u32 width) {
    forward(ids, table, y, n_tokens, n_rows, width);
}

// A warp has 128 columns of the gradient of one token's id, if no token before has the same; it adds
// the rows of all later ones of that id in their order. A few thousand ids are read from the cache,
// far quicker than the rows, so that nothing needs to be sorted, nor room to sort it in.
extern "C" __global__ void __launch_bounds__(128)
    embedding_backward(const u32* __restrict__ ids, const f32* __restrict__ dy, f32* __restrict__ dtable,
                       u32 n_tokens, u32 n_rows, u32 width) {
    const u32 first = blockIdx.x;
    const u32 id = ids[first];
    if (id >= n_rows) return;
    for (u32 start = 0; start < first; start += WARP) {
        const u32 token = start + lane();
        if (__ballot_sync(ALL_LANES, token < first && ids[token] == id) != 0) return;
    }

    const u32 i = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    const u32 n_left = i < width ? width - i : 0;
    const bool aligned = are_rows_aligned(width, dy, dtable);
    f32* place = dtable + static_cast<u64>(id) * width + i;
    quad sums = load_quad(place, n_left, aligned);
    for (u32 start = first; start < n_tokens; start += WARP) {
        const u32 token = start + lane();
        u32 same = __ballot_sync(ALL_LANES, token < n_tokens && ids[token] == id);
        for (; same != 0; same &= same - 1) {
            const u64 row = start + __ffs(same) - 1;
            const quad terms = load_quad(dy + row * width + i, n_left, aligned);
#pragma unroll
            for (u32 k = 0; k < 4; k++) sums.of[k] += terms.of[k];
        }
    }
    store_quad(place, sums, n_left, aligned);
}
