//! The one store of a run.

use std::path::Path;

use nibble_kernels::{
    Backend,
    paging::{PageError, PageFile, StoreId},
};

use crate::plan::{MemoryPlan, Outside};

/// The store that `plan` asks for, at its planned size: memory of the host, or a new file at `path`,
/// which is removed with the device. `None` when nothing is paged, or all of it from the model's
/// image.
///
/// # Errors
/// When there is no room for it.
pub fn open_store(
    device: &mut impl Backend,
    plan: &MemoryPlan,
    path: &Path,
) -> Result<Option<StoreId>, PageError> {
    let n_bytes = plan.store_bytes();
    if n_bytes == 0 {
        return Ok(None);
    }
    Ok(Some(match plan.shape().residency.outside {
        Outside::Host => device.host_store(n_bytes)?,
        Outside::Disk => device.file_store(PageFile::create(path, n_bytes as u64)?),
    }))
}
