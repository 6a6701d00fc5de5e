//! How fast pages move between the device and what lies outside.

use std::{
    io::{self, Write},
    path::Path,
    sync::OnceLock,
    time::Instant,
};

use nibble_kernels::{Cuda, DeviceProfile};

use super::RunDevice;
use crate::plan::PageRates;

/// How fast pages move between the device of `profile` and what lies outside it, as far as
/// [`measure_page_rates`] has found out.
pub fn page_rates(profile: &DeviceProfile) -> PageRates {
    let rates = if profile.is_cuda() { &OF_CARD } else { &OF_PROCESSOR };
    rates.get().copied().unwrap_or_default()
}

static OF_PROCESSOR: OnceLock<PageRates> = OnceLock::new();
static OF_CARD: OnceLock<PageRates> = OnceLock::new();

/// Measures, once in the life of a process, how fast pages of the device of `profile` move: of the processor
/// to a new file in `folder`, flushed to the disk; of a card between the host's memory and its own, either
/// way. Takes a fraction of a second. A folder that cannot be written leaves the disk's rate unknown, and a
/// card that is not there, or has no room, its own.
pub fn measure_page_rates(profile: &DeviceProfile, folder: &Path) -> PageRates {
    if !profile.is_cuda() {
        let rates = || PageRates { disk: disk_rate(folder).ok(), host: None };
        return *OF_PROCESSOR.get_or_init(rates);
    }
    let known = page_rates(profile);
    if known.host.is_some() {
        return known;
    }
    match card_rates(profile) {
        Some(rates) => *OF_CARD.get_or_init(|| PageRates { host: Some(rates), ..known }),
        None => known,
    }
}

fn card_rates(profile: &DeviceProfile) -> Option<[f64; 2]> {
    let mut card = <Cuda as RunDevice>::open(*profile).ok()?;
    let rates = card.host_copy_bytes_per_s();
    rates.iter().all(|&rate| rate > 0.0).then_some(rates)
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
