// What every kernel uses: short names for the types, bf16, and sums over threads.
//
// NVRTC compiles without system headers, so that nothing but itself is needed to build the kernels:
// what <cuda_bf16.h> and <cstdint> would bring stands here.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;

// Threads of a warp.
constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffff;

// The upper half of an f32's bits.
struct bf16 {
    u16 bits;
};

template <class T>
__device__ __forceinline__ constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

template <class T>
__device__ __forceinline__ constexpr T smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
__device__ __forceinline__ constexpr T larger(T a, T b) {
    return a > b ? a : b;
}

// Whether 16 bytes at once may be read or written at every one of these.
template <class... T>
__device__ __forceinline__ bool are_aligned(const T*... pointers) {
    return ((reinterpret_cast<u64>(pointers) | ...) & 15) == 0;
}

__device__ __forceinline__ u32 lane() {
    return threadIdx.x % WARP;
}

__device__ __forceinline__ u32 warp() {
    return threadIdx.x / WARP;
}

// ---- bf16 ----

__device__ __forceinline__ f32 widen(bf16 value) {
    return __uint_as_float(static_cast<u32>(value.bits) << 16);
}

__device__ __forceinline__ f32 widen(f32 value) {
    return value;
}

// The lower and the upper of two in one word.
__device__ __forceinline__ f32 widen_lower(u32 pair) {
    return __uint_as_float(pair << 16);
}

__device__ __forceinline__ f32 widen_upper(u32 pair) {
    return __uint_as_float(pair & 0xffff0000);
}

// The nearest, of two equally near the even.
__device__ __forceinline__ bf16 to_bf16(f32 value) {
    bf16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(value));
    return rounded;
}

// Two in one word, `lower` at the lower address.
__device__ __forceinline__ u32 pack_bf16(f32 lower, f32 upper) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(upper), "f"(lower));
    return pair;
}

// ---- Mathematics ----

// 1 / (1 + e^-x), to the accuracy of expf; 0 and 1 at the far ends.
__device__ __forceinline__ f32 sigmoid(f32 x) {
    return 1.0f / (1.0f + expf(-x));
}

// ---- Sums and maxima over threads, always in the same order ----
//
// Lane i adds the value of lane i ^ distance. Both of a pair add the same two numbers, so that all
// lanes end with the same bits.

__device__ __forceinline__ f32 warp_sum(f32 value) {
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ __forceinline__ f64 warp_sum(f64 value) {
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ __forceinline__ f32 warp_max(f32 value) {
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// The sum over a block of N_THREADS (a multiple of 32, at most 1,024), given to every thread. All of
// them must call it.
template <u32 N_THREADS, class T>
__device__ __forceinline__ T block_sum(T value) {
    __shared__ T sums[N_THREADS / WARP];
    value = warp_sum(value);
    // Until here another call's sums may still be read.
    __syncthreads();
    if (lane() == 0) sums[warp()] = value;
    __syncthreads();
    return warp_sum(lane() < N_THREADS / WARP ? sums[lane()] : T(0));
}

// The maximum, likewise.
template <u32 N_THREADS>
__device__ __forceinline__ f32 block_max(f32 value) {
    __shared__ f32 maxima[N_THREADS / WARP];
    value = warp_max(value);
    __syncthreads();
    if (lane() == 0) maxima[warp()] = value;
    __syncthreads();
    return warp_max(maxima[lane() % (N_THREADS / WARP)]);
}
