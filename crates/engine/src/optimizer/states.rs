//! Where the optimizer's states lie: one image of pages, each of which can visit the device alone.
//!
//! ```text
//! page 0 | page 1 | …          page = first moments of its pieces | second moments of its pieces
//! ```
//! A piece is a run of elements of one tensor. A page holds both moments of up to [`PAGE_ELEMENTS`]
//! neighbouring elements, so that a visit is one transfer each way, and never crosses the border of
//! two blocks of weights, so that trained weights may visit block by block beside it. Moments of
//! neighbours are neighbours, so that many small tensors can be updated as one. The image is
//! the same whether it lies on the device, in the host's memory or in a file.

use std::ops::Range;

use nibble_kernels::adamw::{MOMENT_BLOCK, n_moment_blocks};

/// Elements of a page, at most: 8 MiB in f32, long enough for a disk to read at its full rate.
pub const PAGE_ELEMENTS: usize = 1 << 20;

/// Pages of a layout, about, at most; beyond 137 billion elements pages grow instead.
const MOST_PAGES: usize = 1 << 17;

/// Tensors with fewer elements keep their moments in f32 also where others have 8 bits: they are
/// norms and biases, cost little, and bear it worst (Dettmers et al., "8-bit Optimizers via
/// Block-wise Quantization", 2022).
pub const LEAST_QUANTIZED: usize = 4096;

/// Where parts begin: a cache line, and the widest vector.
const ALIGNMENT: usize = 64;

/// How moments are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateFormat {
    /// Eight bytes a parameter.
    #[default]
    F32,
    /// Two bytes and a little: an 8-bit code a number and an f32 for each block of 256.
    Blockwise8,
}

/// The bytes of one moment of a piece, from the start of its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentParts {
    /// One run of f32.
    F32 {
        /// Its first byte.
        offset: usize,
    },
    /// Codes, and the largest magnitude of each block.
    Blockwise8 {
        /// First byte of the codes.
        codes: usize,
        /// First byte of the magnitudes.
        absmax: usize,
    },
}

/// A run of elements of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The tensor's number.
    pub tensor: usize,
    /// First element within the tensor.
    pub first_element: usize,
    /// How many.
    pub len: usize,
    /// The first moment.
    pub first: MomentParts,
    /// The second moment.
    pub second: MomentParts,
}

/// What visits the device together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Bytes from the start of the image.
    pub offset: usize,
    /// Size in bytes.
    pub n_bytes: usize,
}

/// A tensor whose moments are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTensor {
    /// Its elements.
    pub n_elements: usize,
    /// The block of weights it belongs to, by number; rising.
    pub block: usize,
}

/// The layout of every moment.
///
/// Blocks whose tensors have the same sizes, as a model's layers have, are laid out once: a layout is
/// as small, and made as fast, for a model of any depth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateLayout {
    /// The layouts of blocks that differ.
    kinds: Vec<BlockLayout>,
    blocks: Vec<PlacedBlock>,
    n_pages: usize,
    n_bytes: usize,
}

/// A block among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PlacedBlock {
    /// Which of the layouts is its own.
    kind: usize,
    first_tensor: usize,
    first_page: usize,
    offset: usize,
}

impl StateLayout {
    /// Lays out the moments of `tensors`, in their order.
    pub fn new(tensors: impl IntoIterator<Item = StateTensor>, format: StateFormat) -> Self {
        let tensors: Vec<StateTensor> = tensors.into_iter().collect();
        let total = tensors.iter().fold(0_usize, |sum, t| sum.saturating_add(t.n_elements));
        // However absurd a shape is, its plan is made in no time.
        let page_elements = PAGE_ELEMENTS.max((total / MOST_PAGES).next_multiple_of(MOMENT_BLOCK));
        let mut layout = Self::default();
        let mut first_tensor = 0;
        for block in tensors.chunk_by(|a, b| a.block == b.block) {
            let sizes = block.iter().map(|tensor| tensor.n_elements);
            let known =
                layout.kinds.iter().position(|kind| sizes.clone().eq(kind.sizes.iter().copied()));
            let kind = known.unwrap_or_else(|| {
                layout.kinds.push(BlockLayout::new(sizes.collect(), format, page_elements));
                layout.kinds.len() - 1
            });
            let (first_page, offset) = (layout.n_pages, layout.n_bytes);
            layout.blocks.push(PlacedBlock { kind, first_tensor, first_page, offset });
            first_tensor += block.len();
            layout.n_pages += layout.kinds[kind].pages.len();
            layout.n_bytes = offset.saturating_add(layout.kinds[kind].n_bytes());
        }
        layout
    }

    /// The number of pages.
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Bytes of the whole image.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Bytes of the largest page.
    pub fn page_bytes(&self) -> usize {
        let pages = self.kinds.iter().flat_map(|kind| &kind.pages);
        pages.map(|page| page.n_bytes).max().unwrap_or(0)
    }

    /// Page `number`; pages lie in order and without gaps.
    ///
    /// # Panics
    /// When there is no such page; so does [`StateLayout::pieces`].
    pub fn page(&self, number: usize) -> Page {
        let (block, page) = self.find(number);
        Page { offset: block.offset.saturating_add(page.offset), n_bytes: page.n_bytes }
    }

    /// Where page `number` begins; the end, for the number behind the last.
    pub fn page_offset(&self, number: usize) -> usize {
        if number < self.n_pages { self.page(number).offset } else { self.n_bytes }
    }

    /// The pieces of page `number`, in the order of their tensors.
    pub fn pieces(&self, number: usize) -> impl Iterator<Item = Piece> {
        let (block, page) = self.find(number);
        let pieces = &self.kinds[block.kind].pieces[page.pieces.clone()];
        pieces
            .iter()
            .map(move |piece| Piece { tensor: block.first_tensor + piece.tensor, ..*piece })
    }

    /// The numbers of the pages in which a tensor's block lies.
    pub fn pages_around(&self, tensor: usize) -> Range<usize> {
        let next = self.blocks.partition_point(|block| block.first_tensor <= tensor);
        let start = next.checked_sub(1).map_or(0, |last| self.blocks[last].first_page);
        start..self.blocks.get(next).map_or(self.n_pages, |block| block.first_page)
    }

    fn find(&self, page: usize) -> (PlacedBlock, &BlockPage) {
        // Behind every block that begins later; blocks of nothing have no pages.
        let block = self.blocks.partition_point(|block| block.first_page <= page) - 1;
        let block = self.blocks[block];
        (block, &self.kinds[block.kind].pages[page - block.first_page])
    }
}

/// The layout of one block: offsets, tensors and pieces from its own start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BlockLayout {
    /// Elements of each of its tensors.
    sizes: Vec<usize>,
    pages: Vec<BlockPage>,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct BlockPage {
    pieces: Range<usize>,
    offset: usize,
    n_bytes: usize,
}

impl BlockLayout {
    fn new(sizes: Vec<usize>, format: StateFormat, page_elements: usize) -> Self {
        let mut layout = Self { pieces: Vec::with_capacity(sizes.len()), sizes, ..Self::default() };
        // Of a piece whose page is not complete.
        let nowhere = MomentParts::F32 { offset: 0 };
        let mut room = 0;
        for tensor in 0..layout.sizes.len() {
            let n_elements = layout.sizes[tensor];
            let mut first_element = 0;
            while first_element < n_elements {
                let rest = n_elements - first_element;
                if room < rest.min(MOMENT_BLOCK) {
                    layout.end_page(format);
                    room = page_elements;
                }
                // Cut between the blocks that share a magnitude.
                let len = if rest <= room { rest } else { room / MOMENT_BLOCK * MOMENT_BLOCK };
                let (first, second) = (nowhere, nowhere);
                layout.pieces.push(Piece { tensor, first_element, len, first, second });
                room -= len;
                first_element += len;
            }
        }
        layout.end_page(format);
        layout
    }

    fn n_bytes(&self) -> usize {
        self.pages.last().map_or(0, |page| page.offset.saturating_add(page.n_bytes))
    }

    /// Makes a page of the pieces behind the last one's, if there are any.
    fn end_page(&mut self, format: StateFormat) {
        let start = self.pages.last().map_or(0, |page| page.pieces.end);
        let pieces = start..self.pieces.len();
        if pieces.is_empty() {
            return;
        }
        let mut n_bytes = 0_usize;
        let mut place = |bytes: usize| {
            let offset = n_bytes;
            let end = offset.saturating_add(bytes).checked_next_multiple_of(ALIGNMENT);
            n_bytes = end.unwrap_or(usize::MAX);
            offset
        };
        let sizes = &self.sizes;
        let mut moment = |piece: &Piece| {
            let is_large = sizes[piece.tensor] >= LEAST_QUANTIZED;
            if format == StateFormat::Blockwise8 && is_large {
                let codes = place(piece.len);
                let absmax = n_moment_blocks(piece.len).saturating_mul(size_of::<f32>());
                MomentParts::Blockwise8 { codes, absmax: place(absmax) }
            } else {
                MomentParts::F32 { offset: place(piece.len.saturating_mul(size_of::<f32>())) }
            }
        };
        let of_page = &mut self.pieces[pieces.clone()];
        of_page.iter_mut().for_each(|piece| piece.first = moment(piece));
        of_page.iter_mut().for_each(|piece| piece.second = moment(piece));
        let offset = self.n_bytes();
        self.pages.push(BlockPage { pieces, offset, n_bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(format: StateFormat) -> (Vec<StateTensor>, StateLayout) {
        let tensors: Vec<StateTensor> = [
            (100, 0),
            (5_000, 0),
            (PAGE_ELEMENTS - 5_100, 0),
            (7, 0),
            (3 * PAGE_ELEMENTS + 13, 1),
            (4_096, 1),
            (4_095, 2),
            (3 * PAGE_ELEMENTS + 13, 3),
            (4_096, 3),
        ]
        .map(|(n_elements, block)| StateTensor { n_elements, block })
        .to_vec();
        (tensors.clone(), StateLayout::new(tensors, format))
    }

    #[test]
    fn every_element_has_one_place_and_no_two_share_bytes() {
        for format in [StateFormat::F32, StateFormat::Blockwise8] {
            let (tensors, layout) = layout(format);
            let mut seen = vec![0; tensors.len()];
            let mut end_of_last = 0;
            for number in 0..layout.n_pages() {
                let page = layout.page(number);
                assert_eq!(page.offset, end_of_last);
                assert_eq!(layout.page_offset(number), page.offset);
                end_of_last += page.n_bytes;
                let mut spans = Vec::new();
                let pieces: Vec<Piece> = layout.pieces(number).collect();
                assert!(pieces.iter().map(|piece| piece.len).sum::<usize>() <= PAGE_ELEMENTS);
                let block = tensors[pieces[0].tensor].block;
                for piece in pieces {
                    assert_eq!(tensors[piece.tensor].block, block);
                    assert!(layout.pages_around(piece.tensor).contains(&number));
                    assert_eq!(piece.first_element, seen[piece.tensor], "in order");
                    seen[piece.tensor] += piece.len;
                    for moment in [piece.first, piece.second] {
                        match moment {
                            MomentParts::F32 { offset } => {
                                spans.push(offset..offset + 4 * piece.len);
                            }
                            MomentParts::Blockwise8 { codes, absmax } => {
                                assert!(tensors[piece.tensor].n_elements >= LEAST_QUANTIZED);
                                assert!(piece.first_element.is_multiple_of(MOMENT_BLOCK));
                                spans.push(codes..codes + piece.len);
                                spans.push(absmax..absmax + 4 * n_moment_blocks(piece.len));
                            }
                        }
                    }
                }
                for (i, a) in spans.iter().enumerate() {
                    assert!(a.start.is_multiple_of(ALIGNMENT) && a.end <= page.n_bytes);
                    let apart = |b: &Range<usize>| a.end <= b.start || b.end <= a.start;
                    assert!(spans[i + 1..].iter().all(apart));
                }
            }
            assert_eq!(end_of_last, layout.n_bytes());
            let expected: Vec<usize> = tensors.iter().map(|tensor| tensor.n_elements).collect();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn moments_of_neighbours_are_neighbours() {
        let tensor = |n_elements| StateTensor { n_elements, block: 0 };
        let tensors = [64, 16 * 1000, 4096].map(tensor);
        let layout = StateLayout::new(tensors, StateFormat::F32);
        let pieces: Vec<Piece> = layout.pieces(0).collect();
        assert_eq!((layout.n_pages(), pieces.len()), (1, tensors.len()));
        let offset = |moment| match moment {
            MomentParts::F32 { offset } => offset,
            MomentParts::Blockwise8 { .. } => panic!("{moment:?} of moments in f32"),
        };
        for moment in [|piece: &Piece| piece.first, |piece: &Piece| piece.second] {
            for pair in pieces.windows(2) {
                assert_eq!(offset(moment(&pair[0])) + 4 * pair[0].len, offset(moment(&pair[1])));
            }
        }
    }

    #[test]
    fn blocks_alike_are_laid_out_once() {
        let (_, layout) = layout(StateFormat::F32);
        let kinds: Vec<usize> = layout.blocks.iter().map(|block| block.kind).collect();
        assert_eq!(kinds, [0, 1, 2, 1]);
    }

    #[test]
    fn an_absurd_size_has_a_layout_too() {
        let tensor = StateTensor { n_elements: usize::MAX / 2, block: 0 };
        for format in [StateFormat::F32, StateFormat::Blockwise8] {
            let layout = StateLayout::new([tensor, tensor], format);
            assert!(layout.n_pages() <= 2 * MOST_PAGES);
            assert!(layout.n_bytes() >= usize::MAX / 2);
        }
    }

    #[test]
    fn moments_cost_eight_bytes_or_two_and_a_64th() {
        let tensor = StateTensor { n_elements: 1 << 24, block: 0 };
        let bytes = |format| StateLayout::new([tensor], format).n_bytes();
        assert_eq!(bytes(StateFormat::F32), 8 << 24);
        assert_eq!(bytes(StateFormat::Blockwise8), (2 << 24) + (2 << 24) / 64);
    }
}
