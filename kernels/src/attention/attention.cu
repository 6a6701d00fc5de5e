// Attention in tiles, after Dao, "FlashAttention-2" (2023). Nothing of the size of T x T is stored and
// nothing is added by several blocks of threads: a block has a tile of queries, or of keys in the pass
// that makes their gradients, and visits the others in order.
//
// In bf16 the tiles lie in shared memory, a row a head's vector padded with zeros; a warp has 16 rows of
// the block's tile. Scores never leave the registers: where they are summed is where the next product
// wants them (tensor.cuh). The next tile is on its way while the block works on one.

#include "tensor.cuh"

constexpr f32 LOG2_E = 1.4426950408889634f;
// The score of a key that a query does not see.
#define HIDDEN (-__int_as_float(0x7f800000))

// What mod.rs says a sequence is.
struct Segment {
    u32 query_start;
    u32 n_queries;
    u32 key_start;
    u32 n_keys;
};

// An attention as cuda.rs describes it, in its order.
struct Attention {
    const Segment* segments;
    // As the products see them.
    const void* q;
    const void* k;
    const void* v;
    // In f32, or in bf16 where `is_out_rounded`.
    void* out;
    f32* log_sum_exp;
    const f32* dout;
    // `dout` as the products see it.
    bf16* seen_dout;
    f32* delta;
    f32* dq;
    f32* dk;
    f32* dv;
    u32 n_heads;
    u32 n_kv_heads;
    u32 head_size;
    // Keys that a query sees; the largest number: all before it.
    u32 window;
    f32 scale;
    u32 n_rows;
    u32 is_out_rounded;
    // Of queries, or of keys, that the launch begins with.
    u32 first_head;
    u32 n_key_rows;
    u32 n_segments;
};

// A matrix whose numbers are of a type.
template <class T>
__device__ __forceinline__ const T* as(const void* matrix) {
    return static_cast<const T*>(matrix);
}

// Whether query `i` of a segment sees its key `j`.
__device__ __forceinline__ bool sees(const Attention& p, const Segment& s, u32 i, u32 j) {
    const u32 position = s.n_keys - s.n_queries + i;
    return i < s.n_queries && j <= position && position - j < p.window;
}

// The keys that queries from `first` to before `end` see, and the queries that see such keys.
__device__ __forceinline__ u32 first_key(const Attention& p, const Segment& s, u32 first) {
    const u32 position = s.n_keys - s.n_queries + first;
    return position >= p.window ? position - p.window + 1 : 0;
}
__device__ __forceinline__ u32 end_of_keys(const Segment& s, u32 end) {
    return s.n_keys - s.n_queries + smaller(end, s.n_queries);
}
__device__ __forceinline__ u32 first_query(const Segment& s, u32 first) {
    const u32 past = s.n_keys - s.n_queries;
    return first > past ? first - past : 0;
}
__device__ __forceinline__ u32 end_of_queries(const Attention& p, const Segment& s, u32 end) {
    // The last key is before `end`; the last that sees it is `window` - 1 later.
    const u64 position = static_cast<u64>(end) - 1 + p.window;
    const u32 past = s.n_keys - s.n_queries;
    if (position <= past) return 0;
    return static_cast<u32>(smaller<u64>(position - past, s.n_queries));
}

// Whether each of `n` queries from `i` on sees each of `m` keys from `j` on.
__device__ __forceinline__ bool see_all(const Attention& p, const Segment& s, u32 i, u32 n, u32 j, u32 m) {
    const u32 position = s.n_keys - s.n_queries + i;
    return i + n <= s.n_queries && j + m <= position + 1 && position + n - 1 - j < p.window;
}

// Whether all of `m` keys from `j` on come after `n` queries from `i` on, or before the window of each.
__device__ __forceinline__ bool see_none(const Attention& p, const Segment& s, u32 i, u32 n, u32 j, u32 m) {
    return i >= s.n_queries || j >= end_of_keys(s, i + n) || j + m <= first_key(p, s, i);
}

// ---- Tiles ----

// Rows of a block's own tile, 16 a warp.
constexpr u32 OWN_ROWS = 64;
constexpr u32 N_THREADS = 128;

extern __shared__ __align__(128) u8 tiles[];

__device__ __forceinline__ void put(f32& place, f32 value) {
    place = value;
}
__device__ __forceinline__ void put(bf16& place, f32 value) {
    place = to_bf16(value);
}

template <u32 WIDTH>
struct Rows {
    static constexpr u32 BYTES = 2 * WIDTH;

    // Begins to bring `n` rows of a head to a tile of ROWS at an address; what is beyond them is zero. They
    // are there when every thread has waited for its copies, behind a barrier.
    template <u32 ROWS>
    static __device__ __forceinline__ void bring(u32 tile, const bf16* first, u64 stride, u32 n,
                                                 u32 head_size) {
        if (head_size % 8 == 0 && stride % 8 == 0 && are_aligned(first)) {
            constexpr u32 CHUNKS = WIDTH / 8;
            for (u32 at = threadIdx.x; at < ROWS * CHUNKS; at += N_THREADS) {
                const u32 row = at / CHUNKS, column = at % CHUNKS * 8;
                const bool wanted = row < n && column < head_size;
                const bf16* from = wanted ? first + row * stride + column : first;
                copy_async(tile + chunk_offset<WIDTH>(row, column / 8), from, wanted);
            }
            return;
        }
        for (u32 at = threadIdx.x; at < ROWS * WIDTH; at += N_THREADS) {
            const u32 row = at / WIDTH, column = at % WIDTH;
            const bool wanted = row < n && column < head_size;
            const u32 offset = chunk_offset<WIDTH>(row, column / 8) + 2 * (column % 8);
            *reinterpret_cast<bf16*>(tiles + (tile - shared_address(tiles)) + offset) =
                wanted ? first[row * stride + column] : bf16{0};
        }
    }

    // 16 x 16 numbers of rows from `row` and columns from `column` on, as a first operand.
    static __device__ __forceinline__ void first_operand(u32 (&a)[4], u32 tile, u32 row, u32 column) {
        const u32 at = lane() / 8;
        load_tiles(a, tile + chunk_offset<WIDTH>(row + 8 * (at % 2) + lane() % 8, column / 8 + at / 2));
    }

    // Second operands for columns `n` to n + 15 and depth `k` to k + 15, where the tile's rows are the
    // columns (b of the first eight in b[0], b[1], of the others in b[2], b[3]).
    static __device__ __forceinline__ void second_by_rows(u32 (&b)[4], u32 tile, u32 n, u32 k) {
        const u32 at = lane() / 8;
        load_tiles(b, tile + chunk_offset<WIDTH>(n + 8 * (at / 2) + lane() % 8, k / 8 + at % 2));
    }

    // The same where the tile's rows are the depth.
    static __device__ __forceinline__ void second_by_columns(u32 (&b)[4], u32 tile, u32 n, u32 k) {
        const u32 at = lane() / 8;
        load_tiles_transposed(
            b, tile + chunk_offset<WIDTH>(k + 8 * (at % 2) + lane() % 8, n / 8 + at / 2));
    }
};

// Sums of 16 rows and N columns, an eighth of the columns a tile.
template <u32 N>
struct Sums {
    f32 of[N / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 j = 0; j < N / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) of[j][e] = 0.0f;
    }

    // += rows of `a` from `row` on, times the rows of `b`, over WIDTH.
    template <u32 WIDTH>
    __device__ __forceinline__ void add_rows_by_rows(u32 a, u32 row, u32 b) {
#pragma unroll
        for (u32 k = 0; k < WIDTH; k += 16) {
            u32 first[4];
            Rows<WIDTH>::first_operand(first, a, row, k);
#pragma unroll
            for (u32 j = 0; j < N / 16; j++) {
                u32 second[4];
                Rows<WIDTH>::second_by_rows(second, b, 16 * j, k);
                const u32 lower[2] = {second[0], second[1]}, upper[2] = {second[2], second[3]};
                multiply_tiles(of[2 * j], first, lower);
                multiply_tiles(of[2 * j + 1], first, upper);
            }
        }
    }

    // += `scores` (16 x DEPTH, rounded to bf16) times the DEPTH rows of `b`.
    template <u32 DEPTH>
    __device__ __forceinline__ void add_scores_by_rows(const Sums<DEPTH>& scores, u32 b) {
#pragma unroll
        for (u32 k = 0; k < DEPTH / 16; k++) {
            const f32(&left)[4] = scores.of[2 * k];
            const f32(&right)[4] = scores.of[2 * k + 1];
            const u32 first[4] = {pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]),
                                  pack_bf16(right[0], right[1]), pack_bf16(right[2], right[3])};
#pragma unroll
            for (u32 j = 0; j < N / 16; j++) {
                u32 second[4];
                Rows<N>::second_by_columns(second, b, 16 * j, 16 * k);
                const u32 lower[2] = {second[0], second[1]}, upper[2] = {second[2], second[3]};
                multiply_tiles(of[2 * j], first, lower);
                multiply_tiles(of[2 * j + 1], first, upper);
            }
        }
    }

    // Hides scores of queries from `query` on, which are rows, and keys from `key` on; or of keys that are rows.
    template <bool ARE_KEYS_ROWS>
    __device__ __forceinline__ void hide(const Attention& p, const Segment& s, u32 query, u32 key) {
#pragma unroll
        for (u32 j = 0; j < N / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const u32 row = 8 * (e / 2) + lane() / 4, column = 8 * j + 2 * (lane() % 4) + e % 2;
                if (!sees(p, s, query + (ARE_KEYS_ROWS ? column : row), key + (ARE_KEYS_ROWS ? row : column)))
                    of[j][e] = HIDDEN;
            }
    }

    // Writes the head's part of 16 rows of which the tile's first is `row`, times factors of the rows.
    template <class T>
    __device__ __forceinline__ void store(T* first, u64 stride, u32 row, u32 n, u32 head_size,
                                          const f32 (&factors)[2]) const {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 r = row + 8 * half + lane() / 4;
            if (r >= n) continue;
#pragma unroll
            for (u32 j = 0; j < N / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    const u32 column = 8 * j + 2 * (lane() % 4) + e;
                    if (column < head_size)
                        put(first[r * stride + column], of[j][2 * half + e] * factors[half]);
                }
        }
    }
};

// 2 to the power of this, as near as the instruction comes (2 ulp); zero where that is no normal number.
__device__ __forceinline__ f32 power_of_2(f32 exponent) {
    f32 power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
    return power;
}

// Over the four lanes that have a row.
__device__ __forceinline__ f32 row_max(f32 value) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}
__device__ __forceinline__ f32 row_sum(f32 value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// The last queries see the most keys: their tiles begin first, so that the lightest end the launch.
__device__ __forceinline__ u32 first_query_of_block() {
    return (gridDim.x - 1 - blockIdx.x) * OWN_ROWS;
}

// Grid: tiles of queries, heads, segments.
template <u32 WIDTH, u32 KEYS>
__device__ __forceinline__ void forward(const Attention& p) {
    typedef Rows<WIDTH> R;
    const Segment s = p.segments[blockIdx.z];
    const u32 first = first_query_of_block();
    if (first >= s.n_queries) return;
    const u32 head = p.first_head + blockIdx.y, kv_head = head / (p.n_heads / p.n_kv_heads);
    const u64 q_stride = static_cast<u64>(p.n_heads) * p.head_size;
    const u64 k_stride = static_cast<u64>(p.n_kv_heads) * p.head_size;
    const u64 q_at = (s.query_start + first) * q_stride + head * p.head_size;
    const u64 k_at = s.key_start * k_stride + kv_head * p.head_size;
    const u32 q_tile = shared_address(tiles);
    const u32 k_tile = q_tile + OWN_ROWS * R::BYTES;
    const u32 v_tile = k_tile + KEYS * R::BYTES;
    const auto bring = [&](u32 tile, const void* matrix, u32 key) {
        const bf16* rows = as<bf16>(matrix) + k_at + key * k_stride;
        R::template bring<KEYS>(tile, rows, k_stride, s.n_keys - key, p.head_size);
    };
    const u32 end = end_of_keys(s, first + OWN_ROWS);
    u32 key = first_key(p, s, first) / KEYS * KEYS;
    const u32 n = s.n_queries - first;
    R::template bring<OWN_ROWS>(q_tile, as<bf16>(p.q) + q_at, q_stride, n, p.head_size);
    bring(k_tile, p.k, key);
    end_copy_group();

    Sums<WIDTH> out;
    out.clear();
    f32 maxima[2] = {HIDDEN, HIDDEN}, sums[2] = {0.0f, 0.0f};
    const f32 scale = p.scale * LOG2_E;
    const u32 own = warp() * 16;
    for (; key < end; key += KEYS) {
        wait_for_copy_groups<0>();
        // The keys are there, and nobody reads the values before any more.
        __syncthreads();
        bring(v_tile, p.v, key);
        end_copy_group();
        Sums<KEYS> scores;
        scores.clear();
        scores.template add_rows_by_rows<WIDTH>(q_tile, own, k_tile);
        if (!see_all(p, s, first + own, 16, key, KEYS))
            scores.template hide<false>(p, s, first + own, key);
        f32 factors[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            f32 largest = HIDDEN;
#pragma unroll
            for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 2; e++) largest = fmaxf(largest, scores.of[j][2 * half + e]);
            largest = fmaxf(maxima[half], row_max(largest) * scale);
            // A row that has seen nothing yet.
            const f32 base = largest == HIDDEN ? 0.0f : largest;
            factors[half] = power_of_2(maxima[half] - base);
            maxima[half] = largest;
            f32 sum = 0.0f;
#pragma unroll
            for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    f32& score = scores.of[j][2 * half + e];
                    score = power_of_2(fmaf(score, scale, -base));
                    sum += score;
                }
            sums[half] = sums[half] * factors[half] + row_sum(sum);
        }
#pragma unroll
        for (u32 j = 0; j < WIDTH / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) out.of[j][e] *= factors[e / 2];
        wait_for_copy_groups<0>();
        // The values are there, and nobody reads these keys any more.
        __syncthreads();
        if (key + KEYS < end) bring(k_tile, p.k, key + KEYS);
        end_copy_group();
        out.template add_scores_by_rows<KEYS>(scores, v_tile);
    }
    const f32 inverse[2] = {1.0f / sums[0], 1.0f / sums[1]};
    if (p.is_out_rounded)
        out.store(static_cast<bf16*>(p.out) + q_at, q_stride, own, n, p.head_size, inverse);
    else
        out.store(static_cast<f32*>(p.out) + q_at, q_stride, own, n, p.head_size, inverse);
    if (lane() % 4 == 0) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 i = first + own + 8 * half + lane() / 4;
            if (i < s.n_queries)
                p.log_sum_exp[static_cast<u64>(s.query_start + i) * p.n_heads + head] =
                    (maxima[half] + log2f(sums[half])) / LOG2_E;
        }
    }
}

// Zeros to rows of no segment; a warp has one of queries and one of keys. The forward pass has no `dq`.
extern "C" __global__ void __launch_bounds__(N_THREADS)
    attention_clear(const __grid_constant__ Attention p) {
    const u32 row = blockIdx.x * (N_THREADS / WARP) + warp();
    bool has_queries = row >= p.n_rows, has_keys = row >= p.n_key_rows;
    for (u32 i = lane(); i < p.n_segments; i += WARP) {
        const Segment s = p.segments[i];
        has_queries |= row >= s.query_start && row - s.query_start < s.n_queries;
        has_keys |= row >= s.key_start && row - s.key_start < s.n_keys;
    }
    has_queries = __any_sync(ALL_LANES, has_queries);
    has_keys = __any_sync(ALL_LANES, has_keys);
    const u32 width = p.n_heads * p.head_size, key_width = p.n_kv_heads * p.head_size;
    if (!has_queries) {
        const u64 first = static_cast<u64>(row) * width;
        for (u32 i = lane(); i < width; i += WARP) {
            if (p.dq != nullptr)
                p.dq[first + i] = 0.0f;
            else if (p.is_out_rounded)
                static_cast<bf16*>(p.out)[first + i] = bf16{0};
            else
                static_cast<f32*>(p.out)[first + i] = 0.0f;
        }
        if (p.dq == nullptr)
            for (u32 head = lane(); head < p.n_heads; head += WARP)
                p.log_sum_exp[static_cast<u64>(row) * p.n_heads + head] = 0.0f;
    }
    if (!has_keys && p.dq != nullptr) {
        const u64 first = static_cast<u64>(row) * key_width;
        for (u32 i = lane(); i < key_width; i += WARP) p.dk[first + i] = p.dv[first + i] = 0.0f;
    }
}

// delta of every row and head; a warp has one. In bf16, of what the products see of the gradient, which it
// leaves for them, so that it is the sum of the probabilities' gradients.
template <bool ROUNDS>
__device__ __forceinline__ void delta(const Attention& p) {
    const u64 at = static_cast<u64>(blockIdx.x) * (N_THREADS / WARP) + warp();
    if (at >= static_cast<u64>(p.n_rows) * p.n_heads) return;
    f32 sum = 0.0f;
    for (u32 i = lane(); i < p.head_size; i += WARP) {
        const u64 place = at * p.head_size + i;
        const f32 dout = p.dout[place];
        const bool is_rounded = ROUNDS && p.is_out_rounded;
        const f32 out = is_rounded ? widen(as<bf16>(p.out)[place]) : as<f32>(p.out)[place];
        if (ROUNDS) p.seen_dout[place] = to_bf16(dout);
        sum += (ROUNDS ? widen(to_bf16(dout)) : dout) * out;
    }
    sum = warp_sum(sum);
    if (lane() == 0) p.delta[at] = sum;
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
    attention_delta(const __grid_constant__ Attention p) {
    delta<true>(p);
}
extern "C" __global__ void __launch_bounds__(N_THREADS)
    attention_in_f32_delta(const __grid_constant__ Attention p) {
    delta<false>(p);
}

// What turns scores of a query, and gradients of its probabilities, into gradients of its scores.
struct QueryRow {
    // In powers of two.
    f32 log_sum_exp;
    f32 delta;

    __device__ __forceinline__ void read(const Attention& p, const Segment& s, u32 i, u32 head) {
        const u64 at = static_cast<u64>(s.query_start + i) * p.n_heads + head;
        log_sum_exp = i < s.n_queries ? p.log_sum_exp[at] * LOG2_E : 0.0f;
        delta = i < s.n_queries ? p.delta[at] : 0.0f;
    }

    // The probability in the score's place, and the score's gradient in the probability's; `scale` in powers
    // of two.
    __device__ __forceinline__ void differentiate(f32 scale, f32& score, f32& gradient) const {
        score = power_of_2(fmaf(score, scale, -log_sum_exp));
        gradient = score * (gradient - delta);
    }
};

// The gradient of queries. Grid: tiles of queries, heads, segments.
template <u32 WIDTH, u32 KEYS>
__device__ __forceinline__ void query_gradient(const Attention& p) {
    typedef Rows<WIDTH> R;
    const Segment s = p.segments[blockIdx.z];
    const u32 first = first_query_of_block();
    if (first >= s.n_queries) return;
    const u32 head = p.first_head + blockIdx.y, kv_head = head / (p.n_heads / p.n_kv_heads);
    const u64 q_stride = static_cast<u64>(p.n_heads) * p.head_size;
    const u64 k_stride = static_cast<u64>(p.n_kv_heads) * p.head_size;
    const u64 q_at = (s.query_start + first) * q_stride + head * p.head_size;
    const u64 k_at = s.key_start * k_stride + kv_head * p.head_size;
    const u32 q_tile = shared_address(tiles);
    const u32 dout_tile = q_tile + OWN_ROWS * R::BYTES;
    const u32 v_tile = dout_tile + OWN_ROWS * R::BYTES;
    const u32 k_tiles = v_tile + KEYS * R::BYTES;
    const u32 n = s.n_queries - first;
    const auto bring = [&](u32 tile, const void* matrix, u32 key) {
        const bf16* rows = as<bf16>(matrix) + k_at + key * k_stride;
        R::template bring<KEYS>(tile, rows, k_stride, s.n_keys - key, p.head_size);
    };
    const u32 end = end_of_keys(s, first + OWN_ROWS);
    u32 key = first_key(p, s, first) / KEYS * KEYS;
    R::template bring<OWN_ROWS>(q_tile, as<bf16>(p.q) + q_at, q_stride, n, p.head_size);
    R::template bring<OWN_ROWS>(dout_tile, p.seen_dout + q_at, q_stride, n, p.head_size);
    bring(k_tiles, p.k, key);
    bring(v_tile, p.v, key);
    end_copy_group();
    const u32 own = warp() * 16;
    const f32 scale = p.scale * LOG2_E;
    QueryRow rows[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) rows[half].read(p, s, first + own + 8 * half + lane() / 4, head);
    Sums<WIDTH> dq;
    dq.clear();
    // Keys are read until the end of their turn: the next ones have a tile of their own.
    u32 turn = 0;
    for (; key < end; key += KEYS, turn ^= 1) {
        const u32 k_tile = k_tiles + turn * KEYS * R::BYTES;
        wait_for_copy_groups<0>();
        __syncthreads();
        const bool has_next = key + KEYS < end;
        if (has_next) bring(k_tiles + (turn ^ 1) * KEYS * R::BYTES, p.k, key + KEYS);
        end_copy_group();
        const bool is_seen = !see_none(p, s, first + own, 16, key, KEYS);
        Sums<KEYS> scores, gradients;
        if (is_seen) {
            scores.clear();
            gradients.clear();
            scores.template add_rows_by_rows<WIDTH>(q_tile, own, k_tile);
            gradients.template add_rows_by_rows<WIDTH>(dout_tile, own, v_tile);
        }
        // Nobody reads these values any more.
        __syncthreads();
        if (has_next) bring(v_tile, p.v, key + KEYS);
        end_copy_group();
        if (!is_seen) continue;
        if (!see_all(p, s, first + own, 16, key, KEYS))
            scores.template hide<false>(p, s, first + own, key);
#pragma unroll
        for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++)
                rows[e / 2].differentiate(scale, scores.of[j][e], gradients.of[j][e]);
        dq.template add_scores_by_rows<KEYS>(gradients, k_tile);
    }
    const f32 factors[2] = {p.scale, p.scale};
    dq.store(p.dq + q_at, q_stride, own, n, p.head_size, factors);
}

// The gradients of keys and values, or of either. Grid: tiles of keys, heads of keys, segments. The next
// queries come while those before are worked on.
template <u32 WIDTH, u32 QUERIES, bool OF_KEYS, bool OF_VALUES>
__device__ __forceinline__ void key_gradients(const Attention& p) {
    typedef Rows<WIDTH> R;
    const Segment s = p.segments[blockIdx.z];
    const u32 first = blockIdx.x * OWN_ROWS;
    if (first >= s.n_keys) return;
    const u32 kv_head = p.first_head + blockIdx.y, n_shared = p.n_heads / p.n_kv_heads;
    const u64 q_stride = static_cast<u64>(p.n_heads) * p.head_size;
    const u64 k_stride = static_cast<u64>(p.n_kv_heads) * p.head_size;
    const u64 k_at = (s.key_start + first) * k_stride + kv_head * p.head_size;
    const u32 k_tile = shared_address(tiles);
    const u32 v_tile = k_tile + OWN_ROWS * R::BYTES;
    const u32 query_tiles = v_tile + OWN_ROWS * R::BYTES;
    const u32 n = s.n_keys - first;
    R::template bring<OWN_ROWS>(k_tile, as<bf16>(p.k) + k_at, k_stride, n, p.head_size);
    R::template bring<OWN_ROWS>(v_tile, as<bf16>(p.v) + k_at, k_stride, n, p.head_size);
    end_copy_group();
    const u32 own = warp() * 16;
    const f32 scale = p.scale * LOG2_E;
    Sums<OF_KEYS ? WIDTH : 16> dk;
    Sums<OF_VALUES ? WIDTH : 16> dv;
    dk.clear();
    dv.clear();
    const u32 start = first_query(s, first) / QUERIES * QUERIES;
    const u32 end = end_of_queries(p, s, smaller(first + OWN_ROWS, s.n_keys));
    const u32 last_head = end > start ? (kv_head + 1) * n_shared : 0;
    // A tile of queries of one of the heads, and of their gradients behind it.
    const auto bring = [&](u32 tile, u32 head, u32 query) {
        const u64 q_at = (s.query_start + query) * q_stride + head * p.head_size;
        const u32 n_left = s.n_queries - query;
        R::template bring<QUERIES>(tile, as<bf16>(p.q) + q_at, q_stride, n_left, p.head_size);
        R::template bring<QUERIES>(tile + QUERIES * R::BYTES, p.seen_dout + q_at, q_stride, n_left,
                                   p.head_size);
        end_copy_group();
    };
    u32 head = kv_head * n_shared, query = start, turn = 0;
    if (head < last_head) bring(query_tiles, head, query);
    while (head < last_head) {
        const u32 q_tile = query_tiles + turn * (2 * QUERIES * R::BYTES);
        const u32 dout_tile = q_tile + QUERIES * R::BYTES;
        u32 next_head = head, next_query = query + QUERIES;
        if (next_query >= end) next_head = head + 1, next_query = start;
        turn ^= 1;
        wait_for_copy_groups<0>();
        __syncthreads();
        if (next_head < last_head)
            bring(query_tiles + turn * (2 * QUERIES * R::BYTES), next_head, next_query);
        // Rows are keys here, columns queries.
        if (!see_none(p, s, query, QUERIES, first + own, 16)) {
            QueryRow rows[QUERIES / 4];
#pragma unroll
            for (u32 j = 0; j < QUERIES / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 2; e++)
                    rows[2 * j + e].read(p, s, query + 8 * j + 2 * (lane() % 4) + e, head);
            Sums<QUERIES> scores, gradients;
            scores.clear();
            gradients.clear();
            scores.template add_rows_by_rows<WIDTH>(k_tile, own, q_tile);
            if (OF_KEYS) gradients.template add_rows_by_rows<WIDTH>(v_tile, own, dout_tile);
            if (!see_all(p, s, query, QUERIES, first + own, 16))
                scores.template hide<true>(p, s, query, first + own);
#pragma unroll
            for (u32 j = 0; j < QUERIES / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 4; e++)
                    rows[2 * j + e % 2].differentiate(scale, scores.of[j][e], gradients.of[j][e]);
            if constexpr (OF_VALUES)
                dv.template add_scores_by_rows<QUERIES>(scores, dout_tile);
            if constexpr (OF_KEYS)
                dk.template add_scores_by_rows<QUERIES>(gradients, q_tile);
        }
        head = next_head, query = next_query;
    }
    // Keys that no query sees are still on their way.
    wait_for_copy_groups<0>();
    if constexpr (OF_KEYS) {
        const f32 factors[2] = {p.scale, p.scale};
        dk.store(p.dk + k_at, k_stride, own, n, p.head_size, factors);
    }
    if constexpr (OF_VALUES) {
        const f32 factors[2] = {1.0f, 1.0f};
        dv.store(p.dv + k_at, k_stride, own, n, p.head_size, factors);
    }
}

// For heads of at most WIDTH numbers, visited by KEYS rows in the forward pass and ROWS in the backward ones, so
// that a multiprocessor of a gaming card has room for BLOCKS of them (cuda.rs).
#define ATTENTION(WIDTH, KEYS, ROWS, BLOCKS)                                                       \
    extern "C" __global__ void __launch_bounds__(N_THREADS, BLOCKS)                                \
        attention_forward_##WIDTH(const __grid_constant__ Attention p) {                           \
        forward<WIDTH, KEYS>(p);                                                                   \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(N_THREADS, BLOCKS)                                \
        attention_query_gradient_##WIDTH(const __grid_constant__ Attention p) {                    \
        query_gradient<WIDTH, ROWS>(p);                                                            \
    }
#define ATTENTION_OF_KEYS(WIDTH, ROWS, BLOCKS, name, OF_KEYS, OF_VALUES)                           \
    extern "C" __global__ void __launch_bounds__(N_THREADS, BLOCKS)                                \
        attention_##name##_gradient_##WIDTH(const __grid_constant__ Attention p) {                 \
        key_gradients<WIDTH, ROWS, OF_KEYS, OF_VALUES>(p);                                         \
    }
ATTENTION(32, 64, 32, 4)
ATTENTION_OF_KEYS(32, 32, 4, key_value, true, true)
ATTENTION(64, 64, 32, 3)
ATTENTION_OF_KEYS(64, 32, 3, key_value, true, true)
ATTENTION(96, 64, 32, 2)
ATTENTION_OF_KEYS(96, 32, 2, key_value, true, true)
ATTENTION(128, 64, 16, 2)
ATTENTION_OF_KEYS(128, 16, 2, key_value, true, true)
ATTENTION(256, 32, 16, 1)
ATTENTION_OF_KEYS(256, 16, 1, key, true, false)
ATTENTION_OF_KEYS(256, 16, 1, value, false, true)

// ---- In f32, for parity: a warp has a row, a lane one of 32 rows that it looks at ----

// Numbers of a head that a lane has.
constexpr u32 SLOTS = 8;

__device__ __forceinline__ f32 product_of_rows(const f32* a, const f32* b, u32 n) {
    f32 sum = 0.0f;
    for (u32 i = 0; i < n; i++) sum = fmaf(a[i], b[i], sum);
    return sum;
}

// sums += the weights of 32 lanes times their rows from `first` on, of which `n` are there.
__device__ __forceinline__ void add_rows(f32 (&sums)[SLOTS], f32 weight, const f32* first, u64 stride,
                                         u32 n, u32 head_size) {
    for (u32 row = 0; row < smaller(n, WARP); row++) {
        const f32 factor = __shfl_sync(ALL_LANES, weight, row);
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; slot++) {
            const u32 i = slot * WARP + lane();
            if (i < head_size) sums[slot] = fmaf(factor, first[row * stride + i], sums[slot]);
        }
    }
}

__device__ __forceinline__ void store_row(f32* row, const f32 (&sums)[SLOTS], f32 factor, u32 head_size) {
#pragma unroll
    for (u32 slot = 0; slot < SLOTS; slot++) {
        const u32 i = slot * WARP + lane();
        if (i < head_size) row[i] = sums[slot] * factor;
    }
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
    attention_in_f32_forward(const __grid_constant__ Attention p) {
    const Segment s = p.segments[blockIdx.z];
    const u32 i = blockIdx.x * (N_THREADS / WARP) + warp();
    if (i >= s.n_queries) return;
    const u32 head = p.first_head + blockIdx.y, kv_head = head / (p.n_heads / p.n_kv_heads);
    const u64 k_stride = static_cast<u64>(p.n_kv_heads) * p.head_size;
    const u64 row = static_cast<u64>(s.query_start + i) * p.n_heads + head;
    const u64 k_at = s.key_start * k_stride + kv_head * p.head_size;
    f32 out[SLOTS] = {};
    f32 maximum = HIDDEN, sum = 0.0f;
    const u32 end = end_of_keys(s, i + 1);
    for (u32 key = first_key(p, s, i); key < end; key += WARP) {
        const u32 j = key + lane();
        const f32* q = as<f32>(p.q) + row * p.head_size;
        const f32* k = as<f32>(p.k) + k_at + j * k_stride;
        const f32 score = j < end ? p.scale * product_of_rows(q, k, p.head_size)
                                  : HIDDEN;
        const f32 largest = fmaxf(maximum, warp_max(score));
        const f32 factor = expf(maximum - largest), weight = expf(score - largest);
        maximum = largest;
        sum = sum * factor + warp_sum(weight);
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; slot++) out[slot] *= factor;
        add_rows(out, weight, as<f32>(p.v) + k_at + key * k_stride, k_stride, end - key, p.head_size);
    }
    store_row(static_cast<f32*>(p.out) + row * p.head_size, out, 1.0f / sum, p.head_size);
    if (lane() == 0) p.log_sum_exp[row] = maximum + logf(sum);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
    attention_in_f32_query_gradient(const __grid_constant__ Attention p) {
    const Segment s = p.segments[blockIdx.z];
    const u32 i = blockIdx.x * (N_THREADS / WARP) + warp();
    if (i >= s.n_queries) return;
    const u32 head = p.first_head + blockIdx.y, kv_head = head / (p.n_heads / p.n_kv_heads);
    const u64 k_stride = static_cast<u64>(p.n_kv_heads) * p.head_size;
    const u64 row = static_cast<u64>(s.query_start + i) * p.n_heads + head;
    const u64 k_at = s.key_start * k_stride + kv_head * p.head_size;
    f32 dq[SLOTS] = {};
    const u32 end = end_of_keys(s, i + 1);
    for (u32 key = first_key(p, s, i); key < end; key += WARP) {
        const u32 j = key + lane();
        f32 gradient = 0.0f;
        if (j < end) {
            const u64 at = k_at + j * k_stride;
            const f32* q = as<f32>(p.q) + row * p.head_size;
            const f32 score = p.scale * product_of_rows(q, as<f32>(p.k) + at, p.head_size);
            gradient = product_of_rows(p.dout + row * p.head_size, as<f32>(p.v) + at, p.head_size);
            gradient = expf(score - p.log_sum_exp[row]) * (gradient - p.delta[row]);
        }
        add_rows(dq, gradient, as<f32>(p.k) + k_at + key * k_stride, k_stride, end - key, p.head_size);
    }
    store_row(p.dq + row * p.head_size, dq, p.scale, p.head_size);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
    attention_in_f32_key_value_gradient(const __grid_constant__ Attention p) {
    const Segment s = p.segments[blockIdx.z];
    const u32 j = blockIdx.x * (N_THREADS / WARP) + warp();
    if (j >= s.n_keys) return;
    const u32 kv_head = p.first_head + blockIdx.y, n_shared = p.n_heads / p.n_kv_heads;
    const u64 q_stride = static_cast<u64>(p.n_heads) * p.head_size;
    const u64 at = (static_cast<u64>(s.key_start + j) * p.n_kv_heads + kv_head) * p.head_size;
    f32 dk[SLOTS] = {}, dv[SLOTS] = {};
    const u32 end = end_of_queries(p, s, j + 1);
    for (u32 head = kv_head * n_shared; head < (kv_head + 1) * n_shared; head++) {
        const u64 q_at = s.query_start * q_stride + head * p.head_size;
        for (u32 query = first_query(s, j); query < end; query += WARP) {
            const u32 i = query + lane();
            f32 probability = 0.0f, gradient = 0.0f;
            if (i < end) {
                const u64 row = static_cast<u64>(s.query_start + i) * p.n_heads + head;
                const f32* q = as<f32>(p.q) + row * p.head_size;
                const f32 score = p.scale * product_of_rows(q, as<f32>(p.k) + at, p.head_size);
                gradient = product_of_rows(p.dout + row * p.head_size, as<f32>(p.v) + at, p.head_size);
                probability = expf(score - p.log_sum_exp[row]);
                gradient = probability * (gradient - p.delta[row]);
            }
            const u64 first = q_at + query * q_stride;
            add_rows(dv, probability, p.dout + first, q_stride, end - query, p.head_size);
            add_rows(dk, gradient, as<f32>(p.q) + first, q_stride, end - query, p.head_size);
        }
    }
    store_row(p.dk + at, dk, p.scale, p.head_size);
    store_row(p.dv + at, dv, 1.0f, p.head_size);
}
