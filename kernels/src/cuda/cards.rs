//! Which cards there are, why there is none to compute with, and what a card says of itself.

use std::sync::OnceLock;

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUdevice_attribute_enum as Attribute},
};
use nvml_wrapper::{Nvml, enum_wrappers::device::TemperatureSensor, enums::device::UsedGpuMemory};

use super::{code::CodeError, nvidia};
use crate::device::{Capability, DeviceError};

/// The version of the driver's interface that is asked for, as the driver numbers it: 12.0, the oldest
/// of CUDA 12.
const NEEDED_VERSION: i32 = 12_000;
/// The drivers that have it (CUDA Toolkit Release Notes, "CUDA Toolkit and Corresponding Driver
/// Versions").
const NEEDED_DRIVER: &str = if cfg!(windows) { "527.41 or later" } else { "525.60.13 or later" };

/// A card that can compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Its number among the driver's cards.
    pub index: usize,
    /// What it is called.
    pub name: String,
    /// What its multiprocessors can do.
    pub capability: Capability,
    /// All its memory.
    pub total_bytes: u64,
    /// What is free of it, as far as it says; else all.
    pub free_bytes: u64,
}

/// Why there is no card to compute with.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unavailable {
    /// There is no driver.
    #[error(
        "no NVIDIA driver was found; if this computer has an NVIDIA card, install its driver from \
         https://www.nvidia.com/drivers"
    )]
    NoDriver,
    /// A library of the driver's name that is not the driver's.
    #[error(
        "the library that is found under the name of the NVIDIA driver's is not the driver's{what}; take \
         it out of the folders that libraries are looked for in (LD_LIBRARY_PATH, or PATH on Windows)"
    )]
    NotTheDriver {
        /// What it is, if that is known.
        what: &'static str,
    },
    /// The driver is older than what is asked of it.
    #[error(
        "the NVIDIA driver offers CUDA {found} and CUDA 12.0 is needed; update the driver to \
         {NEEDED_DRIVER}"
    )]
    DriverTooOld {
        /// What it offers.
        found: String,
    },
    /// The driver shows no card.
    #[error(
        "the NVIDIA driver shows no card; if there is one, see that it is not hidden \
         (CUDA_VISIBLE_DEVICES) and restart the computer"
    )]
    NoCard,
    /// No card of that number.
    #[error("there is no card number {index}; `nibble devices` lists those there are")]
    NoSuchCard {
        /// The number.
        index: usize,
    },
    /// No card is new enough.
    #[error(
        "{name} has compute capability {capability} and 8.0 is needed: an RTX 30 or a later card"
    )]
    CardTooOld {
        /// The newest card.
        name: String,
        /// What it can do.
        capability: Capability,
    },
    /// The driver fails.
    #[error(transparent)]
    Driver(#[from] DeviceError),
}

/// Why a card could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is nothing to run on it.
    #[error(transparent)]
    Code(#[from] CodeError),
}

/// Every card that can compute, by the driver's numbers.
///
/// # Errors
/// When there is none: why.
pub fn cards() -> Result<Vec<Card>, Unavailable> {
    // SAFETY: looks for the driver's library, whose start has no effect but its own.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unavailable::NoDriver);
    }
    // SAFETY: the library was just found, and stays loaded; its function is not called here.
    let is_driver = unsafe {
        sys::culib()
            .get::<unsafe extern "C" fn(*mut i32) -> sys::CUresult>(b"cuDriverGetVersion\0")
            .is_ok()
    };
    if !is_driver {
        return Err(Unavailable::NotTheDriver { what: "" });
    }
    let mut version = 0;
    // SAFETY: `version` is a place for a number; it may be asked for before anything else.
    match unsafe { sys::cuDriverGetVersion(&mut version) }.result() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_STUB_LIBRARY)) => {
            let what = " but a stub that programs are linked against";
            return Err(Unavailable::NotTheDriver { what });
        }
        other => other.map_err(nvidia::failed("cuDriverGetVersion"))?,
    }
    if version < NEEDED_VERSION {
        let found = format!("{}.{}", version / 1000, version % 1000 / 10);
        return Err(Unavailable::DriverTooOld { found });
    }
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(Unavailable::NoCard),
        other => other.map_err(nvidia::failed("cuInit"))?,
    }
    let n = result::device::get_count().map_err(nvidia::failed("cuDeviceGetCount"))?;
    let (all, errors): (Vec<_>, Vec<_>) = (0..n).map(card).partition(Result::is_ok);
    let (able, old): (Vec<Card>, Vec<Card>) =
        all.into_iter().flatten().partition(|card| card.capability >= Capability::OLDEST);
    if !able.is_empty() {
        return Ok(able);
    }
    // One that fails hides none of the others.
    if let Some(error) = errors.into_iter().find_map(Result::err) {
        return Err(error.into());
    }
    let newest = old.into_iter().max_by_key(|card| card.capability);
    Err(newest.map_or(Unavailable::NoCard, |card| {
        let Card { name, capability, .. } = card;
        Unavailable::CardTooOld { name, capability }
    }))
}

fn card(index: i32) -> Result<Card, DeviceError> {
    let device = result::device::get(index).map_err(nvidia::failed("cuDeviceGet"))?;
    let number = |attribute| {
        let found = nvidia::attribute(device, attribute);
        found.map_err(nvidia::failed("cuDeviceGetAttribute"))
    };
    let major = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let name = result::device::get_name(device).map_err(nvidia::failed("cuDeviceGetName"))?;
    // SAFETY: the device is one of this driver.
    let total_bytes = unsafe { result::device::total_mem(device) }
        .map_err(nvidia::failed("cuDeviceTotalMem"))? as u64;
    let index = index as usize;
    let free_bytes = CardMeter::open(index).and_then(|meter| meter.read().free_bytes);
    Ok(Card {
        index,
        name,
        capability: Capability { major: major.unsigned_abs(), minor: minor.unsigned_abs() },
        total_bytes,
        free_bytes: free_bytes.unwrap_or(total_bytes).min(total_bytes),
    })
}

/// What a card says of itself; what it does not say is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Readings {
    /// Memory that is in use, by all programs and the driver.
    pub used_bytes: Option<u64>,
    /// Memory that is free.
    pub free_bytes: Option<u64>,
    /// All of it.
    pub total_bytes: Option<u64>,
    /// Memory that this process has. Windows does not tell.
    pub process_bytes: Option<u64>,
    /// Its temperature.
    pub temperature_celsius: Option<u32>,
    /// The power that it draws.
    pub power_watts: Option<f64>,
}

/// Reads a card's instruments, through NVML. Cheap enough to be asked at every step.
#[derive(Debug)]
pub struct CardMeter {
    /// On the bus: the two libraries number cards in ways of their own.
    bus_id: String,
}

/// The library, which stays loaded.
fn nvml() -> Option<&'static Nvml> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    NVML.get_or_init(|| Nvml::init().ok()).as_ref()
}

impl CardMeter {
    /// The instruments of the card of this number, if they can be read at all.
    pub fn open(index: usize) -> Option<Self> {
        let device = result::device::get(i32::try_from(index).ok()?).ok()?;
        let mut text = [0_u8; 32];
        // SAFETY: `text` has room for as many characters as are said, its zero among them.
        unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, device) }
            .result()
            .ok()?;
        let bus_id = std::ffi::CStr::from_bytes_until_nul(&text).ok()?.to_str().ok()?.to_owned();
        let meter = Self { bus_id };
        nvml()?.device_by_pci_bus_id(&meter.bus_id[..]).ok()?;
        Some(meter)
    }

    /// What it says now.
    pub fn read(&self) -> Readings {
        let Some(device) = nvml().and_then(|nvml| nvml.device_by_pci_bus_id(&self.bus_id[..]).ok())
        else {
            return Readings::default();
        };
        let memory = device.memory_info().ok();
        let own = std::process::id();
        let processes = device.running_compute_processes().unwrap_or_default();
        let of_this = processes.iter().find(|process| process.pid == own);
        Readings {
            used_bytes: memory.as_ref().map(|memory| memory.used),
            free_bytes: memory.as_ref().map(|memory| memory.free),
            total_bytes: memory.as_ref().map(|memory| memory.total),
            process_bytes: of_this.and_then(|process| match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            }),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            power_watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_for_cards_gives_cards_or_a_reason() {
        match cards() {
            Ok(cards) => assert!(cards.iter().all(|card| card.capability >= Capability::OLDEST)),
            Err(reason) => {
                let reason = reason.to_string();
                eprintln!("{reason}");
                assert!(reason.len() > 20);
            }
        }
    }
}
