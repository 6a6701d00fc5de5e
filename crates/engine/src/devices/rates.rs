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

/// Measures, once in the life of a process, how fast pages of the device of `profile` move: to and from a
/// new file in `folder`, flushed to the disk, and within the host's memory; of a card between that and its
/// own. Takes a fraction of a second. A folder that cannot be written leaves the disk's rate unknown, and a
/// card that is not there, or has no room, its own.
pub fn measure_page_rates(profile: &DeviceProfile, folder: &Path) -> PageRates {
    if !profile.is_cuda() {
        let rates = || PageRates { disk: disk_rate(folder).ok(), host: Some(copy_rate()) };
        return *OF_PROCESSOR.get_or_init(rates);
    }
    let known = page_rates(profile);
    if known.host.is_some() {
        return known;
    }
    match card_rate(profile) {
        Some(rate) => *OF_CARD.get_or_init(|| PageRates { host: Some(rate), ..known }),
        None => known,
    }
}

/// Of bytes of which one half comes and the other goes.
fn card_rate(profile: &DeviceProfile) -> Option<f64> {
    let mut card = <Cuda as RunDevice>::open(*profile).ok()?;
    let [to, from] = card.host_copy_bytes_per_s();
    (to > 0.0 && from > 0.0).then(|| 2.0 / (to.recip() + from.recip()))
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
