//! A model's base weights: where each tensor lies, where it comes from, how it gets into memory.
//!
//! Knows nothing of training; what is done with the weights is decided by whoever holds their
//! layout.

pub mod layout;
