// Products of matrices on tensor cores: c = a · b, both operands in bf16, sums in f32.
//
// A block of threads has a tile of c. It passes over k, 32 at a time: tiles of both operands come to
// shared memory two steps ahead of their use. What lies there in bf16 is copied asynchronously; a
// weight in another form is read to registers two steps ahead and expanded when the step before is
// done, so that it never exists in bf16 but for the tile. One order of sums for every form of weight.
//
// Where groups of warps multiply (9.0), they do it beside the threads: while a step's products are under way,
// weights that were read a step ago are expanded and others read, three steps ahead; and the products end when the
// next ones have begun.
#pragma once

#include "blockwise.cuh"
#include "random.cuh"
#include "tensor.cuh"

// Depth of a step.
constexpr u32 DEPTH = 32;
// Steps by which tiles come ahead of their use.
constexpr u32 AHEAD = 2;
// Steps whose tiles are in shared memory: those, the one that is multiplied, and the one before it where its products
// may still be under way.
constexpr u32 N_STAGES = HAS_GROUP_PRODUCTS ? AHEAD + 2 : AHEAD + 1;

// A product as cuda/product.rs describes it, in its order. Matrices are stored by rows; strides are
// in numbers.
struct Product {
    // In bf16, every row padded with zeros to a multiple of eight and aligned to 16 bytes.
    const bf16* a;
    // In the kernel's form.
    const void* b;
    const u8* absmax_codes;
    const f32* absmax_scales;
    const f32* absmax_offset;
    // Beside: (low_scale · low_a) · low_b, of depth `rank`; low_a as a, low_b in f32 and turned as b.
    const bf16* low_a;
    const f32* low_b;
    const f32* bias;
    // Like c, added to what is stored; c itself, another matrix, or null.
    const f32* added;
    f32* c;
    // What is stored in c, in bf16; or null.
    bf16* rounded;
    // Where sums of parts of k wait to be added; null if k is not divided.
    f32* parts;
    u64 drop_seed;
    u32 a_stride;
    u32 b_stride;
    u32 low_a_stride;
    u32 low_b_stride;
    u32 m;
    u32 n;
    u32 k;
    u32 rank;
    // Steps of one part of k.
    u32 steps_of_part;
    u32 drops;
    u32 drop_threshold;
    f32 drop_factor;
    f32 scale;
    f32 low_scale;
    // Whether 16 bytes of low_b's rows may be read at once.
    u32 low_is_regular;
    // Whether c is in bf16, and then not added to.
    u32 is_rounded;
    // Parts of k.
    u32 n_parts;
};

// ---- Tiles in shared memory ----

// Where a chunk of eight numbers lies in a tile. Groups of warps read rows of 64 numbers at most: wider ones are
// then in parts, all rows of one before those of the next.
template <u32 ROWS, u32 COLUMNS>
__device__ __forceinline__ u32 place_of_chunk(u32 row, u32 chunk) {
    constexpr u32 PART = HAS_GROUP_PRODUCTS && COLUMNS > 64 ? 64 : COLUMNS;
    return chunk / (PART / 8) * (2 * ROWS * PART) + chunk_offset<PART>(row, chunk % (PART / 8));
}

// A thread's part in copying tiles of a bf16 matrix, which follow one another along k. Where it is goes on from
// tile to tile: to find it anew would cost as much as a tile's products leave room for.
template <u32 ROWS, u32 COLUMNS, u32 N_THREADS, bool ACROSS>
struct TileCopy {
    static constexpr u32 CHUNKS = COLUMNS / 8;
    static constexpr u32 N = ROWS * CHUNKS / N_THREADS;
    // Rows from one of the thread's chunks to its next.
    static constexpr u32 APART = N_THREADS / CHUNKS;
    static_assert(ROWS * CHUNKS % N_THREADS == 0, "every thread copies as many");

    // The thread's first chunk of the next tile.
    const bf16* from;
    u32 stride;
    // A bit of each chunk: whether it exists, wherever along k.
    u32 existing;

    // Tiles that begin at `side` of `n_side`, the next one at k.
    __device__ __forceinline__ TileCopy(const bf16* matrix, u32 stride, u32 side, u32 n_side, u32 k)
        : stride(stride), existing(0) {
        const u32 row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * 8;
        from = matrix + static_cast<u64>((ACROSS ? k : side) + row) * stride + (ACROSS ? side : k) + column;
#pragma unroll
        for (u32 i = 0; i < N; i++)
            if (side + (ACROSS ? column : row + i * APART) < n_side) existing |= 1 << i;
    }

    // Begins to copy the next tile, where `k_left` numbers of k are left, and goes on.
    __device__ __forceinline__ void next(u32 tile, u32 k_left) {
        const u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            const u32 r = row + i * APART;
            // Where it is not, an address beyond the matrix is named and not read.
            const bool wanted = (existing >> i & 1) && (ACROSS ? r : 8 * chunk) < k_left;
            copy_async(tile + place_of_chunk<ROWS, COLUMNS>(r, chunk), from + static_cast<u64>(i * APART) * stride,
                       wanted);
        }
        from += ACROSS ? static_cast<u64>(DEPTH) * stride : DEPTH;
    }
};

// ---- Forms of the second operand that are expanded on the way ----

// Neighbouring numbers of a row, eight or sixteen, as read and, in the first half of the words, as expanded.
template <u32 N>
struct Group {
    static_assert(N == 8 || N == 16, "what is read at once");
    u32 words[N];
    u32 absmax_code;
    f32 absmax_scale;
};

// What expanding looks up again and again, behind the tiles in shared memory. The code of absmax, looked up once for a group, is read from
// memory: its kilobyte would leave a multiprocessor room for one block instead of two.
struct Tables {
    f32 levels[16];
    f32 absmax_offset;

    __device__ __forceinline__ void fill(const Product& p) {
        if (threadIdx.x < 16) levels[threadIdx.x] = NF4_LEVELS[threadIdx.x];
        if (threadIdx.x == 0) absmax_offset = *p.absmax_offset;
    }

    __device__ __forceinline__ f32 absmax(u32 code, f32 scale) const {
        return __fadd_rn(__fmul_rn(__ldg(DYNAMIC_SIGNED + code), scale), absmax_offset);
    }
};

__device__ __forceinline__ f32 nf4_absmax(const Product& p, const Tables& tables, u64 block) {
    return tables.absmax(p.absmax_codes[block], p.absmax_scales[block / NF4_ABSMAX_GROUP]);
}

// How the numbers at `from` are read, of which `n_left` are the matrix's (any or none), and how they
// become bf16 later.
struct InF32 {
    static constexpr bool IS_COPIED = false;
    static constexpr bool HAS_TABLES = false;

    // All or none: rows are a multiple of four long, and what is beyond a row's end is cut off.
    template <u32 N>
    static __device__ __forceinline__ void read(const Product&, const void* b, const Tables&, u64 from,
                                                u32 n_left, Group<N>& group) {
        const float4* quads = reinterpret_cast<const float4*>(static_cast<const f32*>(b) + from);
#pragma unroll
        for (u32 i = 0; i < N / 4; i++) {
            const float4 v = 4 * i < n_left ? quads[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            group.words[4 * i] = __float_as_uint(v.x);
            group.words[4 * i + 1] = __float_as_uint(v.y);
            group.words[4 * i + 2] = __float_as_uint(v.z);
            group.words[4 * i + 3] = __float_as_uint(v.w);
        }
    }

    // Rounded when they have come, and not when they are asked for.
    template <u32 N>
    static __device__ __forceinline__ void expand(const Tables&, Group<N>& group) {
#pragma unroll
        for (u32 i = 0; i < N / 2; i++)
            group.words[i] = pack_bf16(__uint_as_float(group.words[2 * i]),
                                       __uint_as_float(group.words[2 * i + 1]));
    }
};

struct InNf4 {
    static constexpr bool IS_COPIED = false;
    static constexpr bool HAS_TABLES = true;

    // All, of one block, or none: rows are whole blocks.
    template <u32 N>
    static __device__ __forceinline__ void read(const Product& p, const void* b, const Tables&,
                                                u64 from, u32 n_left, Group<N>& group) {
        // No numbers: whatever they are multiplied with is zero, but they must not be NaN.
        group.absmax_code = 0;
        group.absmax_scale = 0.0f;
        group.words[0] = group.words[1] = 0;
        if (n_left == 0) return;
        const u8* codes = static_cast<const u8*>(b) + from / 2;
        if constexpr (N == 8)
            group.words[0] = *reinterpret_cast<const u32*>(codes);
        else {
            const uint2 sixteen = *reinterpret_cast<const uint2*>(codes);
            group.words[0] = sixteen.x;
            group.words[1] = sixteen.y;
        }
        // What it stands for is looked up when these have come.
        const u32 block = static_cast<u32>(from / NF4_BLOCK);
        group.absmax_code = p.absmax_codes[block];
        group.absmax_scale = p.absmax_scales[block / NF4_ABSMAX_GROUP];
    }

    template <u32 N>
    static __device__ __forceinline__ void expand(const Tables& tables, Group<N>& group) {
        const u32 codes[2] = {group.words[0], group.words[1]};
        const f32 absmax = tables.absmax(group.absmax_code, group.absmax_scale);
#pragma unroll
        for (u32 i = 0; i < N / 2; i++) {
            // A byte is two numbers, the first in its upper half.
            const u32 byte = codes[i / 4] >> (8 * (i % 4));
            group.words[i] = pack_bf16(__fmul_rn(tables.levels[byte >> 4 & 15], absmax),
                                       __fmul_rn(tables.levels[byte & 15], absmax));
        }
    }
};

// One number at a time, of rows of any length and anywhere.
template <class Element>
struct Irregular {
    static constexpr bool IS_COPIED = false;
    static constexpr bool HAS_TABLES = Element::HAS_TABLES;

    template <u32 N>
    static __device__ __forceinline__ void read(const Product& p, const void* b, const Tables& tables,
                                                u64 from, u32 n_left, Group<N>& group) {
#pragma unroll
        for (u32 i = 0; i < N / 2; i++) {
            const u32 at = 2 * i;
            group.words[i] =
                pack_bf16(at < n_left ? Element::at(p, b, tables, from + at) : 0.0f,
                          at + 1 < n_left ? Element::at(p, b, tables, from + at + 1) : 0.0f);
        }
    }

    template <u32 N>
    static __device__ __forceinline__ void expand(const Tables&, Group<N>&) {}
};

struct F32Element {
    static constexpr bool HAS_TABLES = false;
    static __device__ __forceinline__ f32 at(const Product&, const void* b, const Tables&, u64 i) {
        return static_cast<const f32*>(b)[i];
    }
};

struct Bf16Element {
    static constexpr bool HAS_TABLES = false;
    static __device__ __forceinline__ f32 at(const Product&, const void* b, const Tables&, u64 i) {
        return widen(static_cast<const bf16*>(b)[i]);
    }
};

struct Nf4Element {
    static constexpr bool HAS_TABLES = true;
    static __device__ __forceinline__ f32 at(const Product& p, const void* b, const Tables& tables,
                                             u64 i) {
        const u32 code = static_cast<const u8*>(b)[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
        return __fmul_rn(tables.levels[code], nf4_absmax(p, tables, i / NF4_BLOCK));
    }
};

// bf16 as the first operand is.
struct Copied {
    static constexpr bool IS_COPIED = true;
    static constexpr bool HAS_TABLES = false;
};

// A thread's group of a tile: its row and first column.
template <u32 COLUMNS, u32 N>
__device__ __forceinline__ uint2 group_of_thread() {
    return make_uint2(threadIdx.x / (COLUMNS / N), threadIdx.x % (COLUMNS / N) * N);
}

template <u32 ROWS, u32 COLUMNS, u32 N>
__device__ __forceinline__ void store_group(u8* tile, uint2 at, const Group<N>& group) {
#pragma unroll
    for (u32 i = 0; i < N / 8; i++) {
        const u32* words = group.words + 4 * i;
        *reinterpret_cast<uint4*>(tile + place_of_chunk<ROWS, COLUMNS>(at.x, at.y / 8 + i)) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
}

// ---- The product of two tiles ----

template <u32 M, u32 N, bool A_ACROSS, bool B_ACROSS>
struct Tile {
    // A group of four warps has 64 rows of all columns, 16 for each.
    static constexpr u32 WARPS_M = HAS_GROUP_PRODUCTS ? M / 16 : 2;
    static constexpr u32 WARPS_N = HAS_GROUP_PRODUCTS ? 1 : N / 32;
    static constexpr u32 N_THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr u32 TILES_M = M / WARPS_M / 16;
    static constexpr u32 TILES_N = N / WARPS_N / 8;
    static constexpr u32 A_ROWS = A_ACROSS ? DEPTH : M;
    static constexpr u32 A_COLUMNS = A_ACROSS ? M : DEPTH;
    static constexpr u32 B_ROWS = B_ACROSS ? DEPTH : N;
    static constexpr u32 B_COLUMNS = B_ACROSS ? N : DEPTH;
    static constexpr u32 A_BYTES = 2 * M * DEPTH;
    static constexpr u32 B_BYTES = 2 * N * DEPTH;
    // Numbers of a tile of b that a thread expands.
    static constexpr u32 GROUP = N * DEPTH / N_THREADS;

    f32 sums[TILES_M][TILES_N][4];
    // Where the rows of the thread's group of warps begin in a tile of a.
    u32 rows_of_group;

    __device__ __forceinline__ static u32 first_row() { return warp() / WARPS_N * (M / WARPS_M); }
    __device__ __forceinline__ static u32 first_column() { return warp() % WARPS_N * (N / WARPS_N); }

    __device__ __forceinline__ void clear() {
        rows_of_group = HAS_GROUP_PRODUCTS ? group_of_warps() * (2 * 64 * DEPTH) : 0;
#pragma unroll
        for (u32 i = 0; i < TILES_M; i++)
#pragma unroll
            for (u32 j = 0; j < TILES_N; j++)
#pragma unroll
                for (u32 e = 0; e < 4; e++) sums[i][j][e] = 0.0f;
    }

    __device__ __forceinline__ void scale(f32 factor) {
#pragma unroll
        for (u32 i = 0; i < TILES_M; i++)
#pragma unroll
            for (u32 j = 0; j < TILES_N; j++)
#pragma unroll
                for (u32 e = 0; e < 4; e++) sums[i][j][e] *= factor;
    }

    // sums += the tile of a at `a` times that of b at `b`.
    __device__ __forceinline__ void add(u32 a, u32 b) {
        if constexpr (HAS_GROUP_PRODUCTS) {
            begin(a, b);
            wait_for_sums(sums[0]);
        } else
            add_by_warps(a, b);
    }

    // Begins sums += the tile of a at `a` times that of b at `b`: a group of products.
    __device__ __forceinline__ void begin(u32 a, u32 b) {
        a += rows_of_group;
        begin_group_products();
#pragma unroll
        for (u32 depth = 0; depth < DEPTH; depth += 16)
            multiply_by_group<A_ACROSS, B_ACROSS>(sums[0], operand<A_ACROSS>(a, depth),
                                                  operand<B_ACROSS>(b, depth));
        end_group_products();
    }

    // Sixteen of a tile's depth.
    template <bool ACROSS>
    __device__ __forceinline__ static u64 operand(u32 tile, u32 depth) {
        return ACROSS ? operand_across(tile + 2 * 64 * depth, 2 * 64 * DEPTH)
                      : operand_along(tile + 2 * depth);
    }

    __device__ __forceinline__ void add_by_warps(u32 a, u32 b) {
        const u32 tile = lane() / 8, row = lane() % 8;
#pragma unroll
        for (u32 depth = 0; depth < DEPTH; depth += 16) {
            u32 b_tiles[TILES_N / 2][4];
#pragma unroll
            for (u32 j = 0; j < TILES_N / 2; j++) {
                const u32 column = first_column() + 16 * j + 8 * (tile / 2);
                const u32 k = depth + 8 * (tile % 2);
                if (B_ACROSS)
                    load_tiles_transposed(b_tiles[j],
                                          b + chunk_offset<B_COLUMNS>(k + row, column / 8));
                else
                    load_tiles(b_tiles[j], b + chunk_offset<B_COLUMNS>(column + row, k / 8));
            }
#pragma unroll
            for (u32 i = 0; i < TILES_M; i++) {
                u32 a_tiles[4];
                const u32 m = first_row() + 16 * i + 8 * (tile % 2);
                const u32 k = depth + 8 * (tile / 2);
                if (A_ACROSS)
                    load_tiles_transposed(a_tiles, a + chunk_offset<A_COLUMNS>(k + row, m / 8));
                else
                    load_tiles(a_tiles, a + chunk_offset<A_COLUMNS>(m + row, k / 8));
#pragma unroll
                for (u32 j = 0; j < TILES_N; j++) {
                    const u32 pair[2] = {b_tiles[j / 2][j % 2 * 2], b_tiles[j / 2][j % 2 * 2 + 1]};
                    multiply_tiles(sums[i][j], a_tiles, pair);
                }
            }
        }
    }
};

// A sum as it is stored.
__device__ __forceinline__ f32 finished(const Product& p, u32 row, u32 column, f32 sum) {
    const u64 at = static_cast<u64>(row) * p.n + column;
    f32 value = sum * p.scale;
    if (p.drops) value = drop(value, p.drop_seed, at, p.drop_threshold, p.drop_factor);
    if (p.bias != nullptr) value += p.bias[column];
    if (p.added != nullptr) value += p.added[at];
    return value;
}

// Stores a finished sum.
__device__ __forceinline__ void store(const Product& p, bool is_rounded, u64 at, f32 value) {
    if (is_rounded)
        reinterpret_cast<bf16*>(p.c)[at] = to_bf16(value);
    else
        p.c[at] = value;
    if (p.rounded != nullptr) p.rounded[at] = to_bf16(value);
}

// Waits until all threads are here, and what they brought to shared memory can be multiplied.
__device__ __forceinline__ void share_tiles() {
    if constexpr (HAS_GROUP_PRODUCTS) show_to_group_products();
    __syncthreads();
}

// What cuda/product.rs has room for.
static_assert(sizeof(Tables) <= 80, "the tables are longer than the launch says");

template <u32 M, u32 N, bool A_ACROSS, bool B_ACROSS, class Form>
__device__ __forceinline__ void multiply(const Product& p) {
    typedef Tile<M, N, A_ACROSS, B_ACROSS> T;
    constexpr u32 STAGE_BYTES = T::A_BYTES + T::B_BYTES;
    extern __shared__ __align__(1024) u8 stages[];
    // If it were shared memory of its own, where the tiles begin would be the compiler's choice.
    Tables& tables = *reinterpret_cast<Tables*>(stages + N_STAGES * STAGE_BYTES);
    if (Form::HAS_TABLES) {
        tables.fill(p);
        __syncthreads();
    }
    // Blocks of one column of c, which read the same of b, follow one another.
    const u32 n_blocks_m = ceil_div(p.m, M);
    const u32 m0 = blockIdx.x % n_blocks_m * M;
    const u32 n0 = blockIdx.x / n_blocks_m * N;
    const u32 first_step = blockIdx.z * p.steps_of_part;
    // One even without depth: of zeros.
    const u32 last_step = larger(smaller(first_step + p.steps_of_part, ceil_div(p.k, DEPTH)), first_step + 1);
    const u32 base = shared_address(stages);

    T tile;
    tile.clear();

    typedef TileCopy<T::A_ROWS, T::A_COLUMNS, T::N_THREADS, A_ACROSS> CopyOfA;
    typedef TileCopy<T::B_ROWS, T::B_COLUMNS, T::N_THREADS, B_ACROSS> CopyOfB;
    // The thread's group of a tile of b that is expanded.
    const uint2 own = group_of_thread<T::B_COLUMNS, T::GROUP>();
    // Where it is of a tile at k, and how many of the matrix's numbers are there.
    const auto place_of_group = [&](u32 k, u32 stride) {
        const u32 row = (B_ACROSS ? k : n0) + own.x, column = (B_ACROSS ? n0 : k) + own.y;
        return static_cast<u64>(row) * stride + column;
    };
    const auto size_of_group = [&](u32 k, u32 n_depth) -> u32 {
        const u32 side = n0 + (B_ACROSS ? own.y : own.x), depth = k + (B_ACROSS ? own.x : own.y);
        if (side >= p.n || depth >= n_depth) return 0;
        return B_ACROSS ? p.n - side : n_depth - depth;
    };

    if (p.rank > 0 && blockIdx.z == 0) {
        CopyOfA low_a(p.low_a, p.low_a_stride, m0, p.m, 0);
        for (u32 k = 0; k < p.rank; k += DEPTH) {
            low_a.next(base, p.rank - k);
            end_copy_group();
            Group<T::GROUP> group;
            const u64 from = place_of_group(k, p.low_b_stride);
            const u32 n_left = size_of_group(k, p.rank);
            if (p.low_is_regular) {
                InF32::read(p, p.low_b, tables, from, n_left, group);
                InF32::expand(tables, group);
            } else
                Irregular<F32Element>::read(p, p.low_b, tables, from, n_left, group);
            store_group<T::B_ROWS, T::B_COLUMNS>(stages + T::A_BYTES, own, group);
            wait_for_copy_groups<0>();
            share_tiles();
            tile.add(base, base + T::A_BYTES);
            __syncthreads();
        }
        tile.scale(p.low_scale);
    }

    CopyOfA a(p.a, p.a_stride, m0, p.m, first_step * DEPTH);
    CopyOfB b(static_cast<const bf16*>(p.b), p.b_stride, n0, p.n, first_step * DEPTH);
    const auto begin = [&](u32 step) {
        const u32 stage = base + step % N_STAGES * STAGE_BYTES;
        if (step < last_step) {
            a.next(stage, p.k - step * DEPTH);
            if constexpr (Form::IS_COPIED) b.next(stage + T::A_BYTES, p.k - step * DEPTH);
        }
        end_copy_group();
    };
    Group<T::GROUP> group;
    u64 from = place_of_group(first_step * DEPTH, p.b_stride);
    const auto read = [&](u32 step) {
        if constexpr (!Form::IS_COPIED) {
            if (step >= last_step) return;
            Form::read(p, p.b, tables, from, size_of_group(step * DEPTH, p.k), group);
            from += B_ACROSS ? static_cast<u64>(DEPTH) * p.b_stride : DEPTH;
        }
    };
    const auto put = [&](u32 step) {
        if constexpr (!Form::IS_COPIED) {
            if (step >= last_step) return;
            Form::expand(tables, group);
            store_group<T::B_ROWS, T::B_COLUMNS>(stages + step % N_STAGES * STAGE_BYTES + T::A_BYTES, own, group);
        }
    };

#pragma unroll 1
    for (u32 ahead = 0; ahead < AHEAD; ahead++) {
        begin(first_step + ahead);
        read(first_step + ahead);
        put(first_step + ahead);
    }
    if constexpr (HAS_GROUP_PRODUCTS) {
        read(first_step + AHEAD);
        const auto multiply_step = [&](u32 step) {
            wait_for_copy_groups<AHEAD - 1>();
            // All tiles of this step are there, and nobody uses those of two steps before any more.
            share_tiles();
            const u32 stage = base + step % N_STAGES * STAGE_BYTES;
            tile.begin(stage, stage + T::A_BYTES);
            begin(step + AHEAD);
            put(step + AHEAD);
            read(step + AHEAD + 1);
        };
        // Apart, so that within the loop nothing but products writes sums: the compiler would let each of them end
        // before the next begins.
        multiply_step(first_step);
        for (u32 step = first_step + 1; step < last_step; step++) {
            multiply_step(step);
            wait_for_group_products<1>();
        }
        wait_for_sums(tile.sums[0]);
    } else {
        for (u32 step = first_step; step < last_step; step++) {
            wait_for_copy_groups<AHEAD - 1>();
            // All tiles of this step are there, and nobody uses those of the step before any more.
            share_tiles();
            begin(step + AHEAD);
            read(step + AHEAD);
            const u32 stage = base + step % N_STAGES * STAGE_BYTES;
            tile.add(stage, stage + T::A_BYTES);
            put(step + AHEAD);
        }
    }

    const bool in_pairs = p.n % 2 == 0 && p.parts == nullptr;
    const bool is_rounded = p.is_rounded;
#pragma unroll
    for (u32 i = 0; i < T::TILES_M; i++)
#pragma unroll
        for (u32 j = 0; j < T::TILES_N; j++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 row = m0 + T::first_row() + 16 * i + 8 * half + lane() / 4;
                const u32 column = n0 + T::first_column() + 8 * j + 2 * (lane() % 4);
                if (row >= p.m || column >= p.n) continue;
                const f32 lower = tile.sums[i][j][2 * half], upper = tile.sums[i][j][2 * half + 1];
                const u64 at = static_cast<u64>(row) * p.n + column;
                if (p.parts != nullptr) {
                    f32* part = p.parts + static_cast<u64>(blockIdx.z) * p.m * p.n + at;
                    part[0] = lower;
                    if (column + 1 < p.n) part[1] = upper;
                } else if (in_pairs && reinterpret_cast<u64>(p.c) % 8 == 0) {
                    const f32 first = finished(p, row, column, lower);
                    const f32 second = finished(p, row, column + 1, upper);
                    if (is_rounded)
                        reinterpret_cast<u32*>(p.c)[at / 2] = pack_bf16(first, second);
                    else
                        *reinterpret_cast<float2*>(p.c + at) = make_float2(first, second);
                    if (p.rounded != nullptr)
                        reinterpret_cast<u32*>(p.rounded)[at / 2] = pack_bf16(first, second);
                } else {
                    store(p, is_rounded, at, finished(p, row, column, lower));
                    if (column + 1 < p.n)
                        store(p, is_rounded, at + 1, finished(p, row, column + 1, upper));
                }
            }
}
