//! From a model folder into an image: convert or quantise tensor by tensor, a chunk at a time.
//!
//! Held beside the result are one chunk in f32, its converted form, and the absmax values of one
//! tensor, whatever the model's size.

use std::{
    ops::{ControlFlow, Range},
    thread,
};

use half::bf16;
use nibble_kernels::{
    memory::ReadAhead,
    nf4::{self, Nf4Layout},
};

use super::{
    layout::{TensorParts, TensorPlace, WeightLayout},
    source::{ModelFolder, StoredType},
};
use crate::model::ModelError;

/// Numbers handled at a time: 4 MiB in f32, and whole blocks of NF4.
const CHUNK: usize = 1 << 20;
const _: () = assert!(CHUNK.is_multiple_of(2 * nf4::BLOCK));

/// Chunks that are brought from the disk while those before them are converted, at most: 64 MiB of bf16.
const CHUNKS_AHEAD: usize = 32;

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the source that have been read.
    pub done_bytes: usize,
    /// Bytes of the source in all.
    pub total_bytes: usize,
}

/// Called after each chunk; [`ControlFlow::Break`] ends loading with [`ModelError::Cancelled`].
pub type OnProgress<'a> = &'a mut dyn FnMut(LoadProgress) -> ControlFlow<()>;

/// Progress that nobody watches.
pub fn unwatched(_: LoadProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Hands `sink` every byte of the image that is not padding, in rising order of the offset.
///
/// # Errors
/// Those of `sink`, and [`ModelError::Cancelled`].
///
/// # Panics
/// When `layout` is of another model.
pub fn load(
    folder: &ModelFolder,
    layout: &WeightLayout,
    on_progress: OnProgress<'_>,
    mut sink: impl FnMut(usize, &[u8]) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let ahead = layout.tensors().flat_map(|place| chunks(place).map(move |chunk| (place, chunk)));
    thread::scope(|scope| {
        let bring = |(place, elements): (TensorPlace, _)| folder.expect(place.role, elements);
        let mut loader = Loader {
            folder,
            ahead: ReadAhead::begin(scope, CHUNKS_AHEAD, ahead, bring),
            values: Vec::new(),
            converted: Vec::new(),
            absmax: Vec::new(),
            progress: LoadProgress { done_bytes: 0, total_bytes: folder.n_stored_bytes() },
            on_progress,
        };
        for place in layout.tensors() {
            match place.parts {
                TensorParts::F32 { offset } => loader.f32(place, offset, &mut sink)?,
                TensorParts::Bf16 { offset } => loader.bf16(place, offset, &mut sink)?,
                TensorParts::Nf4 { .. } => loader.nf4(place, &mut sink)?,
            }
        }
        Ok(())
    })
}

/// The buffers that every tensor uses in turn.
struct Loader<'a, 'b> {
    folder: &'a ModelFolder,
    /// What comes after what was read.
    ahead: ReadAhead,
    values: Vec<f32>,
    converted: Vec<u8>,
    absmax: Vec<f32>,
    progress: LoadProgress,
    on_progress: OnProgress<'b>,
}

/// The ranges of elements a tensor is read in.
fn chunks(place: TensorPlace) -> impl Iterator<Item = Range<usize>> {
    let n = place.shape.n_elements();
    (0..n).step_by(CHUNK).map(move |start| start..(start + CHUNK).min(n))
}

impl Loader<'_, '_> {
    fn read(&mut self, place: TensorPlace, elements: Range<usize>) {
        self.values.resize(elements.len(), 0.0);
        self.folder.read_f32(place.role, elements, &mut self.values);
    }

    /// Counts `n_elements` of a tensor as done.
    fn advance(&mut self, place: TensorPlace, n_elements: usize) -> Result<(), ModelError> {
        self.ahead.was_read();
        let n_bytes = self.folder.stored_type(place.role).n_bytes();
        self.progress.done_bytes += n_elements * n_bytes;
        match (self.on_progress)(self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ModelError::Cancelled),
        }
    }

    fn f32(
        &mut self,
        place: TensorPlace,
        offset: usize,
        sink: &mut impl FnMut(usize, &[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        for elements in chunks(place) {
            self.read(place, elements.clone());
            sink(offset + elements.start * size_of::<f32>(), bytemuck::cast_slice(&self.values))?;
            self.advance(place, elements.len())?;
        }
        Ok(())
    }

    fn bf16(
        &mut self,
        place: TensorPlace,
        offset: usize,
        sink: &mut impl FnMut(usize, &[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let as_stored = self.folder.stored_type(place.role) == StoredType::Bf16
            && cfg!(target_endian = "little");
        for elements in chunks(place) {
            let offset = offset + elements.start * size_of::<bf16>();
            if as_stored {
                self.folder.visit(place.role, elements.clone(), |_, bytes| sink(offset, bytes))?;
            } else {
                self.read(place, elements.clone());
                self.converted.clear();
                for &value in &self.values {
                    self.converted.extend_from_slice(&bf16::from_f32(value).to_ne_bytes());
                }
                sink(offset, &self.converted)?;
            }
            self.advance(place, elements.len())?;
        }
        Ok(())
    }

    fn nf4(
        &mut self,
        place: TensorPlace,
        sink: &mut impl FnMut(usize, &[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let TensorParts::Nf4 { codes, absmax_codes, absmax_scales, absmax_offset } = place.parts
        else {
            unreachable!("called for NF4 tensors only")
        };
        let layout = Nf4Layout { n_elements: place.shape.n_elements() };
        let mut absmax = std::mem::take(&mut self.absmax);
        absmax.resize(layout.n_blocks(), 0.0);
        for elements in chunks(place) {
            self.read(place, elements.clone());
            let chunk = Nf4Layout { n_elements: elements.len() };
            let first_block = elements.start / nf4::BLOCK;
            self.converted.resize(chunk.n_codes(), 0);
            nf4::quantize(
                &self.values,
                &mut self.converted,
                &mut absmax[first_block..first_block + chunk.n_blocks()],
            );
            sink(codes + elements.start / 2, &self.converted)?;
            self.advance(place, elements.len())?;
        }
        let offset = nf4::absmax_offset(&absmax);
        self.converted.resize(layout.n_blocks(), 0);
        let mut scales = vec![0.0; layout.n_groups()];
        nf4::quantize_absmax(&absmax, offset, &mut self.converted, &mut scales);
        sink(absmax_codes, &self.converted)?;
        sink(absmax_scales, bytemuck::cast_slice(&scales))?;
        sink(absmax_offset, &offset.to_ne_bytes())?;
        self.absmax = absmax;
        Ok(())
    }
}
