//! Panels of f32 straight from what is stored, eight lanes at a time: what is multiplied where products are in
//! f32, as they are on processors that have none in bf16.

use std::{arch::x86_64::*, ops::Range};

use half::bf16;

use super::{
    expand::Values,
    layout::{LANES_AHEAD, Layout, STEPS_AHEAD},
    nf4::{HALF, Nf4Values},
};
use crate::{
    blockwise::DynamicCode,
    nf4::{ABSMAX_GROUP, BLOCK, LEVELS},
};

/// Numbers in a vector, and the rows that are turned at a time.
const SIDE: usize = 8;

/// Lanes whose four-bit codes are turned at a time: a panel's, or half of a wide one's.
const NF4_LANES: usize = 16;

/// Panels that are written beside each other at a time.
const PANELS_AT_ONCE: usize = 4;

/// A part of a stored matrix: its rows are `stride` apart.
#[derive(Clone)]
pub(super) struct Part {
    pub layout: Layout,
    pub stride: usize,
    pub lanes: Range<usize>,
    pub depth: Range<usize>,
}

impl Part {
    /// Elements up to the end of its last row.
    fn end(&self) -> usize {
        let (rows, columns) = match self.layout {
            Layout::Depth => (&self.lanes, &self.depth),
            Layout::Lanes => (&self.depth, &self.lanes),
        };
        rows.end.saturating_sub(1) * self.stride + columns.end
    }
}

/// Packs a part into panels of `width` lanes, or says that it cannot: of numbers that are dropped, of blocks of
/// codes that are cut, and of codes in panels of other widths than 16 and 32.
/// Lanes that do not exist are zero, or like the last one that does.
///
/// # Safety
/// The processor must have AVX2.
pub(super) unsafe fn pack(
    values: &Values<'_>,
    part: Part,
    (packed, width): (&mut [u32], usize),
) -> bool {
    let Part { layout, stride, ref lanes, ref depth } = part;
    if lanes.is_empty() || depth.is_empty() {
        return false;
    }
    let end = part.end();
    assert!(values.len() >= end, "{end} elements of {}", values.len());
    assert!(packed.len() >= lanes.len().next_multiple_of(width) * depth.len());
    match values {
        // SAFETY: what is read and written is there, as just checked; the processor has AVX2.
        Values::F32(values) => unsafe { pack_f32(values, part, (packed, width)) },
        // SAFETY: as above.
        Values::Bf16(values) => unsafe { pack_bf16(values, part, (packed, width)) },
        Values::Nf4(values) => {
            let whole = |range: &Range<usize>, n: usize| {
                range.start.is_multiple_of(n) && range.len().is_multiple_of(n)
            };
            let fits = match layout {
                Layout::Depth => whole(depth, BLOCK),
                Layout::Lanes => whole(lanes, NF4_LANES) && lanes.len().is_multiple_of(width),
            };
            if !fits
                || ![NF4_LANES, 2 * NF4_LANES].contains(&width)
                || !stride.is_multiple_of(BLOCK)
            {
                return false;
            }
            let there = [2 * values.codes.len(), BLOCK * values.absmax_codes.len()];
            assert!(there.iter().all(|&n| n >= end), "{end} elements of {there:?}");
            assert!(values.absmax_scales.len() * ABSMAX_GROUP * BLOCK >= end);
            // SAFETY: as above, and the blocks' absmax too.
            unsafe {
                match layout {
                    Layout::Depth => along_nf4(values, part, (packed, width)),
                    Layout::Lanes => across_nf4(values, part, (packed, width)),
                }
            }
            true
        }
        Values::Dropped(..) => false,
    }
}

/// How numbers are read: eight at a time, or fewer and zeros after them.
trait Stored: Copy {
    /// # Safety
    /// Eight must be there.
    unsafe fn eight(start: *const Self) -> __m256;

    /// # Safety
    /// `n`, fewer than eight, must be there.
    unsafe fn some(start: *const Self, n: usize) -> __m256;
}

impl Stored for f32 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn eight(start: *const Self) -> __m256 {
        // SAFETY: as the caller promises.
        unsafe { _mm256_loadu_ps(start) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn some(start: *const Self, n: usize) -> __m256 {
        let numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let there = _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), numbers);
        // SAFETY: those that the mask names are there, as the caller promises.
        unsafe { _mm256_maskload_ps(start, there) }
    }
}

impl Stored for bf16 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn eight(start: *const Self) -> __m256 {
        // SAFETY: as the caller promises.
        let bits = unsafe { _mm_loadu_si128(start.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn some(start: *const Self, n: usize) -> __m256 {
        let mut eight = [Self::ZERO; SIDE];
        // SAFETY: as the caller promises.
        unsafe {
            eight[..n].copy_from_slice(std::slice::from_raw_parts(start, n));
            Self::eight(eight.as_ptr())
        }
    }
}

/// Writes eight lanes of a step: all of them, or the first six.
///
/// # Safety
/// They must be there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(place: *mut f32, lanes: __m256, all: bool) {
    // SAFETY: as the caller promises.
    unsafe {
        if all {
            _mm256_storeu_ps(place, lanes);
        } else {
            _mm_storeu_ps(place, _mm256_castps256_ps128(lanes));
            let rest = _mm_castps_pd(_mm256_extractf128_ps::<1>(lanes));
            _mm_store_sd(place.add(4).cast(), rest);
        }
    }
}

/// Asks for a line that will be read soon: rows are far apart, so that the processor does not guess them.
#[inline]
fn ask_for<T>(address: *const T) {
    // SAFETY: a prefetch may be of any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

/// [`pack`] where neighbours are neighbours in k.
///
/// # Safety
/// The matrix and the panels must be as large as is asked for, and the panels' width a multiple of
/// eight, or six more.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn along<T: Stored>(
    values: &[T],
    Part { stride, lanes, depth, .. }: Part,
    (packed, width): (&mut [u32], usize),
) {
    let steps = depth.len();
    let start = packed.as_mut_ptr().cast::<f32>();
    let whole = steps / SIDE * SIDE;
    for (panel, first_lane) in lanes.clone().step_by(width).enumerate() {
        for group in (0..width).step_by(SIDE) {
            let all = width - group >= SIDE;
            let row = |i: usize| {
                let lane = (first_lane + group + i).min(lanes.end - 1);
                values.as_ptr().wrapping_add(lane * stride + depth.start)
            };
            // Named one by one, as what closures make of arrays goes through memory.
            let rows = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
            let place = |step: usize| {
                let place = (panel * steps + step) * width + group;
                start.wrapping_add(place)
            };
            for first in (0..whole).step_by(SIDE) {
                if (first * size_of::<T>()).is_multiple_of(64) {
                    for row in rows {
                        ask_for(row.wrapping_add(LANES_AHEAD * stride + first));
                    }
                }
                // SAFETY: the rows' eight are there, and the steps' lanes.
                unsafe {
                    let [a, b, c, d, e, f, g, h] = rows;
                    let turned = turned([
                        T::eight(a.add(first)),
                        T::eight(b.add(first)),
                        T::eight(c.add(first)),
                        T::eight(d.add(first)),
                        T::eight(e.add(first)),
                        T::eight(f.add(first)),
                        T::eight(g.add(first)),
                        T::eight(h.add(first)),
                    ]);
                    for (step, lanes) in turned.into_iter().enumerate() {
                        store(place(first + step), lanes, all);
                    }
                }
            }
            if whole < steps {
                let some = |i: usize| {
                    // SAFETY: so many of the row are there.
                    unsafe { T::some(rows[i].add(whole), steps - whole) }
                };
                let rows = [some(0), some(1), some(2), some(3), some(4), some(5), some(6), some(7)];
                for (step, lanes) in (whole..steps).zip(turned(rows)) {
                    // SAFETY: the step's lanes are there.
                    unsafe { store(place(step), lanes, all) };
                }
            }
        }
    }
}

/// [`pack`] where neighbours are neighbouring lanes, of panels of `WIDTH`; few at a time, as their steps may
/// lie a multiple of 4 KiB apart, of which a cache has few places.
///
/// # Safety
/// As [`along`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn across<T: Stored, const WIDTH: usize>(
    values: &[T],
    Part { stride, lanes, depth, .. }: Part,
    packed: &mut [u32],
) {
    let (steps, n_lanes) = (depth.len(), lanes.len());
    let start = packed.as_mut_ptr().cast::<f32>();
    // Panels for which whole vectors are there.
    let n_whole = (n_lanes + WIDTH).saturating_sub(WIDTH.next_multiple_of(SIDE)) / WIDTH;
    for first in (0..n_lanes.div_ceil(WIDTH)).step_by(PANELS_AT_ONCE) {
        let end = (first + PANELS_AT_ONCE).min(n_lanes.div_ceil(WIDTH));
        let asked = first * WIDTH..(end * WIDTH).min(n_lanes);
        for (step, k) in depth.clone().enumerate() {
            let row = values.as_ptr().wrapping_add(k * stride + lanes.start);
            for lane in asked.clone().step_by(64 / size_of::<T>()) {
                ask_for(row.wrapping_add(STEPS_AHEAD * stride + lane));
            }
            let place = |panel: usize, group: usize| {
                let place = (panel * steps + step) * WIDTH + group;
                start.wrapping_add(place)
            };
            // What is beyond a step's lanes is the next one's, which are written later.
            let has_next = step + 1 < steps || WIDTH.is_multiple_of(SIDE);
            let n_whole = if has_next { n_whole.clamp(first, end) } else { first };
            for panel in first..n_whole {
                for group in (0..WIDTH).step_by(SIDE) {
                    // SAFETY: the row's lanes are there, and the step's or the next step's.
                    unsafe {
                        let lanes = T::eight(row.add(panel * WIDTH + group));
                        store(place(panel, group), lanes, true);
                    }
                }
            }
            for panel in n_whole..end {
                for group in (0..WIDTH).step_by(SIDE) {
                    let lane = panel * WIDTH + group;
                    let n_there = n_lanes.saturating_sub(lane).min(SIDE);
                    let row = row.wrapping_add(lane);
                    // SAFETY: so many lanes of the row are there, and the step's.
                    unsafe {
                        let lanes =
                            if n_there == SIDE { T::eight(row) } else { T::some(row, n_there) };
                        store(place(panel, group), lanes, WIDTH - group >= SIDE);
                    }
                }
            }
        }
    }
}

/// Panels of f32.
///
/// # Safety
/// As [`along`].
#[target_feature(enable = "avx2")]
unsafe fn pack_f32(values: &[f32], part: Part, panels: (&mut [u32], usize)) -> bool {
    // SAFETY: as the caller promises.
    unsafe { pack_stored(values, part, panels) }
}

/// Panels of bf16.
///
/// # Safety
/// As [`along`].
#[target_feature(enable = "avx2")]
unsafe fn pack_bf16(values: &[bf16], part: Part, panels: (&mut [u32], usize)) -> bool {
    // SAFETY: as the caller promises.
    unsafe { pack_stored(values, part, panels) }
}

/// # Safety
/// As [`along`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pack_stored<T: Stored>(
    values: &[T],
    part: Part,
    (packed, width): (&mut [u32], usize),
) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        match (part.layout, width) {
            (Layout::Depth, 6 | 8 | 14 | 16 | 32) => along(values, part, (packed, width)),
            (Layout::Lanes, 6) => across::<_, 6>(values, part, packed),
            (Layout::Lanes, 8) => across::<_, 8>(values, part, packed),
            (Layout::Lanes, 14) => across::<_, 14>(values, part, packed),
            (Layout::Lanes, 16) => across::<_, 16>(values, part, packed),
            (Layout::Lanes, 32) => across::<_, 32>(values, part, packed),
            _ => return false,
        }
    }
    true
}

/// Eight rows as their columns: neighbouring rows are interleaved by numbers, then by twos, then halves change
/// places.
#[inline]
#[target_feature(enable = "avx2")]
fn turned([a, b, c, d, e, f, g, h]: [__m256; SIDE]) -> [__m256; SIDE] {
    let twos = |a, b, c, d| {
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (low_next, high_next) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        (
            _mm256_shuffle_ps::<0b01_00_01_00>(low, low_next),
            _mm256_shuffle_ps::<0b11_10_11_10>(low, low_next),
            _mm256_shuffle_ps::<0b01_00_01_00>(high, high_next),
            _mm256_shuffle_ps::<0b11_10_11_10>(high, high_next),
        )
    };
    let (a, b, c, d) = twos(a, b, c, d);
    let (e, f, g, h) = twos(e, f, g, h);
    [
        _mm256_permute2f128_ps::<0x20>(a, e),
        _mm256_permute2f128_ps::<0x20>(b, f),
        _mm256_permute2f128_ps::<0x20>(c, g),
        _mm256_permute2f128_ps::<0x20>(d, h),
        _mm256_permute2f128_ps::<0x31>(a, e),
        _mm256_permute2f128_ps::<0x31>(b, f),
        _mm256_permute2f128_ps::<0x31>(c, g),
        _mm256_permute2f128_ps::<0x31>(d, h),
    ]
}

/// The bytes of what each four-bit code stands for, from the lowest.
const LEVEL_BYTES: [[u8; 16]; 4] = {
    let mut bytes = [[0; 16]; 4];
    let mut code = 0;
    while code < 16 {
        let level = LEVELS[code].to_le_bytes();
        let mut byte = 0;
        while byte < 4 {
            bytes[byte][code] = level[byte];
            byte += 1;
        }
        code += 1;
    }
    bytes
};

/// [`LEVEL_BYTES`], each in both halves of a register.
#[derive(Clone, Copy)]
struct Levels([__m256i; 4]);

impl Levels {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new() -> Self {
        let [a, b, c, d] = &LEVEL_BYTES;
        let twice = |bytes: &[u8; 16]| {
            // SAFETY: 16 bytes are there.
            _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
        };
        Self([twice(a), twice(b), twice(c), twice(d)])
    }

    /// What 32 codes stand for: of the first four of each half, then of the next four, and so on. Looked up
    /// byte by byte, and put together by interleaving.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn of(self, codes: __m256i) -> [__m256; 4] {
        let Self([a, b, c, d]) = self;
        let (a, b) = (_mm256_shuffle_epi8(a, codes), _mm256_shuffle_epi8(b, codes));
        let (c, d) = (_mm256_shuffle_epi8(c, codes), _mm256_shuffle_epi8(d, codes));
        let (low, low_next) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
        let (high, high_next) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
        [
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, high)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, high)),
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(low_next, high_next)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(low_next, high_next)),
        ]
    }
}

/// [`along`], of four-bit codes. A byte is two steps of a lane: bytes of 16 lanes are turned, and then each is
/// looked up twice.
///
/// # Safety
/// As [`along`].
#[target_feature(enable = "avx2")]
unsafe fn along_nf4(
    values: &Nf4Values<'_>,
    Part { stride, lanes, depth, .. }: Part,
    (packed, width): (&mut [u32], usize),
) {
    let steps = depth.len();
    let code = DynamicCode::signed().values();
    let levels = Levels::new();
    let lowest = _mm256_set1_epi8(15);
    for (panel, first_lane) in lanes.clone().step_by(width).enumerate() {
        for group in (0..width).step_by(NF4_LANES) {
            for k in depth.clone().step_by(BLOCK) {
                let start = |i: usize| {
                    let lane = (first_lane + group + i).min(lanes.end - 1);
                    lane * stride + k
                };
                let at = |i| {
                    values.ask_for(start(i) + LANES_AHEAD * stride);
                    // SAFETY: the row is there.
                    unsafe { values.absmax_by(code, start(i) / BLOCK) }
                };
                let absmax = [
                    _mm256_setr_ps(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)),
                    _mm256_setr_ps(at(8), at(9), at(10), at(11), at(12), at(13), at(14), at(15)),
                ];
                for half in [0, HALF] {
                    let row = |i| {
                        let codes = values.codes.as_ptr().wrapping_add((start(i) + half) / 2);
                        // SAFETY: the row's bytes are there.
                        unsafe { _mm_loadu_si128(codes.cast()) }
                    };
                    // Fours of lanes by turns in the halves, so that eight neighbours are looked up.
                    let two =
                        |i: usize| _mm256_set_m128i(row(i + i / 4 * 4 + 4), row(i + i / 4 * 4));
                    let rows = [two(0), two(1), two(2), two(3), two(4), two(5), two(6), two(7)];
                    let step = k - depth.start + half;
                    let start = (panel * steps + step) * width + group;
                    let start = packed.as_mut_ptr().wrapping_add(start).cast::<f32>();
                    for (pair, columns) in turned_bytes(rows).into_iter().enumerate() {
                        let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(columns), lowest);
                        let lower = _mm256_and_si256(columns, lowest);
                        for (step, codes) in [upper, lower].into_iter().enumerate() {
                            let [a, b, c, d] = levels.of(codes);
                            let place = start.wrapping_add((4 * pair + step) * width);
                            let next = place.wrapping_add(2 * width);
                            // SAFETY: the lanes of both steps are there.
                            unsafe {
                                _mm256_storeu_ps(place, _mm256_mul_ps(a, absmax[0]));
                                let b = _mm256_mul_ps(b, absmax[1]);
                                _mm256_storeu_ps(place.wrapping_add(SIDE), b);
                                _mm256_storeu_ps(next, _mm256_mul_ps(c, absmax[0]));
                                let d = _mm256_mul_ps(d, absmax[1]);
                                _mm256_storeu_ps(next.wrapping_add(SIDE), d);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// 16 bytes of each of eight rows as their columns, two one after another; the same in both halves of the
/// registers.
#[inline]
#[target_feature(enable = "avx2")]
fn turned_bytes([a, b, c, d, e, f, g, h]: [__m256i; SIDE]) -> [__m256i; SIDE] {
    let fours = |a, b, c, d| {
        let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
        let (low_next, high_next) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
        (
            _mm256_unpacklo_epi16(low, low_next),
            _mm256_unpackhi_epi16(low, low_next),
            _mm256_unpacklo_epi16(high, high_next),
            _mm256_unpackhi_epi16(high, high_next),
        )
    };
    let (a, b, c, d) = fours(a, b, c, d);
    let (e, f, g, h) = fours(e, f, g, h);
    [
        _mm256_unpacklo_epi32(a, e),
        _mm256_unpackhi_epi32(a, e),
        _mm256_unpacklo_epi32(b, f),
        _mm256_unpackhi_epi32(b, f),
        _mm256_unpacklo_epi32(c, g),
        _mm256_unpackhi_epi32(c, g),
        _mm256_unpacklo_epi32(d, h),
        _mm256_unpackhi_epi32(d, h),
    ]
}

/// [`across`], of four-bit codes.
///
/// # Safety
/// As [`along`].
#[target_feature(enable = "avx2")]
unsafe fn across_nf4(
    values: &Nf4Values<'_>,
    Part { stride, lanes, depth, .. }: Part,
    (packed, width): (&mut [u32], usize),
) {
    let steps = depth.len();
    let start = packed.as_mut_ptr().cast::<f32>();
    let code = DynamicCode::signed().values();
    let levels = Levels::new();
    let lowest = _mm_set1_epi8(15);
    // Fours of codes by turns in the halves, so that eight neighbours are looked up.
    let fours = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    for (step, k) in depth.enumerate() {
        let row = k * stride;
        for lane in lanes.clone().step_by(2 * BLOCK) {
            values.ask_for(row + STEPS_AHEAD * stride + lane);
        }
        let mut absmax = _mm256_setzero_ps();
        let mut lane = lanes.start;
        while lane < lanes.end {
            let element = row + lane;
            // Half a block, or what is left of it.
            let n = (HALF - lane % HALF).min(lanes.end - lane);
            let place = |after: usize| {
                let group = (lane - lanes.start + after) / NF4_LANES;
                let (panel, group) =
                    if width == NF4_LANES { (group, 0) } else { (group / 2, group % 2) };
                let place = (panel * steps + step) * width + group * NF4_LANES;
                start.wrapping_add(place)
            };
            // SAFETY: the row's lanes and those of the panel's step are there.
            unsafe {
                if lane == lanes.start || lane.is_multiple_of(BLOCK) {
                    absmax = _mm256_set1_ps(values.absmax_by(code, element / BLOCK));
                }
                let codes = values.codes.as_ptr().add(element / 2).cast();
                let codes = if n == HALF { _mm_loadu_si128(codes) } else { _mm_loadl_epi64(codes) };
                let upper = _mm_and_si128(_mm_srli_epi16::<4>(codes), lowest);
                let lower = _mm_and_si128(codes, lowest);
                let codes = _mm256_set_m128i(
                    _mm_unpackhi_epi8(upper, lower),
                    _mm_unpacklo_epi8(upper, lower),
                );
                let [a, b, c, d] = levels.of(_mm256_permutevar8x32_epi32(codes, fours));
                let first = place(0);
                _mm256_storeu_ps(first, _mm256_mul_ps(a, absmax));
                _mm256_storeu_ps(first.wrapping_add(SIDE), _mm256_mul_ps(b, absmax));
                if n == HALF {
                    let second = place(NF4_LANES);
                    _mm256_storeu_ps(second, _mm256_mul_ps(c, absmax));
                    _mm256_storeu_ps(second.wrapping_add(SIDE), _mm256_mul_ps(d, absmax));
                }
            }
            lane += n;
        }
    }
}
