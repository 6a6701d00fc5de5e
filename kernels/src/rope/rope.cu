// Rotation; the formula stands in mod.rs. Blocks have rows in y and the row's pairs in x, the grid the
// other way round; a thread has four neighbouring pairs of one head.

#include "quads.cuh"

// `sign`: 1 forward, -1 for the gradient.
template <class T>
__device__ __forceinline__ void rotate(const u32* positions, const f32* cos, const f32* sin, T* x,
                                       f32 sign, u32 n_rows, u32 n_heads, u32 half, u32 n_positions) {
    const u32 quads_of_head = ceil_div(half, 4u);
    const u32 row = blockIdx.x * blockDim.y + threadIdx.y;
    const u32 item = blockIdx.y * blockDim.x + threadIdx.x;
    const u32 head = item / quads_of_head;
    if (row >= n_rows || head >= n_heads) return;
    const u32 i = 4 * (item % quads_of_head);
    const u32 n_left = half - i;
    const bool aligned = are_rows_aligned(half, cos, sin, x);

    const u32 position = positions[row];
    quad c = four(nothing()), s = four(nothing());
    if (position < n_positions) {
        c = load_quad(cos + static_cast<u64>(position) * half + i, n_left, aligned);
        s = load_quad(sin + static_cast<u64>(position) * half + i, n_left, aligned);
    }
    T* low = x + (static_cast<u64>(row) * n_heads + head) * 2 * half + i;
    T* high = low + half;
    quad a = load_quad(low, n_left, aligned), b = load_quad(high, n_left, aligned);
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        const f32 turned = sign * s.of[k];
        const f32 first = a.of[k] * c.of[k] - b.of[k] * turned;
        b.of[k] = b.of[k] * c.of[k] + a.of[k] * turned;
        a.of[k] = first;
    }
    store_quad(low, a, n_left, aligned);
    store_quad(high, b, n_left, aligned);
}

#define ROTATE(format)                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        rope_rotate_##format(const u32* __restrict__ positions, const f32* __restrict__ cos,       \
                             const f32* __restrict__ sin, format* __restrict__ x, f32 sign,        \
                             u32 n_rows, u32 n_heads, u32 half, u32 n_positions) {                 \
        rotate(positions, cos, sin, x, sign, n_rows, n_heads, half, n_positions);                  \
    }
ROTATE(f32)
ROTATE(bf16)
