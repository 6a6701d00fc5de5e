// Normalisation; the formulas stand in mod.rs. A row has a warp, or a block where it is long. What is
// read of it is kept in shared memory where there is room, each thread its own numbers, so that a row
// is read once. There are enough threads to wait for memory, so that no loop is unrolled for it.

#include "quads.cuh"

// Threads of a block.
constexpr u32 N_THREADS = 256;

// Partial sums that one block of the last kernel adds up: columns, and shares of the sums.
constexpr u32 COLUMNS = 32;
constexpr u32 SHARES = 8;

extern __shared__ float4 shared[];

// The sum over the threads that share a row, given to each of them.
template <u32 ROW_THREADS>
__device__ __forceinline__ f32 row_sum(f32 value) {
    if constexpr (ROW_THREADS == WARP) {
        return warp_sum(value);
    } else {
        return block_sum<ROW_THREADS>(value);
    }
}

__device__ __forceinline__ f32 inverse_deviation(f32 sum_of_squares, u32 width, f32 epsilon) {
    return 1.0f / sqrtf(sum_of_squares / static_cast<f32>(width) + epsilon);
}

// Numbers of a row in global memory, and the place where they are kept, if they are.
template <class T, bool KEEPS>
struct Row {
    const T* numbers;
    quad* kept;
    u32 width;
    bool aligned;

    // The quad at `i`.
    __device__ __forceinline__ quad read(u32 i) const {
        return load_quad(numbers + 4 * i, width - 4 * i, aligned);
    }

    __device__ __forceinline__ quad read_first(u32 i) const {
        const quad values = read(i);
        if constexpr (KEEPS) kept[i] = values;
        return values;
    }

    __device__ __forceinline__ quad read_again(u32 i) const {
        if constexpr (KEEPS) return kept[i];
        return read(i);
    }
};

// Shared memory, where KEEPS: the quads of each of the block's rows.
template <u32 ROW_THREADS, bool KEEPS, class Input, class Output>
__device__ __forceinline__ void forward(const Input* x, const f32* weight, Output* y, f32 epsilon,
                                        u32 n_rows, u32 width) {
    const u32 n_quads = ceil_div(width, 4u);
    const u32 slot = threadIdx.x / ROW_THREADS, thread = threadIdx.x % ROW_THREADS;
    const u32 row = blockIdx.x * (N_THREADS / ROW_THREADS) + slot;
    if (row >= n_rows) return;
    const bool aligned = are_rows_aligned(width, x, weight, y);
    const u64 start = static_cast<u64>(row) * width;
    const Row<Input, KEEPS> xs{x + start, reinterpret_cast<quad*>(shared) + slot * n_quads, width, aligned};

    f32 squares = 0.0f;
#pragma unroll 1
    for (u32 i = thread; i < n_quads; i += ROW_THREADS) {
        const quad values = xs.read_first(i);
#pragma unroll
        for (u32 k = 0; k < 4; k++) squares += values.of[k] * values.of[k];
    }
    const f32 rstd = inverse_deviation(row_sum<ROW_THREADS>(squares), width, epsilon);
#pragma unroll 1
    for (u32 i = thread; i < n_quads; i += ROW_THREADS) {
        quad values = xs.read_again(i);
        const quad weights = load_quad(weight + 4 * i, width - 4 * i, aligned);
#pragma unroll
        for (u32 k = 0; k < 4; k++) values.of[k] = values.of[k] * rstd * weights.of[k];
        store_quad(y + start + 4 * i, values, width - 4 * i, aligned);
    }
}

// A block has `block_rows` rows, one after the other or, where a row has a warp, as many at a time as
// it has warps. Where `partials` is wanted, it holds a row of sums for each block; until the block's
// end, each warp or block has its own in shared memory or, where nothing is kept, right there.
//
// `dx` is added to, or written over `dy`, which it is then the same as.
//
// Shared memory, where KEEPS: the quads of x and of dy of each of the block's rows, and their sums.
template <u32 ROW_THREADS, bool KEEPS, class Input>
__device__ __forceinline__ void backward(const Input* x, const f32* weight, const f32* dy, f32* dx,
                                         f32* partials, f32 epsilon, u32 n_rows, u32 width,
                                         u32 block_rows) {
    constexpr u32 SLOTS = N_THREADS / ROW_THREADS;
    static_assert(KEEPS || SLOTS == 1, "rows without shared memory have one place for their sums");
    const u32 n_quads = ceil_div(width, 4u);
    const u32 slot = threadIdx.x / ROW_THREADS, thread = threadIdx.x % ROW_THREADS;
    const bool aligned = are_rows_aligned(width, x, weight, dy, dx);
    const bool in_place = dy == dx;
    const bool wants_sums = partials != nullptr;
    const bool are_sums_aligned = are_rows_aligned(width, partials);
    quad* const kept = reinterpret_cast<quad*>(shared) + slot * n_quads;
    quad* const sums = kept + 2 * SLOTS * n_quads;
    if (wants_sums) partials += static_cast<u64>(blockIdx.x) * width;

    if (wants_sums) {
#pragma unroll 1
        for (u32 i = thread; i < n_quads; i += ROW_THREADS) {
            if constexpr (KEEPS) {
                sums[i] = four(0.0f);
            } else {
                store_quad(partials + 4 * i, four(0.0f), width - 4 * i, are_sums_aligned);
            }
        }
    }
    const u32 last = smaller(n_rows - blockIdx.x * block_rows, block_rows);
    for (u32 of_block = slot; of_block < last; of_block += SLOTS) {
        const u64 start = static_cast<u64>(blockIdx.x * block_rows + of_block) * width;
        const Row<Input, KEEPS> xs{x + start, kept, width, aligned};
        const Row<f32, KEEPS> dys{dy + start, kept + SLOTS * n_quads, width, aligned};

        f32 squares = 0.0f, projection = 0.0f;
#pragma unroll 1
        for (u32 i = thread; i < n_quads; i += ROW_THREADS) {
            const quad values = xs.read_first(i), slopes = dys.read_first(i);
            const quad weights = load_quad(weight + 4 * i, width - 4 * i, aligned);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                squares += values.of[k] * values.of[k];
                projection += weights.of[k] * slopes.of[k] * values.of[k];
            }
        }
        const f32 rstd = inverse_deviation(row_sum<ROW_THREADS>(squares), width, epsilon);
        const f32 along = row_sum<ROW_THREADS>(projection) * rstd * rstd / static_cast<f32>(width);
#pragma unroll 1
        for (u32 i = thread; i < n_quads; i += ROW_THREADS) {
            const u32 n_left = width - 4 * i;
            const quad values = xs.read_again(i), slopes = dys.read_again(i);
            const quad weights = load_quad(weight + 4 * i, n_left, aligned);
            quad changed = in_place ? four(0.0f) : load_quad(dx + start + 4 * i, n_left, aligned);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                const f32 slope = weights.of[k] * slopes.of[k] - values.of[k] * along;
                // Rounded before it is added: the gradient is the same wherever it goes.
                changed.of[k] += __fmul_rn(rstd, slope);
            }
            store_quad(dx + start + 4 * i, changed, n_left, aligned);
            if (!wants_sums) continue;
            quad sum = four(0.0f);
            if constexpr (KEEPS) {
                sum = sums[i];
            } else {
                sum = load_quad(partials + 4 * i, n_left, are_sums_aligned);
            }
#pragma unroll
            for (u32 k = 0; k < 4; k++) sum.of[k] += slopes.of[k] * values.of[k] * rstd;
            if constexpr (KEEPS) {
                sums[i] = sum;
            } else {
                store_quad(partials + 4 * i, sum, n_left, are_sums_aligned);
            }
        }
    }
    if constexpr (KEEPS) {
        if (!wants_sums) return;
        __syncthreads();
        const quad* of_slots = reinterpret_cast<quad*>(shared) + 2 * SLOTS * n_quads;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < n_quads; i += N_THREADS) {
            quad sum = of_slots[i];
#pragma unroll 1
            for (u32 other = 1; other < SLOTS; other++) {
                const quad more = of_slots[other * n_quads + i];
#pragma unroll
                for (u32 k = 0; k < 4; k++) sum.of[k] += more.of[k];
            }
            store_quad(partials + 4 * i, sum, width - 4 * i, are_sums_aligned);
        }
    }
}

#define RMS_NORM_FORWARD(kind, ROW_THREADS, KEEPS, input, output)                                         \
    extern "C" __global__ void __launch_bounds__(N_THREADS) rms_norm_forward_##kind##_##input##_to_##output( \
        const input* __restrict__ x, const f32* __restrict__ weight, output* __restrict__ y, f32 epsilon, \
        u32 n_rows, u32 width) {                                                                          \
        forward<ROW_THREADS, KEEPS>(x, weight, y, epsilon, n_rows, width);                                \
    }
#define RMS_NORM_BACKWARD(kind, ROW_THREADS, KEEPS, input)                                                \
    extern "C" __global__ void __launch_bounds__(N_THREADS) rms_norm_backward_##kind##_##input(           \
        const input* __restrict__ x, const f32* __restrict__ weight, const f32* dy, f32* dx,              \
        f32* __restrict__ partials, f32 epsilon, u32 n_rows, u32 width, u32 block_rows) {                 \
        backward<ROW_THREADS, KEEPS>(x, weight, dy, dx, partials, epsilon, n_rows, width, block_rows);    \
    }
#define RMS_NORM(kind, ROW_THREADS, KEEPS)                                                                \
    RMS_NORM_FORWARD(kind, ROW_THREADS, KEEPS, f32, f32)                                                  \
    RMS_NORM_FORWARD(kind, ROW_THREADS, KEEPS, f32, bf16)                                                 \
    RMS_NORM_FORWARD(kind, ROW_THREADS, KEEPS, bf16, f32)                                                 \
    RMS_NORM_FORWARD(kind, ROW_THREADS, KEEPS, bf16, bf16)                                                \
    RMS_NORM_BACKWARD(kind, ROW_THREADS, KEEPS, f32)                                                      \
    RMS_NORM_BACKWARD(kind, ROW_THREADS, KEEPS, bf16)

// A warp for a short row, a block for one that is kept, a block for one that is too long for that.
RMS_NORM(short, WARP, true)
RMS_NORM(kept, N_THREADS, true)
RMS_NORM(long, N_THREADS, false)

// dweight (=, or +=) the partial sums: a thread adds every eighth one of its column, then the first row of
// threads adds those up. Blocks are COLUMNS x SHARES.
extern "C" __global__ void __launch_bounds__(COLUMNS* SHARES)
    rms_norm_add_partials(const f32* __restrict__ partials, f32* __restrict__ dweight, u32 n_partials,
                          u32 width, u32 accumulates) {
    __shared__ f32 sums[SHARES][COLUMNS];
    const u32 column = blockIdx.x * COLUMNS + threadIdx.x;
    f32 sum = 0.0f;
    if (column < width) {
        for (u32 i = threadIdx.y; i < n_partials; i += SHARES)
            sum += partials[static_cast<u64>(i) * width + column];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || column >= width) return;
#pragma unroll
    for (u32 share = 1; share < SHARES; share++) sum += sums[share][threadIdx.x];
    dweight[column] = accumulates ? dweight[column] + sum : sum;
}
