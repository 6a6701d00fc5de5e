//! Opening the device that a profile names: one code path for every device, made for each.

use std::path::Path;

use nibble_kernels::{
    Backend, Compute, Cpu, Cuda, DeviceProfile, Memory, OperationProfile,
    attention::MAX_CARD_HEAD_SIZE,
    cpu::ceilings,
    cuda::{OpenError, Unavailable},
};
use nibble_run::CardReadings;

use super::card;
use crate::model::{ModelError, ModelSpec};

/// Does `$work` with `$Device` standing for the backend of a profile.
macro_rules! on_device {
    ($profile:expr, $Device:ident => $work:expr) => {
        match $profile.kind {
            nibble_kernels::DeviceKind::Cpu { .. } => {
                type $Device = nibble_kernels::Cpu;
                $work
            }
            nibble_kernels::DeviceKind::Cuda { .. } => {
                type $Device = nibble_kernels::Cuda;
                $work
            }
        }
    };
}
pub(crate) use on_device;

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenDeviceError {
    /// The system refused threads.
    #[error("the worker threads could not be started: {0}; close other programs")]
    Threads(String),
    /// There is no card to compute with.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The card could not be opened.
    #[error(transparent)]
    Card(#[from] OpenError),
}

/// What a device does at most, as far as it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ceilings {
    /// Multiplications and additions a second on registers alone.
    pub product_flops_per_s: Option<f64>,
    /// Bytes a second that a copy reads and writes.
    pub copy_bytes_per_s: Option<f64>,
    /// Bytes a second from the host's memory to a card, and from a card to it.
    pub host_copy_bytes_per_s: Option<[f64; 2]>,
}

/// A backend that runs, sessions and evaluations can be opened on.
pub trait RunDevice: Backend + Sized {
    /// Opens the device of `profile`.
    ///
    /// # Errors
    /// When it is not there, or the system refuses it.
    fn open(profile: DeviceProfile) -> Result<Self, OpenDeviceError>;

    /// Counts and times operations from now on, or no longer; what was counted stays.
    fn profile_operations(&mut self, on: bool);

    /// What was counted so far.
    fn profiled(&self) -> &[OperationProfile];

    /// What the device does at most. May take seconds to find out.
    fn ceilings(&mut self) -> Ceilings;

    /// Bytes that this process may still take, where a device's own memory is what it works in.
    fn allowed_bytes(&self) -> Option<usize> {
        None
    }

    /// What a card says of itself now.
    fn readings(&self) -> Option<CardReadings>;
}

impl RunDevice for Cpu {
    fn open(profile: DeviceProfile) -> Result<Self, OpenDeviceError> {
        Self::new(profile).map_err(|error| OpenDeviceError::Threads(error.to_string()))
    }

    fn profile_operations(&mut self, on: bool) {
        self.profile_operations(on);
    }

    fn profiled(&self) -> &[OperationProfile] {
        self.profiled()
    }

    fn ceilings(&mut self) -> Ceilings {
        Ceilings {
            product_flops_per_s: Some(ceilings::product_flops_per_s(self.profile())),
            copy_bytes_per_s: Some(ceilings::copy_bytes_per_s(self.n_threads())),
            host_copy_bytes_per_s: None,
        }
    }

    fn readings(&self) -> Option<CardReadings> {
        None
    }
}

impl RunDevice for Cuda {
    fn open(profile: DeviceProfile) -> Result<Self, OpenDeviceError> {
        #[cfg(feature = "simulator")]
        if card::simulated::card().is_some() {
            return Ok(Self::simulated(profile.compute).map_err(OpenError::from)?);
        }
        let card = card::card()?;
        let open = || Self::open(card.index, profile.compute);
        Ok(card::measure_overhead(&card, open, Self::free_bytes)?)
    }

    fn profile_operations(&mut self, on: bool) {
        self.profile_operations(on);
    }

    fn profiled(&self) -> &[OperationProfile] {
        self.profiled()
    }

    fn ceilings(&mut self) -> Ceilings {
        // Measured with the products of bf16; those in f32 run elsewhere on the card.
        let products = (self.compute() == Compute::Bf16).then(|| self.product_flops_per_s());
        let found = |rate: &f64| *rate > 0.0;
        Ceilings {
            product_flops_per_s: products.filter(found),
            copy_bytes_per_s: Some(self.copy_bytes_per_s()).filter(found),
            host_copy_bytes_per_s: Some(self.host_copy_bytes_per_s())
                .filter(|rates| rates.iter().all(found)),
        }
    }

    fn allowed_bytes(&self) -> Option<usize> {
        self.free_bytes()
    }

    fn readings(&self) -> Option<CardReadings> {
        let readings = card::readings(card::card().ok()?.index);
        Some(CardReadings {
            used_bytes: readings.used_bytes,
            process_bytes: readings.process_bytes,
            temperature_celsius: readings.temperature_celsius.map(f64::from),
            power_watts: readings.power_watts,
        })
    }
}

/// What the device of `profile` does at most, measured now.
///
/// # Errors
/// When it is not there, or cannot be opened.
pub fn ceilings(profile: DeviceProfile) -> Result<Ceilings, OpenDeviceError> {
    on_device!(profile, Device => Ok(<Device as RunDevice>::open(profile)?.ceilings()))
}

/// Makes sure that the device of `profile` is there, and that what its driver takes beside a plan is
/// known: a card that was never used is opened for it, and closed again.
///
/// # Errors
/// When it is not there, or cannot be opened.
pub fn meet(profile: &DeviceProfile) -> Result<(), OpenDeviceError> {
    if profile.is_cuda() {
        card::card()?;
        if card::overhead_bytes(profile).is_none() {
            drop(<Cuda as RunDevice>::open(*profile)?);
        }
    }
    Ok(())
}

/// Makes sure that the device of `profile` can compute the model of `spec`, whose configuration is
/// `config`.
///
/// # Errors
/// When a card cannot.
pub fn check_model(
    profile: &DeviceProfile,
    spec: &ModelSpec,
    config: &Path,
) -> Result<(), ModelError> {
    if !profile.is_cuda() || spec.head_size <= MAX_CARD_HEAD_SIZE {
        return Ok(());
    }
    Err(ModelError::Unsupported {
        path: config.to_owned(),
        key: "head_dim".into(),
        found: spec.head_size.to_string(),
        supported: format!("up to {MAX_CARD_HEAD_SIZE} on a card; the processor takes any"),
    })
}

#[cfg(test)]
mod tests {
    use nibble_kernels::Capability;

    use super::*;
    use crate::catalog;

    #[test]
    fn a_head_that_no_kernel_is_made_for_is_refused_on_a_card_alone() {
        let mut spec = catalog::find("llama-2-7b").unwrap().spec().unwrap();
        let card = DeviceProfile::cuda(Capability::OLDEST);
        let config = Path::new("config.json");
        assert!(check_model(&card, &spec, config).is_ok());
        spec.head_size = 512;
        let error = check_model(&card, &spec, config).unwrap_err().to_string();
        assert!(error.contains("512") && error.contains("256"), "{error}");
        assert!(check_model(&DeviceProfile::native_cpu(), &spec, config).is_ok());
    }
}
