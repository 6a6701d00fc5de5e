//! The machine's own memory, and this process's part of it.

use std::sync::{LazyLock, Mutex, PoisonError};

use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, System};

/// The processor and its memory.
pub(super) struct Host {
    pub name: String,
    pub total_bytes: u64,
    pub free_bytes: u64,
}

pub(super) fn host() -> Host {
    let mut system = System::new().ok();
    if let Some(system) = &mut system {
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    }
    let (total_bytes, free_bytes) = system.as_ref().map_or((0, 0), memory);
    let brand = system
        .as_ref()
        .and_then(|system| system.cpus().first())
        .map(|cpu| cpu.brand().trim().to_owned());
    let name = brand.filter(|brand| !brand.is_empty()).unwrap_or_else(|| "Processor".into());
    Host { name, total_bytes, free_bytes }
}

/// Memory of the host that other programs leave to this one now. A system that does not tell is
/// taken to have enough.
pub fn host_available_bytes() -> u64 {
    /// Made once: to make one takes as long as a plan, and every plan asks.
    static SYSTEM: LazyLock<Mutex<Option<System>>> =
        LazyLock::new(|| Mutex::new(System::new().ok()));
    let mut system = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(system) = &mut *system else { return u64::MAX };
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    memory(system).1
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
