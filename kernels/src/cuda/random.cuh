// The random numbers of random.rs, and what is drawn with them: bit for bit those of the processor's
// backend, so that a run can go on on another device.
#pragma once

#include "basics.cuh"

// The number of `seed` at `index` (SplitMix64; Steele, Lea and Flood, 2014).
__device__ __forceinline__ u64 hash(u64 seed, u64 index) {
    u64 z = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// The element of an adapter's input at `index`, dropped or scaled up. `threshold`: the probability
// of dropping times 2^32, rounded down; `factor`: 1 / (1 - probability).
__device__ __forceinline__ f32 drop(f32 value, u64 seed, u64 index, u32 threshold, f32 factor) {
    u32 draw = static_cast<u32>(hash(seed, index) >> 32);
    return draw < threshold ? 0.0f : value * factor;
}

// `value` in bf16, up with the probability of the remainder, by the draw of the element at `index`: 16 bits of
// the random number that four share.
__device__ __forceinline__ bf16 round_stochastically(f32 value, u64 seed, u64 index) {
    // The exponent of what is not finite.
    constexpr u32 NOT_FINITE = 0x7f80;
    u32 bits = __float_as_uint(value);
    u32 draw = static_cast<u16>(hash(seed, index / 4) >> (16 * (index % 4)));
    u32 raised = (bits + draw) >> 16;
    // The largest numbers must not round up to infinity, nor what is not finite change its kind.
    bool leaves = (raised & NOT_FINITE) == NOT_FINITE;
    return bf16{static_cast<u16>(leaves ? bits >> 16 : raised)};
}
