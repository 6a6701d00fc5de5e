//! Text in, masked token batches out.
//!
//! ```text
//! file ── Dataset ── Encoder (Tokenizer, ChatTemplate) ── TokenizedDataset ── BatchPlan ── micro-batches
//! ```
//! A dataset is never in memory as a whole, neither its texts nor its tokens, but for a JSON object
//! that holds its list.
//!
//! Knows nothing of models, devices or runs.

mod batches;
mod dataset;
mod error;
mod inspect;
mod random;
mod template;
mod tokenize;
mod tokenizer;

pub use batches::{BatchBuffer, BatchPlan, MicroBatchPlan};
pub use dataset::{
    ColumnMapping, Dataset, Example, Format, MalformedLine, MalformedLines, Message, OnExample,
    OnProgress,
};
pub use error::DataError;
pub use inspect::{InspectedLine, InspectedSample, Inspection, inspect};
pub use template::ChatTemplate;
pub use tokenize::{EncodedExample, Encoder, TokenizeOptions, TokenizedDataset, TrainOn};
pub use tokenizer::{ByteSpan, StreamDecoder, Tokenizer};
