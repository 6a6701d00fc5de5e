// Quantisation to NF4 and back, bit for bit as host.rs does it.

#include "blockwise.cuh"

constexpr u32 N_THREADS = 256;

// Lanes that share a block of 64 numbers, eight a lane.
constexpr u32 LANES_OF_BLOCK = NF4_BLOCK / 8;
static_assert(LANES_OF_BLOCK * 8 == NF4_BLOCK && WARP % LANES_OF_BLOCK == 0);

// Four bits and four zeros a number: the codes of two numbers, the first in the upper half.
__device__ __forceinline__ u32 level_pair(const f32 (&borders)[15], f32 upper, f32 lower) {
    u32 codes = 0;
#pragma unroll
    for (u32 i = 0; i < 15; i++) codes += (upper > borders[i] ? 16 : 0) + (lower > borders[i] ? 1 : 0);
    return codes;
}

// A thread has eight numbers, and so four bytes of codes; those of a warp are four blocks.
extern "C" __global__ void __launch_bounds__(N_THREADS)
    nf4_quantize_blocks(const f32* __restrict__ source, u8* __restrict__ codes,
                        f32* __restrict__ absmax, u64 n) {
    const u64 i = 8 * (static_cast<u64>(blockIdx.x) * N_THREADS + threadIdx.x);
    // Threads beyond the end stay, as their warp takes maxima together.
    const u32 n_left = i < n ? static_cast<u32>(smaller<u64>(n - i, 8)) : 0;
    const bool aligned = are_aligned(source, codes);
    quad values[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 len = n_left > 4 * half ? n_left - 4 * half : 0;
        values[half] = load_quad(source + i + 4 * half, len, aligned);
    }
    const u32 largest = max(largest_magnitude(values[0]), largest_magnitude(values[1]));
    const u64 block = i / NF4_BLOCK;
    const bool is_short = (block + 1) * NF4_BLOCK > n;
    const Scale scale(__uint_as_float(lanes_max<LANES_OF_BLOCK>(largest)), is_short);
    if (n_left == 0) return;
    f32 borders[15];
#pragma unroll
    for (u32 level = 0; level < 15; level++)
        borders[level] = __fmul_rn(__fadd_rn(NF4_LEVELS[level], NF4_LEVELS[level + 1]), 0.5f);
    u32 packed = 0;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const quad shares = scale.shares(values[half]);
        packed |= level_pair(borders, shares.of[0], shares.of[1]) << (16 * half);
        packed |= level_pair(borders, shares.of[2], shares.of[3]) << (16 * half + 8);
    }
    store_codes(codes + i / 2, packed, ceil_div<u32>(n_left, 2), aligned);
    if (i % NF4_BLOCK == 0) absmax[block] = scale.absmax;
}

// The mean of the absmax values. One warp, and one sum from the first to the last: another order would
// give other bits. Some milliseconds for the largest matrices, whose numbers are read once a run.
extern "C" __global__ void __launch_bounds__(WARP)
    nf4_absmax_offset(const f32* __restrict__ absmax, f32* __restrict__ offset, u64 n_blocks) {
    f64 sum = 0.0;
    for (u64 start = 0; start < n_blocks; start += WARP) {
        const u64 i = start + lane();
        // A zero changes no sum.
        const f64 value = i < n_blocks ? absmax[i] : 0.0f;
#pragma unroll
        for (u32 from = 0; from < WARP; from++) sum += __shfl_sync(ALL_LANES, value, from);
    }
    if (lane() == 0)
        *offset = static_cast<f32>(sum / static_cast<f64>(larger<u64>(n_blocks, 1)));
}

// A warp has a group of 256 absmax values.
extern "C" __global__ void __launch_bounds__(N_THREADS)
    nf4_quantize_absmax(const f32* __restrict__ absmax, const f32* __restrict__ offset,
                        u8* __restrict__ codes, f32* __restrict__ scales, u64 n_blocks) {
    __shared__ DynamicCode code;
    code.fill(DYNAMIC_SIGNED);
    __syncthreads();
    const u64 group = static_cast<u64>(blockIdx.x) * (N_THREADS / WARP) + warp();
    const u64 start = group * NF4_ABSMAX_GROUP;
    if (start >= n_blocks) return;
    const u32 n_left = static_cast<u32>(smaller<u64>(n_blocks - start, NF4_ABSMAX_GROUP));
    const bool aligned = are_aligned(absmax, codes);
    const f32 mean = *offset;
    quad centred[2];
    u32 largest = 0;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 len = quad_len(half, n_left);
        centred[half] = load_quad(absmax + start + quad_start(half), len, aligned);
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (i < len) centred[half].of[i] = __fsub_rn(centred[half].of[i], mean);
        largest = max(largest, largest_magnitude(centred[half]));
    }
    const Scale scale(__uint_as_float(lanes_max<WARP>(largest)), n_left < NF4_ABSMAX_GROUP);
#pragma unroll
    for (u32 half = 0; half < 2; half++)
        store_codes(codes + start + quad_start(half), quantize(code, centred[half], scale),
                    quad_len(half, n_left), aligned);
    if (lane() == 0) scales[group] = scale.absmax;
}

// A thread has four numbers, of one block.
extern "C" __global__ void __launch_bounds__(N_THREADS)
    nf4_dequantize(const u8* __restrict__ codes, const u8* __restrict__ absmax_codes,
                   const f32* __restrict__ absmax_scales, const f32* __restrict__ absmax_offset,
                   f32* __restrict__ destination, u64 n) {
    // Lanes want any of the levels at once.
    __shared__ f32 levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = NF4_LEVELS[threadIdx.x];
    __syncthreads();
    const u64 i = 4 * (static_cast<u64>(blockIdx.x) * N_THREADS + threadIdx.x);
    if (i >= n) return;
    const u32 n_left = static_cast<u32>(smaller<u64>(n - i, 4));
    const bool aligned = are_aligned(codes, destination);
    const u64 block = i / NF4_BLOCK;
    const f32 absmax = __fadd_rn(
        __fmul_rn(DYNAMIC_SIGNED[absmax_codes[block]], absmax_scales[block / NF4_ABSMAX_GROUP]),
        *absmax_offset);
    const u8* place = codes + i / 2;
    const u32 packed = aligned && n_left == 4 ? *reinterpret_cast<const u16*>(place)
                                              : load_codes(place, ceil_div<u32>(n_left, 2), false);
    quad values;
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        // The first of a byte's two is in its upper half.
        const u32 code = packed >> (4 * (k ^ 1)) & 15;
        values.of[k] = __fmul_rn(levels[code], absmax);
    }
    store_quad(destination + i, values, n_left, aligned);
}
