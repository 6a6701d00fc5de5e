//! Text in, masked token batches out.
//!
//! ```text
//! file ── Dataset ── (ChatTemplate, Tokenizer) ── TokenizedDataset ── BatchPlan ── micro-batches
//! ```
//! Knows nothing of models, devices or runs.

mod batches;
mod dataset;
mod error;
mod inspect;
mod template;
mod tokenize;
mod tokenizer;

pub use batches::{BatchBuffers, BatchCounts, BatchPlan, MicroBatchPlan};
pub use dataset::{ColumnMapping, Dataset, Example, Format, MalformedLine, Message};
pub use error::DataError;
pub use inspect::{InspectedLine, InspectedSample, Inspection, inspect};
pub use template::ChatTemplate;
pub use tokenize::{EncodedExample, TokenizeOptions, TokenizedDataset, TrainOn, encode_example};
pub use tokenizer::{ByteSpan, StreamDecoder, Tokenizer};
