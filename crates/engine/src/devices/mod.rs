//! What this machine can train on, and how much memory it has for it.

mod card;
mod host;
mod open;
mod rates;

use nibble_kernels::{Capability, Compute, DeviceKind, DeviceProfile, Isa};
use nibble_run::{RunSettings, TrainingDevice};
use serde::Serialize;

#[cfg(feature = "simulator")]
pub use card::simulate_card;
pub use card::{card, overhead_bytes};
pub use host::{ResidentMemory, host_available_bytes};
#[cfg(feature = "simulator")]
pub use nibble_kernels::cuda::fail_next_after;
pub(crate) use open::on_device;
pub use open::{Ceilings, OpenDeviceError, RunDevice, ceilings, check_model, meet};
pub use rates::{measure_page_rates, page_rates};

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
    /// Threads that compute; beside a card: that prepare its work.
    pub n_threads: usize,
    /// The instructions its fastest path uses.
    pub instructions: String,
    /// The precision of its matrix products unless another is asked for.
    pub compute: &'static str,
    /// A card's compute capability, such as 8.6.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "typescript", ts(optional = nullable))]
    pub capability: Option<String>,
    /// Its temperature, of a card that tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "typescript", ts(optional = nullable))]
    pub temperature_celsius: Option<f64>,
    /// The power that it draws, of a card that tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "typescript", ts(optional = nullable))]
    pub power_watts: Option<f64>,
}

/// Whether graphics cards can be computed with here.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct CudaStatus {
    /// Whether one can.
    pub available: bool,
    /// Why none can, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "typescript", ts(optional = nullable))]
    pub reason: Option<String>,
}

/// Every device of this machine: the processor, then its cards.
pub fn devices() -> Vec<Device> {
    let profile = DeviceProfile::native_cpu();
    let host::Host { name, total_bytes, free_bytes } = host::host();
    let processor = Device {
        id: TrainingDevice::Cpu,
        name,
        total_bytes,
        free_bytes,
        n_threads: profile.n_threads(),
        instructions: Isa::best().to_string(),
        compute: compute_name(profile.compute),
        capability: None,
        temperature_celsius: None,
        power_watts: None,
    };
    let cards = card::usable_cards().unwrap_or_default().into_iter().map(|card| {
        let profile = DeviceProfile::cuda(card.capability);
        let readings = card::readings(card.index);
        Device {
            id: TrainingDevice::Cuda,
            total_bytes: card.total_bytes,
            free_bytes: readings.free_bytes.unwrap_or(card.free_bytes),
            n_threads: profile.n_threads(),
            instructions: format!("compute capability {}", card.capability),
            compute: compute_name(profile.compute),
            capability: Some(card.capability.to_string()),
            temperature_celsius: readings.temperature_celsius.map(f64::from),
            power_watts: readings.power_watts,
            name: card.name,
        }
    });
    std::iter::once(processor).chain(cards).collect()
}

fn compute_name(compute: Compute) -> &'static str {
    match compute {
        Compute::Bf16 => "bf16",
        Compute::F32 => "f32",
    }
}

/// Whether graphics cards can be computed with, and if not, why.
pub fn cuda() -> CudaStatus {
    match card() {
        Ok(_) => CudaStatus { available: true, reason: None },
        Err(error) => CudaStatus { available: false, reason: Some(error.to_string()) },
    }
}

/// The device that a person expects who names none: the first card that can be computed with, else
/// the processor.
pub fn preferred() -> TrainingDevice {
    if card().is_ok() { TrainingDevice::Cuda } else { TrainingDevice::Cpu }
}

/// Memory that other programs leave to this one now on the device of `profile`: on a card, without
/// what its driver is going to take beside the plan, as far as that is known; none, where there is no
/// card. A system that does not tell is taken to have enough: a plan is then held against the budget
/// that the person sets.
pub fn available_bytes(profile: &DeviceProfile) -> u64 {
    if profile.is_cuda() { card::available_bytes() } else { host_available_bytes() }
}

/// The memory that a run with these settings may take of `available_bytes`.
pub fn budget_bytes(settings: &RunSettings, available_bytes: u64) -> u64 {
    settings.budget_bytes.unwrap_or(u64::MAX).min(available_bytes)
}

/// What a run computes with: its device, with this many threads and this precision; `None`: as suits
/// the machine. A card that is not there is taken for one of the oldest that would do: the sizes of
/// a plan depend on no more of it.
pub fn profile(
    device: TrainingDevice,
    n_threads: Option<usize>,
    compute: Option<Compute>,
) -> DeviceProfile {
    match device {
        TrainingDevice::Cpu => cpu_profile(n_threads, compute),
        TrainingDevice::Cuda => {
            let capability = card().map_or(Capability::OLDEST, |card| card.capability);
            let native = DeviceProfile::cuda(capability);
            native.with_compute(compute.unwrap_or(native.compute))
        }
    }
}

/// The processor with this many threads and this precision; `None`: as suits the machine.
pub fn cpu_profile(n_threads: Option<usize>, compute: Option<Compute>) -> DeviceProfile {
    let native = DeviceProfile::native_cpu();
    let n_threads = n_threads.unwrap_or(native.n_threads()).max(1);
    DeviceProfile {
        kind: DeviceKind::Cpu { isa: Isa::best(), n_threads },
        compute: compute.unwrap_or(native.compute),
    }
}

/// The device that a profile is of.
pub fn device_of(profile: &DeviceProfile) -> TrainingDevice {
    if profile.is_cuda() { TrainingDevice::Cuda } else { TrainingDevice::Cpu }
}

/// The fastest instructions, for reports.
pub fn instructions() -> Isa {
    Isa::best()
}
