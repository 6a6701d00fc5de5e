//! What this machine can train on, and how much memory it has for it.

use std::{
    io::{self, Write},
    path::Path,
    sync::{LazyLock, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use crate::plan::PageRates;
use nibble_kernels::{Compute, DeviceKind, DeviceProfile, Isa};
use nibble_run::{RunSettings, TrainingDevice};
use serde::Serialize;
use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, System};

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct Device {
    /// Its name on the command line and in settings.
    pub id: TrainingDevice,
    /// The processor's or card's name.
    pub name: String,
    /// All its memory.
    pub total_bytes: u64,
    /// What other programs leave.
    pub free_bytes: u64,
    /// Threads that compute.
    pub n_threads: usize,
    /// The instructions its fastest path uses.
    pub instructions: String,
    /// The precision of its matrix products unless another is asked for.
    pub compute: &'static str,
}

/// Every device of this machine.
pub fn devices() -> Vec<Device> {
    let mut system = System::new().ok();
    if let Some(system) = &mut system {
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    }
    let profile = DeviceProfile::native_cpu();
    let DeviceKind::Cpu { isa, n_threads } = profile.kind;
    let (total_bytes, free_bytes) = system.as_ref().map_or((0, 0), memory);
    let brand = system
        .as_ref()
        .and_then(|system| system.cpus().first())
        .map(|cpu| cpu.brand().trim().to_owned());
    vec![Device {
        id: TrainingDevice::Cpu,
        name: brand.filter(|brand| !brand.is_empty()).unwrap_or_else(|| "Processor".into()),
        total_bytes,
        free_bytes,
        n_threads,
        instructions: isa.to_string(),
        compute: match profile.compute {
            Compute::Bf16 => "bf16",
            Compute::F32 => "f32",
        },
    }]
}

/// Memory that other programs leave to this one now. A system that does not tell is taken to have
/// enough: a plan is then held against the budget that the person sets.
pub fn available_bytes() -> u64 {
    /// Made once: to make one takes as long as a plan, and every plan asks.
    static SYSTEM: LazyLock<Mutex<Option<System>>> =
        LazyLock::new(|| Mutex::new(System::new().ok()));
    let mut system = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(system) = &mut *system else { return u64::MAX };
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    memory(system).1
}

/// The memory that a run with these settings may take of `available_bytes`.
pub fn budget_bytes(settings: &RunSettings, available_bytes: u64) -> u64 {
    settings.budget_bytes.unwrap_or(u64::MAX).min(available_bytes)
}

/// Total and free memory, of the machine or of the container that limits this process.
fn memory(system: &System) -> (u64, u64) {
    let (total, free) = (system.total_memory(), system.available_memory());
    match system.cgroup_limits() {
        Some(limits) if limits.total_memory > 0 && limits.total_memory < total => {
            (limits.total_memory, limits.free_memory.min(free))
        }
        _ => (total, free),
    }
}

/// What a run computes with: its device, with this many threads and this precision; `None`: as suits
/// the machine.
pub fn profile(
    device: TrainingDevice,
    n_threads: Option<usize>,
    compute: Option<Compute>,
) -> DeviceProfile {
    match device {
        TrainingDevice::Cpu => cpu_profile(n_threads, compute),
    }
}

/// The processor with this many threads and this precision; `None`: as suits the machine.
pub fn cpu_profile(n_threads: Option<usize>, compute: Option<Compute>) -> DeviceProfile {
    let native = DeviceProfile::native_cpu();
    let DeviceKind::Cpu { isa, n_threads: native_threads } = native.kind;
    DeviceProfile {
        kind: DeviceKind::Cpu { isa, n_threads: n_threads.unwrap_or(native_threads).max(1) },
        compute: compute.unwrap_or(native.compute),
    }
}

/// How fast pages move on this machine, as far as [`measure_page_rates`] has found out.
pub fn page_rates() -> PageRates {
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

/// The fastest instructions, for reports.
pub fn instructions() -> Isa {
    Isa::best()
}

/// Reads this process's resident memory, again and again without growing.
#[derive(Debug)]
pub struct ResidentMemory {
    system: Option<System>,
    id: Option<sysinfo::Pid>,
    peak_bytes: u64,
}

impl Default for ResidentMemory {
    fn default() -> Self {
        Self { system: System::new().ok(), id: sysinfo::get_current_pid().ok(), peak_bytes: 0 }
    }
}

impl ResidentMemory {
    /// Resident bytes now.
    pub fn bytes(&mut self) -> u64 {
        let (Some(id), Some(system)) = (self.id, &mut self.system) else { return 0 };
        let what = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), false, what);
        let bytes = system.process(id).map_or(0, sysinfo::Process::memory);
        self.peak_bytes = self.peak_bytes.max(bytes);
        bytes
    }

    /// The most resident bytes since the process began where the system tells (Linux), else the
    /// most that [`ResidentMemory::bytes`] saw.
    pub fn peak_bytes(&mut self) -> u64 {
        self.bytes();
        system_peak_bytes().unwrap_or(0).max(self.peak_bytes)
    }
}

#[cfg(target_os = "linux")]
fn system_peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(not(target_os = "linux"))]
fn system_peak_bytes() -> Option<u64> {
    None
}
