// Sums of squares in f64, one for each chunk of the gradient; the host adds them up.

#include "quads.cuh"

// A block has one chunk: `chunk` numbers, a multiple of four, fewer at the end.
template <class Stored>
__device__ __forceinline__ void sum_of_chunk(const Stored* gradient, f64* sums, u64 n, u64 chunk) {
    const bool aligned = are_aligned(gradient);
    const u64 start = blockIdx.x * chunk;
    const u64 end = smaller(start + chunk, n);
    f64 squares[4] = {0.0, 0.0, 0.0, 0.0};
    for (u64 i = start + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
        const quad values = load_quad(gradient + i, static_cast<u32>(smaller<u64>(end - i, 4)), aligned);
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const f64 value = values.of[k];
            squares[k] += value * value;
        }
    }
    const f64 sum = block_sum<256>((squares[0] + squares[1]) + (squares[2] + squares[3]));
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
    gradient_norm_chunks_f32(const f32* __restrict__ gradient, f64* __restrict__ sums, u64 n, u64 chunk) {
    sum_of_chunk(gradient, sums, n, chunk);
}

extern "C" __global__ void __launch_bounds__(256)
    gradient_norm_chunks_bf16(const bf16* __restrict__ gradient, f64* __restrict__ sums, u64 n, u64 chunk) {
    sum_of_chunk(gradient, sums, n, chunk);
}
