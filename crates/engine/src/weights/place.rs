//! Base weights into a device's memory: mapped in place where they are quantised, else loaded.

use std::path::Path;

use nibble_kernels::{Backend, DeviceSlice, memory::MappedFile};

use super::{
    ModelFolder, WeightFormat, WeightLayout,
    image::{cached_image, default_cache_folder},
    load::{OnProgress, load},
};
use crate::{decoder::BaseWeights, model::ModelError};

/// Brings the weights of `folder` to `device` in `layout`. Quantised ones become an image on disk,
/// kept in `cache` (or the user's cache folder), which a second start finds ready.
///
/// # Errors
/// When the image cannot be written, the device has no room, or loading is cancelled.
pub fn place_weights(
    device: &mut impl Backend,
    folder: &ModelFolder,
    layout: WeightLayout,
    cache: Option<&Path>,
    on_progress: OnProgress<'_>,
) -> Result<BaseWeights, ModelError> {
    let memory = if layout.format() == WeightFormat::Nf4 {
        let cache = match cache {
            Some(cache) => cache.to_owned(),
            None => default_cache_folder()?,
        };
        let path = cached_image(folder, &layout, &cache, on_progress)?;
        device.adopt(MappedFile::open(&path)?)?
    } else {
        let memory = device.allocate(layout.n_bytes())?;
        load(folder, &layout, on_progress, |offset, bytes| {
            device.upload(bytes, DeviceSlice::new(memory, offset, bytes.len()));
            Ok(())
        })?;
        memory
    };
    Ok(BaseWeights { layout, memory, offset: 0 })
}
