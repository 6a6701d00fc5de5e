//! Plans, trains, generates and exports language models.
//!
//! Knows nothing of windows or of the command line; both call what is here.

pub mod catalog;
pub mod model;
pub mod weights;
