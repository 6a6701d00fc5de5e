// Tensor cores and the copies that feed them (PTX ISA 7.4, "Warp-level matrix instructions",
// "Asynchronous copy"). Everything here works on compute capability 8.0 and later.
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
