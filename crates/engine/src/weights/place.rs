//! Base weights to where a run wants them: mapped in place where they are quantised, else loaded; on
//! the device, or in a store from which layers visit it.

use std::{ops::Range, path::Path};

use nibble_kernels::{
    Backend, DeviceSlice,
    memory::MappedFile,
    paging::{PageFile, StoreId, StorePlace},
};

use super::{
    ModelFolder, WeightFormat, WeightLayout,
    image::{cached_image, default_cache_folder},
    layout::Block,
    load::{OnProgress, load},
};
use crate::{
    decoder::{BaseWeights, BlockPlace, LayerPlace},
    model::ModelError,
    residency::StoredPage,
};

/// Which layers lie outside the device, and where.
#[derive(Clone, Debug, Default)]
pub struct PagedLayers {
    /// By layer; empty: none does.
    pub is_paged: Vec<bool>,
    /// The store they lie in, from its start; `None`: quantised ones are read from their image.
    pub store: Option<StoreId>,
}

impl PagedLayers {
    fn contains(&self, layer: usize) -> bool {
        self.is_paged.get(layer).copied().unwrap_or(false)
    }

    /// The number of paged layers before `layer`.
    fn n_before(&self, layer: usize) -> usize {
        self.is_paged.iter().take(layer).filter(|&&is_paged| is_paged).count()
    }

    /// The page of a paged layer in `store`.
    fn page(&self, layout: &WeightLayout, store: StoreId, layer: usize) -> StoredPage {
        let n_bytes = layout.layer_bytes();
        let offset = (self.n_before(layer) * n_bytes) as u64;
        StoredPage { number: layer, place: StorePlace { store, offset }, n_bytes }
    }
}

/// Base weights where a run wants them.
#[derive(Debug)]
pub struct PlacedWeights {
    /// The weights.
    pub weights: BaseWeights,
    /// Why quantised ones are not kept on the disk, so that the next start quantises them again.
    pub uncached: Option<ModelError>,
}

/// Brings the weights of `folder` to `device` in `layout`, those of `paged` layers to their store.
/// Quantised ones become an image on disk, kept in `cache` (or the user's cache folder), which a
/// second start finds ready. Where it cannot be kept they are quantised into memory, unless they are
/// to visit it from there.
///
/// # Errors
/// When the store cannot be written, or an image that layers are paged from; when the device has no
/// room, or loading is cancelled.
pub fn place_weights(
    device: &mut impl Backend,
    folder: &ModelFolder,
    layout: WeightLayout,
    paged: &PagedLayers,
    cache: Option<&Path>,
    on_progress: OnProgress<'_>,
) -> Result<PlacedWeights, ModelError> {
    let mut uncached = None;
    if layout.format() == WeightFormat::Nf4 {
        let pages_from_image = paged.store.is_none() && paged.is_paged.contains(&true);
        let cache = cache.map_or_else(default_cache_folder, |cache| Ok(cache.to_owned()));
        match cache.and_then(|cache| cached_image(folder, &layout, &cache, on_progress)) {
            Ok(image) => {
                let weights = from_image(device, &image, &layout, paged)?;
                return Ok(PlacedWeights { weights, uncached });
            }
            Err(
                error @ (ModelError::Write { .. }
                | ModelError::NoSpace { .. }
                | ModelError::NoCacheFolder),
            ) if !pages_from_image => uncached = Some(error),
            Err(error) => return Err(error),
        }
    }
    let weights = loaded(device, folder, &layout, paged, on_progress)?;
    Ok(PlacedWeights { weights, uncached })
}

fn from_image(
    device: &mut impl Backend,
    path: &Path,
    layout: &WeightLayout,
    paged: &PagedLayers,
) -> Result<BaseWeights, ModelError> {
    let image = MappedFile::open(path)?;
    let pages: Vec<Option<StoredPage>> = match paged.store {
        Some(store) => {
            let mut pages = Vec::new();
            for layer in 0..layout.n_layers() {
                let page = paged.contains(layer).then(|| paged.page(layout, store, layer));
                if let Some(page) = page {
                    let start = layout.layer_offset(layer);
                    let bytes = start..start + page.n_bytes;
                    device.write_store(page.place, &image[bytes.clone()])?;
                    image.release(bytes);
                }
                pages.push(page);
            }
            pages
        }
        None if paged.is_paged.contains(&true) => {
            let store = device.file_store(PageFile::open(path)?);
            let page = |layer| {
                let place = StorePlace { store, offset: layout.layer_offset(layer) as u64 };
                StoredPage { number: layer, place, n_bytes: layout.layer_bytes() }
            };
            (0..layout.n_layers()).map(|layer| paged.contains(layer).then(|| page(layer))).collect()
        }
        None => vec![None; layout.n_layers()],
    };
    let mut used: Vec<Range<usize>> = Vec::new();
    for (block, bytes) in layout.blocks() {
        match (block, used.last_mut()) {
            (Block::Layer(layer), _) if pages[layer].is_some() => {}
            (_, Some(run)) if run.end == bytes.start => run.end = bytes.end,
            _ => used.push(bytes),
        }
    }
    let memory = device.adopt(image, &used)?;
    let at = |block| BlockPlace { memory, offset: layout.block_offset(block) };
    let layers = pages.into_iter().enumerate().map(|(layer, page)| match page {
        Some(page) => LayerPlace::Paged(page),
        None => LayerPlace::Resident(at(Block::Layer(layer))),
    });
    Ok(BaseWeights::at(layers.collect(), at, layout))
}

fn loaded(
    device: &mut impl Backend,
    folder: &ModelFolder,
    layout: &WeightLayout,
    paged: &PagedLayers,
    on_progress: OnProgress<'_>,
) -> Result<BaseWeights, ModelError> {
    // Blocks that stay close up around those that leave.
    let shift = |layer: usize| paged.n_before(layer) * layout.layer_bytes();
    let all = shift(layout.n_layers());
    let memory = device.allocate(layout.n_bytes() - all)?;
    let at = |block| BlockPlace {
        memory,
        offset: layout.block_offset(block)
            - match block {
                Block::Embedding => 0,
                Block::Layer(layer) => shift(layer),
                Block::FinalNorm | Block::Output => all,
            },
    };
    let layers: Vec<LayerPlace> = (0..layout.n_layers())
        .map(|layer| match paged.store.filter(|_| paged.contains(layer)) {
            Some(store) => LayerPlace::Paged(paged.page(layout, store, layer)),
            None => LayerPlace::Resident(at(Block::Layer(layer))),
        })
        .collect();
    load(folder, layout, on_progress, |offset, bytes| {
        let block = layout.block_at(offset);
        let start = offset - layout.block_offset(block);
        if let Block::Layer(layer) = block
            && let LayerPlace::Paged(page) = layers[layer]
        {
            let place = StorePlace { offset: page.place.offset + start as u64, ..page.place };
            return Ok(device.write_store(place, bytes)?);
        }
        let BlockPlace { memory, offset } = at(block);
        device.upload(bytes, DeviceSlice::new(memory, offset + start, bytes.len()));
        Ok(())
    })?;
    Ok(BaseWeights::at(layers, at, layout))
}
