// What the card could do at most; ceilings.rs tells how it is measured.

#include "random.cuh"
#include "tensor.cuh"

constexpr u32 N_THREADS = 256;

// Independent sums of a warp: with those of the other warps, more than hide a product's latency.
constexpr u32 N_TILES = 8;

// Two random numbers in bf16 whose magnitudes are in [1, 2): zeros would cost less power, and so run at
// a higher clock, than a model's numbers.
__device__ __forceinline__ u32 random_pair(u64 index) {
    return (static_cast<u32>(hash(0, index)) & 0x807f807f) | 0x3f803f80;
}

// The sum of `n_steps` products of tiles for each of a warp's sums, on registers alone.
__device__ __forceinline__ f32 products_of_warps(u64 thread, u32 n_steps) {
    u32 a[4];
    u32 b[N_TILES][2];
    f32 sums[N_TILES][4] = {};
#pragma unroll
    for (u32 i = 0; i < 4; i++) a[i] = random_pair((4 + 2 * N_TILES) * thread + i);
#pragma unroll
    for (u32 i = 0; i < 2 * N_TILES; i++)
        b[i / 2][i % 2] = random_pair((4 + 2 * N_TILES) * thread + 4 + i);
    for (u32 step = 0; step < n_steps; step++)
#pragma unroll
        for (u32 tile = 0; tile < N_TILES; tile++) multiply_tiles(sums[tile], a, b[tile]);
    f32 total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 4 * N_TILES; i++) total += sums[i / 4][i % 4];
    return total;
}

// The same by groups of warps, of twice as many sums half as often: operands lie in shared memory, as in the
// kernels. `n_steps` is a multiple of four.
__device__ __forceinline__ f32 products_of_groups(u64 thread, u32 n_steps) {
    // Sixteen rows for each warp, of 32 numbers; as many columns.
    constexpr u32 ROWS = 16 * N_THREADS / WARP, ROW_WORDS = 16, WORDS = ROWS * ROW_WORDS;
    constexpr u32 OF_THREAD = 2 * WORDS / N_THREADS;
    __shared__ __align__(1024) u32 tiles[2 * WORDS];
#pragma unroll
    for (u32 i = 0; i < OF_THREAD; i++) tiles[i * N_THREADS + threadIdx.x] = random_pair(OF_THREAD * thread + i);
    show_to_group_products();
    __syncthreads();
    const u32 a = shared_address(tiles) + group_of_warps() * (64 * 4 * ROW_WORDS);
    const u32 b = shared_address(tiles + WORDS);
    f32 sums[2 * N_TILES][4] = {};
    const auto begin = [&] {
        begin_group_products();
#pragma unroll
        for (u32 depth = 0; depth < 32; depth += 16)
            multiply_by_group<false, false>(sums, operand_along(a + 2 * depth), operand_along(b + 2 * depth));
        end_group_products();
    };
    begin();
    for (u32 step = 4; step < n_steps; step += 4) {
        begin();
        wait_for_group_products<1>();
    }
    wait_for_sums(sums);
    f32 total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 8 * N_TILES; i++) total += sums[i / 4][i % 4];
    return total;
}

// The products, and what a warp's sums come to, so that none can be left out.
extern "C" __global__ void __launch_bounds__(N_THREADS)
    ceilings_products(f32* __restrict__ totals, u32 n_steps) {
    const u64 thread = static_cast<u64>(blockIdx.x) * N_THREADS + threadIdx.x;
    f32 total;
    if constexpr (HAS_GROUP_PRODUCTS)
        total = products_of_groups(thread, n_steps);
    else
        total = products_of_warps(thread, n_steps);
    total = warp_sum(total);
    if (lane() == 0) totals[thread / WARP] = total;
}

// Copies; a thread moves four times 16 bytes.
extern "C" __global__ void __launch_bounds__(N_THREADS)
    ceilings_copy(const uint4* __restrict__ from, uint4* __restrict__ to) {
    const u64 first = static_cast<u64>(blockIdx.x) * (4 * N_THREADS) + threadIdx.x;
    uint4 moved[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) moved[i] = from[first + i * N_THREADS];
#pragma unroll
    for (u32 i = 0; i < 4; i++) to[first + i * N_THREADS] = moved[i];
}
