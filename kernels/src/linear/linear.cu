// The kernels of cuda/product.rs: products in bf16 for every way in which operands lie and every form
// of weight, those in f32, and what comes before and after them.

#include "product.cuh"

// Where groups of warps multiply, tiles that are twice as tall: what is expanded then meets twice as many rows, and
// takes little longer than the products with it.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define TALL_PRODUCT(name, A_ACROSS, B_ACROSS, FORM) PRODUCT(name, 256, 128, A_ACROSS, B_ACROSS, FORM)
#else
#define TALL_PRODUCT(name, A_ACROSS, B_ACROSS, FORM)
#endif

// Named by how the operands are stored: "along" with k along its rows, "across" with k across them.
#define PRODUCT(name, M, N, A_ACROSS, B_ACROSS, FORM)                                              \
    extern "C" __global__ void __launch_bounds__(Tile<M, N, A_ACROSS, B_ACROSS>::N_THREADS)        \
        product_##name##_##M(const __grid_constant__ Product p) {                                  \
        multiply<M, N, A_ACROSS, B_ACROSS, FORM>(p);                                               \
    }
#define PRODUCT_OF_ALL_SIZES(name, A_ACROSS, B_ACROSS, FORM)                                       \
    TALL_PRODUCT(name, A_ACROSS, B_ACROSS, FORM)                                                   \
    PRODUCT(name, 128, 128, A_ACROSS, B_ACROSS, FORM)                                              \
    PRODUCT(name, 64, 64, A_ACROSS, B_ACROSS, FORM)

#define PRODUCTS_WITH_A_WEIGHT(name, B_ACROSS)                                                     \
    PRODUCT_OF_ALL_SIZES(name##_copied, false, B_ACROSS, Copied)                                   \
    PRODUCT_OF_ALL_SIZES(name##_f32, false, B_ACROSS, InF32)                                       \
    PRODUCT_OF_ALL_SIZES(name##_nf4, false, B_ACROSS, InNf4)                                       \
    PRODUCT(name##_irregular_bf16, 64, 64, false, B_ACROSS, Irregular<Bf16Element>)                \
    PRODUCT(name##_irregular_f32, 64, 64, false, B_ACROSS, Irregular<F32Element>)                  \
    PRODUCT(name##_irregular_nf4, 64, 64, false, B_ACROSS, Irregular<Nf4Element>)

// x · Wᵀ
PRODUCTS_WITH_A_WEIGHT(along_along, false)
// dy · W
PRODUCTS_WITH_A_WEIGHT(along_across, true)
// dyᵀ · x
PRODUCT_OF_ALL_SIZES(across_across_copied, true, true, Copied)

// Adds the parts of k in their order. A thread has one number.
extern "C" __global__ void __launch_bounds__(256)
    product_add_parts(const __grid_constant__ Product p) {
    const u64 at = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
    const u64 n_numbers = static_cast<u64>(p.m) * p.n;
    if (at >= n_numbers) return;
    f32 sum = 0.0f;
    for (u32 part = 0; part < p.n_parts; part++) sum += p.parts[part * n_numbers + at];
    const f32 value = finished(p, static_cast<u32>(at / p.n), static_cast<u32>(at % p.n), sum);
    store(p, p.is_rounded, at, value);
}

// Rows of an f32 matrix in bf16, padded with zeros to `stride`; as they are or dropped from. A thread has
// eight numbers.
extern "C" __global__ void __launch_bounds__(256)
    product_round(const f32* __restrict__ x, bf16* __restrict__ y, u64 n_chunks, u64 seed, u32 columns,
                  u32 stride, u32 drops, u32 threshold, f32 factor) {
    const u64 at = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
    if (at >= n_chunks) return;
    const u32 chunks = stride / 8;
    const u64 row = at / chunks;
    const u32 column = static_cast<u32>(at % chunks) * 8;
    const u64 from = row * columns + column;
    f32 values[8];
    if (columns % 4 == 0 && column + 8 <= columns && reinterpret_cast<u64>(x) % 16 == 0) {
        const float4* quads = reinterpret_cast<const float4*>(x + from);
        const float4 first = quads[0], second = quads[1];
        values[0] = first.x, values[1] = first.y, values[2] = first.z, values[3] = first.w;
        values[4] = second.x, values[5] = second.y, values[6] = second.z, values[7] = second.w;
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) values[i] = column + i < columns ? x[from + i] : 0.0f;
    }
    if (drops) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) values[i] = drop(values[i], seed, from + i, threshold, factor);
    }
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) words[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
    *reinterpret_cast<uint4*>(y + 8 * at) = make_uint4(words[0], words[1], words[2], words[3]);
}

// The same in f32, not padded.
extern "C" __global__ void __launch_bounds__(256)
    product_drop(const f32* __restrict__ x, f32* __restrict__ y, u64 n, u64 seed, u32 threshold,
                 f32 factor) {
    const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
    if (i < n) y[i] = drop(x[i], seed, i, threshold, factor);
}

// ---- In f32, for parity ----

constexpr u32 SIDE = 64;
constexpr u32 STEP = 16;

// A place of a tile and of its matrix.
struct Spot {
    u32 depth, side;
    bool is_there;
    u64 from;
};

// The i-th that a thread brings. Neighbouring threads read neighbouring numbers of a row.
template <bool ACROSS>
__device__ __forceinline__ Spot spot(u32 i, u32 start, u32 end, u32 k0, u32 k, u32 stride) {
    const u32 at = i * 256 + threadIdx.x;
    const u32 depth = ACROSS ? at / SIDE : at % STEP;
    const u32 side = ACROSS ? at % SIDE : at / STEP;
    const u64 from = ACROSS ? static_cast<u64>(k0 + depth) * stride + start + side
                            : static_cast<u64>(start + side) * stride + k0 + depth;
    return Spot{depth, side, start + side < end && k0 + depth < k, from};
}

// A block of 256 threads has 64 x 64 numbers of c, a thread 4 x 4; `a` is in f32 here.
template <bool A_ACROSS, bool B_ACROSS, class Element>
__device__ __forceinline__ void multiply_f32(const Product& p) {
    constexpr u32 N_THREADS = 256;
    // A column more than are used, so that turning meets other banks.
    __shared__ f32 a_tile[STEP][SIDE + 1];
    __shared__ f32 b_tile[STEP][SIDE + 1];
    __shared__ Tables tables;
    if (Element::HAS_TABLES) tables.fill(p);
    const f32* a = reinterpret_cast<const f32*>(p.a);
    const u32 n_blocks_m = ceil_div(p.m, SIDE);
    const u32 m0 = blockIdx.x % n_blocks_m * SIDE;
    const u32 n0 = blockIdx.x / n_blocks_m * SIDE;
    const u32 row = threadIdx.x / 16, column = threadIdx.x % 16;
    f32 sums[4][4] = {};
    for (u32 k0 = 0; k0 < p.k; k0 += STEP) {
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < SIDE * STEP / N_THREADS; i++) {
            const Spot at_a = spot<A_ACROSS>(i, m0, p.m, k0, p.k, p.a_stride);
            a_tile[at_a.depth][at_a.side] = at_a.is_there ? a[at_a.from] : 0.0f;
            const Spot at_b = spot<B_ACROSS>(i, n0, p.n, k0, p.k, p.b_stride);
            b_tile[at_b.depth][at_b.side] =
                at_b.is_there ? Element::at(p, p.b, tables, at_b.from) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (u32 depth = 0; depth < STEP; depth++)
#pragma unroll
            for (u32 i = 0; i < 4; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++)
                    sums[i][j] = fmaf(a_tile[depth][row + 16 * i], b_tile[depth][column + 16 * j],
                                      sums[i][j]);
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 r = m0 + row + 16 * i, c = n0 + column + 16 * j;
            if (r < p.m && c < p.n)
                store(p, p.is_rounded, static_cast<u64>(r) * p.n + c,
                      finished(p, r, c, sums[i][j]));
        }
}

#define PRODUCT_IN_F32(name, A_ACROSS, B_ACROSS, ELEMENT)                                          \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        product_in_f32_##name(const __grid_constant__ Product p) {                                 \
        multiply_f32<A_ACROSS, B_ACROSS, ELEMENT>(p);                                              \
    }
PRODUCT_IN_F32(along_along_bf16, false, false, Bf16Element)
PRODUCT_IN_F32(along_along_f32, false, false, F32Element)
PRODUCT_IN_F32(along_along_nf4, false, false, Nf4Element)
PRODUCT_IN_F32(along_across_bf16, false, true, Bf16Element)
PRODUCT_IN_F32(along_across_f32, false, true, F32Element)
PRODUCT_IN_F32(along_across_nf4, false, true, Nf4Element)
PRODUCT_IN_F32(across_across_f32, true, true, F32Element)

// ---- The gradient of a bias ----

// A thread has a column, and adds its rows in their order.
template <class T>
__device__ __forceinline__ void bias_gradient(const T* dy, f32* dbias, u32 n_rows, u32 n_out,
                                              u32 accumulates) {
    const u32 column = blockIdx.x * 64 + threadIdx.x;
    if (column >= n_out) return;
    f32 sum = accumulates ? dbias[column] : 0.0f;
    for (u32 row = 0; row < n_rows; row++) sum += widen(dy[static_cast<u64>(row) * n_out + column]);
    dbias[column] = sum;
}

#define BIAS_GRADIENT(format)                                                                      \
    extern "C" __global__ void __launch_bounds__(64)                                               \
        linear_bias_gradient_##format(const format* __restrict__ dy, f32* __restrict__ dbias,      \
                                      u32 n_rows, u32 n_out, u32 accumulates) {                    \
        bias_gradient(dy, dbias, n_rows, n_out, accumulates);                                      \
    }
BIAS_GRADIENT(f32)
BIAS_GRADIENT(bf16)
