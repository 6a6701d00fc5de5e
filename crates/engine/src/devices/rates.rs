//! How fast pages move between the device and what lies outside.

use std::{
    io::{self, Write},
    path::Path,
    sync::OnceLock,
    time::Instant,
};

use nibble_kernels::DeviceProfile;

use crate::plan::PageRates;

/// How fast pages move between the device of `profile` and what lies outside it, as far as
/// [`measure_page_rates`] has found out: it knows the processor's neighbours, not a card's.
pub fn page_rates(profile: &DeviceProfile) -> PageRates {
    if profile.is_cuda() {
        return PageRates::default();
    }
    PAGE_RATES.get().copied().unwrap_or_default()
}

static PAGE_RATES: OnceLock<PageRates> = OnceLock::new();

/// Measures, once in the life of a process, how fast pages move: to and from a new file in `folder`,
/// flushed to the disk, and within the host's memory. Takes a fraction of a second; a folder that
/// cannot be written leaves the disk's rate unknown.
pub fn measure_page_rates(folder: &Path) -> PageRates {
    *PAGE_RATES.get_or_init(|| PageRates { disk: disk_rate(folder).ok(), host: Some(copy_rate()) })
}

/// Bytes that are moved to measure a rate: enough to outlast what a disk buffers in itself.
const MEASURED_BYTES: usize = 64 << 20;

fn disk_rate(folder: &Path) -> io::Result<f64> {
    let mut file = tempfile::tempfile_in(folder)?;
    let bytes = vec![0x5a_u8; 1 << 20];
    let start = Instant::now();
    for _ in 0..MEASURED_BYTES / bytes.len() {
        file.write_all(&bytes)?;
    }
    file.sync_data()?;
    Ok(MEASURED_BYTES as f64 / start.elapsed().as_secs_f64())
}

fn copy_rate() -> f64 {
    let source = vec![0x5a_u8; MEASURED_BYTES];
    let mut target = vec![0_u8; MEASURED_BYTES];
    let start = Instant::now();
    target.copy_from_slice(&source);
    std::hint::black_box(&target);
    MEASURED_BYTES as f64 / start.elapsed().as_secs_f64()
}
