// The optimizer's update, every operation rounded as cpu.rs rounds it.

#include "blockwise.cuh"
#include "random.cuh"

constexpr u32 N_THREADS = 256;

// Factors of cpu.rs, and where in its region the first element stands.
struct Factors {
    u64 rounding_seed;
    u64 first_element;
    f32 gradient_scale;
    f32 decay;
    f32 one_minus_beta1;
    f32 beta2;
    f32 one_minus_beta2;
    f32 step_size;
    f32 correction2_root;
    f32 epsilon;
};

// As in cpu.rs: zero instead of a number that is subnormal.
__device__ __forceinline__ f32 normal(f32 x) {
    return fabsf(x) < 0x1p-126f ? 0.0f : x;
}

// Four parameters and their moments, by the gradient `g`; of moments in f32 none is left subnormal. The
// intrinsics keep products and sums apart.
template <bool IN_F32>
__device__ __forceinline__ void update(const Factors& factors, quad& w, const quad& g, quad& m,
                                       quad& v) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const f32 gradient = __fmul_rn(g.of[i], factors.gradient_scale);
        m.of[i] = __fmaf_rn(factors.one_minus_beta1, __fsub_rn(gradient, m.of[i]), m.of[i]);
        v.of[i] = __fmaf_rn(__fmul_rn(factors.one_minus_beta2, gradient), gradient,
                            __fmul_rn(v.of[i], factors.beta2));
        if (IN_F32) {
            m.of[i] = normal(m.of[i]);
            v.of[i] = normal(v.of[i]);
        }
        const f32 root = __fdiv_rn(__fsqrt_rn(v.of[i]), factors.correction2_root);
        const f32 step = __fdiv_rn(__fmul_rn(factors.step_size, m.of[i]),
                                   __fadd_rn(root, factors.epsilon));
        w.of[i] = __fsub_rn(__fmul_rn(w.of[i], factors.decay), step);
    }
}

// Stores `n` of four parameters, the first of which is the element at `index` of what is updated.
__device__ __forceinline__ void store(const Factors&, f32* place, const quad& w, u64, u32 n,
                                      bool aligned) {
    store_quad(place, w, n, aligned);
}

__device__ __forceinline__ void store(const Factors& factors, bf16* place, const quad& w, u64 index,
                                      u32 n, bool aligned) {
    bf16 rounded[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        rounded[i] = round_stochastically(w.of[i], factors.rounding_seed,
                                          factors.first_element + index + i);
    if (aligned && n >= 4) {
        const auto pair = [&](u32 i) {
            return rounded[i].bits | static_cast<u32>(rounded[i + 1].bits) << 16;
        };
        *reinterpret_cast<uint2*>(place) = make_uint2(pair(0), pair(2));
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        if (i < n) place[i] = rounded[i];
}

// A thread has four elements.
template <class Stored, class Gradient>
__device__ __forceinline__ void adamw(Stored* w, const Gradient* g, f32* m, f32* v, u64 n,
                                      const Factors& factors) {
    const u64 i = 4 * (static_cast<u64>(blockIdx.x) * N_THREADS + threadIdx.x);
    if (i >= n) return;
    const u32 n_left = static_cast<u32>(smaller<u64>(n - i, 4));
    const bool aligned = are_aligned(w, g, m, v);
    quad parameters = load_quad(w + i, n_left, aligned);
    quad first = load_quad(m + i, n_left, aligned);
    quad second = load_quad(v + i, n_left, aligned);
    update<true>(factors, parameters, load_quad(g + i, n_left, aligned), first, second);
    store(factors, w + i, parameters, i, n_left, aligned);
    store_quad(m + i, first, n_left, aligned);
    store_quad(v + i, second, n_left, aligned);
}

// Named by how parameters and gradients are stored.
#define ADAMW(name, STORED, GRADIENT)                                                              \
    extern "C" __global__ void __launch_bounds__(N_THREADS)                                        \
        adamw_##name(STORED* __restrict__ w, const GRADIENT* __restrict__ g, f32* __restrict__ m,  \
                     f32* __restrict__ v, u64 n, Factors factors) {                                \
        adamw(w, g, m, v, n, factors);                                                             \
    }
ADAMW(f32_f32, f32, f32)
ADAMW(f32_bf16, f32, bf16)
ADAMW(bf16_f32, bf16, f32)
ADAMW(bf16_bf16, bf16, bf16)

__device__ __forceinline__ f32 from_first_lane(f32 value) {
    return __shfl_sync(ALL_LANES, value, 0);
}

// A warp has one block of both moments after another.
template <class Stored, class Gradient>
__device__ __forceinline__ void adamw_blockwise(Stored* w, const Gradient* g, u8* m_codes, f32* m_absmax,
                                                u8* v_codes, f32* v_absmax, u64 n,
                                                const Factors& factors) {
    __shared__ DynamicCode m_code;
    __shared__ DynamicCode v_code;
    m_code.fill(DYNAMIC_SIGNED);
    v_code.fill(DYNAMIC_UNSIGNED);
    __syncthreads();
    constexpr u32 N_WARPS = N_THREADS / WARP;
    const bool aligned = are_aligned(w, g, m_codes, v_codes);
    const u64 n_blocks = ceil_div<u64>(n, MOMENT_BLOCK);
    for (u64 block = static_cast<u64>(blockIdx.x) * N_WARPS + warp(); block < n_blocks;
         block += static_cast<u64>(gridDim.x) * N_WARPS) {
        const u64 start = block * MOMENT_BLOCK;
        const u32 n_left = static_cast<u32>(smaller<u64>(n - start, MOMENT_BLOCK));
        const f32 m_scale = from_first_lane(lane() == 0 ? m_absmax[block] : 0.0f);
        const f32 v_scale = from_first_lane(lane() == 0 ? v_absmax[block] : 0.0f);
        quad updated[2], m[2], v[2];
        u32 m_largest = 0;
        u32 v_largest = 0;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u64 i = start + quad_start(half);
            const u32 len = quad_len(half, n_left);
            updated[half] = load_quad(w + i, len, aligned);
            m[half] = m_code.expand(load_codes(m_codes + i, len, aligned), m_scale, len);
            v[half] = v_code.expand(load_codes(v_codes + i, len, aligned), v_scale, len);
            update<false>(factors, updated[half], load_quad(g + i, len, aligned), m[half], v[half]);
            m_largest = max(m_largest, largest_magnitude(m[half]));
            v_largest = max(v_largest, largest_magnitude(v[half]));
        }
        m_largest = lanes_max<WARP>(m_largest);
        v_largest = lanes_max<WARP>(v_largest);
        if (!is_finite(m_largest) || !is_finite(v_largest)) continue;
        const bool is_short = n_left < MOMENT_BLOCK;
        const Scale m_new(__uint_as_float(m_largest), is_short);
        const Scale v_new(__uint_as_float(v_largest), is_short);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u64 i = start + quad_start(half);
            const u32 len = quad_len(half, n_left);
            store_codes(m_codes + i, quantize(m_code, m[half], m_new), len, aligned);
            store_codes(v_codes + i, quantize(v_code, v[half], v_new), len, aligned);
            store(factors, w + i, updated[half], i, len, aligned);
        }
        if (lane() == 0) {
            m_absmax[block] = m_new.absmax;
            v_absmax[block] = v_new.absmax;
        }
    }
}

#define ADAMW_BLOCKWISE(name, STORED, GRADIENT)                                                    \
    extern "C" __global__ void __launch_bounds__(N_THREADS)                                        \
        adamw_blockwise_##name(STORED* __restrict__ w, const GRADIENT* __restrict__ g,             \
                               u8* __restrict__ m_codes, f32* __restrict__ m_absmax,               \
                               u8* __restrict__ v_codes, f32* __restrict__ v_absmax, u64 n,        \
                               Factors factors) {                                                  \
        adamw_blockwise(w, g, m_codes, m_absmax, v_codes, v_absmax, n, factors);                   \
    }
ADAMW_BLOCKWISE(f32_f32, f32, f32)
ADAMW_BLOCKWISE(f32_bf16, f32, bf16)
ADAMW_BLOCKWISE(bf16_f32, bf16, f32)
ADAMW_BLOCKWISE(bf16_bf16, bf16, bf16)
