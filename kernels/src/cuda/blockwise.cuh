// Eight-bit block-wise quantisation with dynamic codes, bit for bit as blockwise.rs does it. A warp has
// a block of 256 numbers, and a lane of it two times four: those of its quad in either half.
#pragma once

#include "quads.cuh"
#include "tables.cuh"

// An absmax below this counts as this in divisions, so that a block of zeros has no NaN.
constexpr f32 LEAST_ABSMAX = 1e-38f;

// The numbers of one absmax, of a moment as of the absmax values of NF4.
constexpr u32 QUANTIZED_BLOCK = MOMENT_BLOCK;
static_assert(QUANTIZED_BLOCK == 8 * WARP && QUANTIZED_BLOCK == NF4_ABSMAX_GROUP,
              "a lane has eight numbers of a block");

// Where a lane's quad of a half begins in its block.
__device__ __forceinline__ u32 quad_start(u32 half) {
    return half * (QUANTIZED_BLOCK / 2) + 4 * lane();
}

// How many of that quad's numbers there are in a block of `n`.
__device__ __forceinline__ u32 quad_len(u32 half, u32 n) {
    const u32 start = quad_start(half);
    return start < n ? smaller<u32>(n - start, 4) : 0;
}

// Magnitudes compare as whole numbers like the numbers themselves, and a NaN is above all.
__device__ __forceinline__ u32 magnitude(f32 value) {
    return __float_as_uint(value) & 0x7fffffff;
}

__device__ __forceinline__ u32 largest_magnitude(const quad& values) {
    return max(max(magnitude(values.of[0]), magnitude(values.of[1])),
               max(magnitude(values.of[2]), magnitude(values.of[3])));
}

// The largest over `N_LANES` neighbouring lanes, a power of two, given to each.
template <u32 N_LANES>
__device__ __forceinline__ u32 lanes_max(u32 value) {
#pragma unroll
    for (u32 distance = N_LANES / 2; distance > 0; distance /= 2)
        value = max(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

__device__ __forceinline__ bool is_finite(u32 magnitude) {
    return magnitude < 0x7f800000;
}

// A whole number that rises with `value`; two of numbers in [-1, 1] have a difference that fits.
__device__ __forceinline__ i32 rank(f32 value) {
    const i32 bits = __float_as_int(value);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

// A code of 256 values, rising, in shared memory.
struct DynamicCode {
    f32 values[256];
    // The ranks of the middles between neighbours, where the nearest changes, as a search tree: below
    // and above node i are 2i and 2i + 1, from the root at 1. As a level's nodes are side by side,
    // the lanes of a warp seldom want different words of one bank.
    i32 borders[256];

    // Copies `table`; to be called by all threads of a block, which must wait before they use it.
    __device__ __forceinline__ void fill(const f32 (&table)[256]) {
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) {
            values[i] = table[i];
            if (i == 0) continue;
            // Level l has 2^l nodes, which halve what the levels above have left of 255 borders.
            const u32 level = 31 - __clz(i);
            const u32 border = ((2 * (i - (1u << level)) + 1) << (7 - level)) - 1;
            borders[i] = rank(__fmul_rn(__fadd_rn(table[border], table[border + 1]), 0.5f));
        }
    }

    // The index of the nearest value, the lower of two equally near: how many borders are below.
    __device__ __forceinline__ u32 nearest(f32 x) const {
        const i32 rank_of_x = rank(x);
        u32 node = 1;
#pragma unroll
        for (u32 level = 0; level < 8; level++)
            // 2 * node, and the difference's sign: 1 where the border is below.
            node = __funnelshift_l(borders[node] - rank_of_x, node, 1);
        return node - 256;
    }

    // The first `n` of four numbers by their codes, and zeros.
    __device__ __forceinline__ quad expand(u32 codes, f32 absmax, u32 n) const {
        quad numbers;
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            numbers.of[i] = i < n ? __fmul_rn(values[codes >> (8 * i) & 0xff], absmax) : 0.0f;
        return numbers;
    }
};

// What a block's numbers are multiplied by, or divided by in a tensor's short last block: the format's
// one irregularity.
struct Scale {
    // The absmax to keep.
    f32 absmax;
    f32 inverse;
    bool is_short;

    __device__ __forceinline__ Scale(f32 largest, bool is_short) : is_short(is_short) {
        // Of a NaN, the least.
        const f32 raised = fmaxf(largest, LEAST_ABSMAX);
        absmax = is_short ? raised : largest;
        inverse = __fdiv_rn(1.0f, raised);
    }

    // Numbers as shares of the absmax.
    __device__ __forceinline__ quad shares(const quad& values) const {
        quad shares;
        if (is_short) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) shares.of[i] = __fdiv_rn(values.of[i], absmax);
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; i++) shares.of[i] = __fmul_rn(values.of[i], inverse);
        }
        return shares;
    }
};

// The codes of four numbers, the first in the lowest byte.
__device__ __forceinline__ u32 quantize(const DynamicCode& code, const quad& values,
                                        const Scale& scale) {
    const quad shares = scale.shares(values);
    u32 codes = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) codes |= code.nearest(shares.of[i]) << (8 * i);
    return codes;
}

// The `n` codes from `place` on, at most four, and zeros. `aligned`: whether four may be read at once.
__device__ __forceinline__ u32 load_codes(const u8* place, u32 n, bool aligned) {
    if (aligned && n >= 4) return *reinterpret_cast<const u32*>(place);
    u32 codes = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        if (i < n) codes |= static_cast<u32>(place[i]) << (8 * i);
    return codes;
}

// Writes the first `n` of four, likewise.
__device__ __forceinline__ void store_codes(u8* place, u32 codes, u32 n, bool aligned) {
    if (aligned && n >= 4) {
        *reinterpret_cast<u32*>(place) = codes;
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        if (i < n) place[i] = static_cast<u8>(codes >> (8 * i));
}
