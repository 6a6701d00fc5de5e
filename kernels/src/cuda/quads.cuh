// Four neighbouring numbers at a time: one access of 16 bytes where the place allows it, single ones
// where it does not. A thread has the same numbers either way, so that sums do not depend on where a
// tensor lies.
#pragma once

#include "basics.cuh"

struct alignas(16) quad {
    f32 of[4];
};

// What a place that does not exist would hold: it shows in every result that follows.
__device__ __forceinline__ f32 nothing() {
    return __uint_as_float(0x7fc00000);
}

__device__ __forceinline__ quad four(f32 value) {
    return quad{{value, value, value, value}};
}

// The `n` numbers from `place` on, at most four, and zeros. `aligned`: whether 16 bytes may be read
// there at once, if there are as many.
__device__ __forceinline__ quad load_quad(const f32* place, u32 n, bool aligned) {
    if (aligned && n >= 4) {
        const float4 all = *reinterpret_cast<const float4*>(place);
        return quad{{all.x, all.y, all.z, all.w}};
    }
    quad some = four(0.0f);
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        if (i < n) some.of[i] = place[i];
    return some;
}

// The same of numbers in bf16; 8 bytes.
__device__ __forceinline__ quad load_quad(const bf16* place, u32 n, bool aligned) {
    if (aligned && n >= 4) {
        const uint2 all = *reinterpret_cast<const uint2*>(place);
        return quad{{widen_lower(all.x), widen_upper(all.x), widen_lower(all.y), widen_upper(all.y)}};
    }
    quad some = four(0.0f);
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        if (i < n) some.of[i] = widen(place[i]);
    return some;
}

// Writes the first `n` of four, likewise.
__device__ __forceinline__ void store_quad(f32* place, const quad& values, u32 n, bool aligned) {
    if (aligned && n >= 4) {
        *reinterpret_cast<float4*>(place) =
            make_float4(values.of[0], values.of[1], values.of[2], values.of[3]);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        if (i < n) place[i] = values.of[i];
}

// The same, each rounded to bf16; 8 bytes.
__device__ __forceinline__ void store_quad(bf16* place, const quad& values, u32 n, bool aligned) {
    if (aligned && n >= 4) {
        *reinterpret_cast<uint2*>(place) = make_uint2(pack_bf16(values.of[0], values.of[1]),
                                                      pack_bf16(values.of[2], values.of[3]));
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        if (i < n) place[i] = to_bf16(values.of[i]);
}

// Whether every fourth number of every row of `width` may be accessed as `load_quad` asks.
template <class... T>
__device__ __forceinline__ bool are_rows_aligned(u32 width, const T*... rows) {
    return width % 4 == 0 && are_aligned(rows...);
}
