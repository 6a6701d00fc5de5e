// The gated activation; the formulas stand in mod.rs. A thread has four elements: one access of 16
// bytes where the pointers allow it, single ones at the end.

#include "quads.cuh"

__device__ __forceinline__ f32 forward(f32 gate, f32 up) {
    return gate * sigmoid(gate) * up;
}

// Replaces `gate` and `up` by their gradients.
__device__ __forceinline__ void backward(f32 dy, f32& gate, f32& up) {
    f32 share = sigmoid(gate);
    f32 silu = gate * share;
    f32 dgate = dy * up * share * (1.0f + gate * (1.0f - share));
    up = dy * silu;
    gate = dgate;
}

template <class Output>
__device__ __forceinline__ void forward(const f32* gate, const f32* up, Output* y, u64 n) {
    const u64 i = 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (i >= n) return;
    const u32 n_left = static_cast<u32>(smaller(n - i, static_cast<u64>(4)));
    const bool aligned = are_aligned(gate, up, y);
    quad values = load_quad(gate + i, n_left, aligned);
    const quad ups = load_quad(up + i, n_left, aligned);
#pragma unroll
    for (u32 k = 0; k < 4; k++) values.of[k] = forward(values.of[k], ups.of[k]);
    store_quad(y + i, values, n_left, aligned);
}

#define FORWARD(suffix, Output)                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                               \
        swiglu_forward_##suffix(const f32* __restrict__ gate, const f32* __restrict__ up,           \
                                Output* __restrict__ y, u64 n) {                                    \
        forward(gate, up, y, n);                                                                    \
    }
FORWARD(f32, f32)
FORWARD(bf16, bf16)

extern "C" __global__ void __launch_bounds__(256)
    swiglu_backward(const f32* __restrict__ dy, f32* __restrict__ gate, f32* __restrict__ up, u64 n) {
    u64 i = 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (i + 4 <= n && are_aligned(dy, gate, up)) {
        float4 d = *reinterpret_cast<const float4*>(dy + i);
        float4 g = *reinterpret_cast<const float4*>(gate + i);
        float4 u = *reinterpret_cast<const float4*>(up + i);
        backward(d.x, g.x, u.x);
        backward(d.y, g.y, u.y);
        backward(d.z, g.z, u.z);
        backward(d.w, g.w, u.w);
        *reinterpret_cast<float4*>(gate + i) = g;
        *reinterpret_cast<float4*>(up + i) = u;
        return;
    }
    for (u64 end = smaller(i + 4, n); i < end; i++) backward(dy[i], gate[i], up[i]);
}
