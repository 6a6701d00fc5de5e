//! Plans, trains, generates and exports language models.
//!
//! Knows nothing of windows or of the command line; both call what is here.

pub mod adapter;
pub mod catalog;
pub mod decoder;
pub mod devices;
pub mod evaluate;
mod explain;
pub mod export;
pub mod files;
pub mod generate;
pub mod model;
pub mod optimizer;
pub mod plan;
pub mod playground;
pub mod preview;
pub mod report;
pub mod residency;
pub mod train;
pub mod weights;
