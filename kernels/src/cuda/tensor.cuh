// Tensor cores and the copies that feed them (PTX ISA 7.4, "Warp-level matrix instructions",
// "Asynchronous copy"). Everything here works on compute capability 8.0 and later, but for the products of a
// group of warps at the end, which 9.0 has and nothing else.
#pragma once

#include "basics.cuh"

// An address as the instructions below take it: within shared memory.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// Where a chunk of eight numbers of a row lies in a tile, whose rows are COLUMNS numbers, aligned to 128
// bytes. The chunks of a row change places by its number, so that eight rows' chunks of one column meet no
// bank twice.
template <u32 COLUMNS>
__device__ __forceinline__ u32 chunk_offset(u32 row, u32 chunk) {
    static_assert(COLUMNS % 32 == 0, "a row begins at the first bank or at the middle one");
    const u32 turn = COLUMNS % 64 == 0 ? row & 7 : row >> 1 & 3;
    return row * (2 * COLUMNS) + ((chunk ^ turn) << 4);
}

// d += a · b for tiles of 16 x 16 and 16 x 8 numbers in bf16, summed in f32. With the thread's
// group g = lane / 4 and place t = lane % 4:
//   a[0] holds row g,     columns 2t and 2t + 1;      a[1] row g + 8 of the same columns;
//   a[2] holds row g,     columns 2t + 8 and 2t + 9;  a[3] row g + 8 of the same columns;
//   b[0] holds column g,  rows 2t and 2t + 1;         b[1] rows 2t + 8 and 2t + 9;
//   d[0], d[1] are row g, columns 2t and 2t + 1;      d[2], d[3] row g + 8 of the same columns.
__device__ __forceinline__ void multiply_tiles(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four tiles of 8 x 8 numbers of two bytes. Lanes 8i to 8i + 7 give the addresses of the rows of
// tile i; r[i] then holds row lane / 4, columns 2 (lane % 4) and the next of tile i.
__device__ __forceinline__ void load_tiles(u32 (&r)[4], u32 row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address)
                 : "memory");
}

// The same of the transposed tiles: r[i] holds column lane / 4, rows 2 (lane % 4) and the next.
__device__ __forceinline__ void load_tiles_transposed(u32 (&r)[4], u32 row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address)
                 : "memory");
}

// Begins to copy 16 bytes from global memory past the registers and the first cache, both places
// aligned to 16; writes zeros instead, and reads nothing, where not `wanted`.
__device__ __forceinline__ void copy_async(u32 destination, const void* source, bool wanted) {
    const u32 n_bytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(destination), "l"(__cvta_generic_to_global(source)), "r"(n_bytes)
                 : "memory");
}

// Ends the group of the thread's copies begun since the last one.
__device__ __forceinline__ void end_copy_group() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all but the last `n_pending` groups of this thread's copies have come; a barrier must
// follow before other threads read them.
template <int n_pending>
__device__ __forceinline__ void wait_for_copy_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n_pending) : "memory");
}

// ---- Products of a group of four warps (PTX ISA 8.0, "Asynchronous warpgroup-level matrix instructions") ----

// Whether they are there: in code for 9.0 alone. Where they are not, nothing below may be called.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool HAS_GROUP_PRODUCTS = true;
#else
constexpr bool HAS_GROUP_PRODUCTS = false;
#endif

// The thread's group of four warps; the same for all lanes of a warp, as these products want what depends on it.
__device__ __forceinline__ u32 group_of_warps() { return __shfl_sync(ALL_LANES, warp() / 4, 0); }

// An operand in shared memory as these products take it: bf16, laid out as `chunk_offset` says, the pattern's
// first row at a multiple of its length. Rows of 32 numbers (eight rows are 512 bytes) with k along them; or of 64
// (1,024 bytes) with k across them, from one part of 64 numbers to the next `part_bytes`.
__device__ __forceinline__ u64 operand_along(u32 address) {
    constexpr u64 EIGHT_ROWS = 512 >> 4, UNUSED = 1, ROWS_OF_64_BYTES = 2;
    return (address & 0x3ffff) >> 4 | UNUSED << 16 | EIGHT_ROWS << 32 | ROWS_OF_64_BYTES << 62;
}

__device__ __forceinline__ u64 operand_across(u32 address, u32 part_bytes) {
    constexpr u64 EIGHT_ROWS = 1024 >> 4, ROWS_OF_128_BYTES = 1;
    return (address & 0x3ffff) >> 4 | static_cast<u64>(part_bytes >> 4) << 16 | EIGHT_ROWS << 32 |
           ROWS_OF_128_BYTES << 62;
}

// Lets the products read what this thread has written to shared memory, or what was copied there and waited for.
// A barrier must follow.
__device__ __forceinline__ void show_to_group_products() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Before the first of some products: what was written to their sums is done.
__device__ __forceinline__ void begin_group_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Ends the group of products begun since the last one.
__device__ __forceinline__ void end_group_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until all but the last `n_pending` groups of products are done: their operands may be written over.
template <int n_pending>
__device__ __forceinline__ void wait_for_group_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n_pending) : "memory");
}

// Waits until all are done, whose sums are `d` and may then be read.
template <u32 N>
__device__ __forceinline__ void wait_for_sums(f32 (&d)[N][4]) {
    wait_for_group_products<0>();
    // The compiler takes sums for done when their products are begun: it is to read none ahead of this.
#pragma unroll
    for (u32 i = 0; i < N; i++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) asm volatile("" : "+f"(d[i][e])::"memory");
}

#define SUMS_OF_4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define SUMS_OF_16(d, i) SUMS_OF_4(d, i), SUMS_OF_4(d, i + 1), SUMS_OF_4(d, i + 2), SUMS_OF_4(d, i + 3)

// Begins d += a · b for a group's 64 rows: 16 for each of its warps, as multiply_tiles has them, side by side. The
// sums may not be touched until they were waited for.
template <bool A_ACROSS, bool B_ACROSS>
__device__ __forceinline__ void multiply_by_group(f32 (&d)[8][4], u64 a, u64 b) {
    asm volatile(
        "{ .reg .pred adds; setp.ne.u32 adds, 1, 0; "
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, adds, 1, 1, %34, %35; }"
        : SUMS_OF_16(d, 0), SUMS_OF_16(d, 4)
        : "l"(a), "l"(b), "n"(static_cast<int>(A_ACROSS)), "n"(static_cast<int>(B_ACROSS)));
}

template <bool A_ACROSS, bool B_ACROSS>
__device__ __forceinline__ void multiply_by_group(f32 (&d)[16][4], u64 a, u64 b) {
    asm volatile(
        "{ .reg .pred adds; setp.ne.u32 adds, 1, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, adds, 1, 1, %66, %67; }"
        : SUMS_OF_16(d, 0), SUMS_OF_16(d, 4), SUMS_OF_16(d, 8), SUMS_OF_16(d, 12)
        : "l"(a), "l"(b), "n"(static_cast<int>(A_ACROSS)), "n"(static_cast<int>(B_ACROSS)));
}
