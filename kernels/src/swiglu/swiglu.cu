// The gated activation; the formulas stand in mod.rs. A thread has four numbers.

#include "quads.cuh"

__device__ __forceinline__ f32 forward(f32 gate, f32 up) {
    return gate * sigmoid(gate) * up;
}

// The gradients of `gate` and `up`.
__device__ __forceinline__ void backward(f32 dy, f32& gate, f32& up) {
    f32 share = sigmoid(gate);
    f32 silu = gate * share;
    f32 dgate = dy * up * share * (1.0f + gate * (1.0f - share));
    up = dy * silu;
    gate = dgate;
}

template <class Input, class Output>
__device__ __forceinline__ void forward(const Input* gate, const Input* up, Output* y, u64 n) {
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

// Replaces `gate` and `up` by their gradients.
template <class T>
__device__ __forceinline__ void backward(const f32* dy, T* gate, T* up, u64 n) {
    const u64 i = 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (i >= n) return;
    const u32 n_left = static_cast<u32>(smaller(n - i, static_cast<u64>(4)));
    const bool aligned = are_aligned(dy, gate, up);
    const quad slopes = load_quad(dy + i, n_left, aligned);
    quad gates = load_quad(gate + i, n_left, aligned), ups = load_quad(up + i, n_left, aligned);
#pragma unroll
    for (u32 k = 0; k < 4; k++) backward(slopes.of[k], gates.of[k], ups.of[k]);
    store_quad(gate + i, gates, n_left, aligned);
    store_quad(up + i, ups, n_left, aligned);
}

#define FORWARD(input, output)                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        swiglu_forward_##input##_to_##output(const input* __restrict__ gate,                       \
                                             const input* __restrict__ up, output* __restrict__ y, \
                                             u64 n) {                                              \
        forward(gate, up, y, n);                                                                   \
    }
FORWARD(f32, f32)
FORWARD(f32, bf16)
FORWARD(bf16, f32)
FORWARD(bf16, bf16)

#define BACKWARD(format)                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        swiglu_backward_##format(const f32* __restrict__ dy, format* __restrict__ gate,            \
                                 format* __restrict__ up, u64 n) {                                 \
        backward(dy, gate, up, n);                                                                 \
    }
BACKWARD(f32)
BACKWARD(bf16)
