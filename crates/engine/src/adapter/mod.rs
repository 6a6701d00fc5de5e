//! Low-rank adapters: which matrices carry one, where the pairs lie, and the folders that other
//! programs read. Knows nothing of training.

mod layout;
pub mod peft;

pub use layout::{AdapterLayout, AdapterTensor, Factor, Targets};
pub use peft::{AdapterConfig, AdapterError};
