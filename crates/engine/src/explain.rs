//! Every error of the engine by a code that does not change with its wording, for windows and for
//! the events of a run.

use nibble_data::DataError;
use nibble_kernels::{DeviceError, MemoryError, cuda::OpenError, paging::PageError};
use nibble_run::Explain;

use crate::{
    adapter::AdapterError, devices::OpenDeviceError, export::ExportError, generate::GenerateError,
    model::ModelError, plan::PlanError, playground::PlaygroundError, train::TrainError,
    train::checkpoint::CheckpointError,
};

fn data_code(error: &DataError) -> &'static str {
    match error {
        DataError::Read { .. } => "data_unreadable",
        DataError::Write { .. } => "tokens_unwritable",
        DataError::Cancelled => "cancelled",
        DataError::NoTokenizer { .. } => "no_tokenizer",
        DataError::Tokenizer { .. } => "tokenizer_damaged",
        DataError::Vocabulary { .. } => "tokenizer_of_another_model",
        DataError::Encode { .. } => "text_not_tokenized",
        DataError::Template { .. } => "template_fails",
        DataError::Empty { .. } => "data_empty",
        DataError::Encoding { .. } => "data_encoding",
        DataError::MostlyRefused { .. } => "template_refuses",
        DataError::UnknownColumns { .. } => "columns_unknown",
        DataError::NoColumns { .. } => "no_columns",
        DataError::MostlyMalformed { .. } => "data_malformed",
        DataError::Json { .. } => "data_no_json",
        DataError::NothingTrained { .. } => "nothing_trained",
    }
}

fn data_advice(error: &DataError) -> Option<String> {
    let advice = match error {
        DataError::Read { .. } => "check that the file is still there and that you may read it",
        DataError::UnknownColumns { .. } => {
            "name your columns in the dataset's settings; without that, known are: text; prompt \
             and completion; instruction, input and output; messages; conversations"
        }
        DataError::NothingTrained { .. } => {
            "train on every token, or choose a longer sequence: there are no completions or \
             assistant turns, or all were cut off"
        }
        DataError::MostlyMalformed { .. } | DataError::Json { .. } => {
            "choose a file with one JSON object a line, a JSON array, or plain text"
        }
        _ => return None,
    };
    Some(advice.into())
}

fn memory_code(error: &MemoryError) -> &'static str {
    match error {
        MemoryError::Allocate { .. } => "memory_refused",
        MemoryError::Map { .. } => "map_refused",
        MemoryError::Device(error) => device_code(error),
    }
}

fn device_code(error: &DeviceError) -> &'static str {
    match error {
        DeviceError::OutOfMemory { .. } => "card_memory",
        DeviceError::Failed { .. } => "card_failed",
    }
}

impl Explain for OpenDeviceError {
    fn code(&self) -> &'static str {
        match self {
            Self::Threads(_) => "threads_refused",
            Self::Unavailable(_) | Self::Card(OpenError::Unavailable(_)) => "card_unavailable",
            Self::Card(OpenError::Device(error)) => device_code(error),
            Self::Card(OpenError::Code(_)) => "kernels_damaged",
        }
    }
}

fn page_code(error: &PageError) -> &'static str {
    match error {
        PageError::NoSpace { .. } | PageError::TooLarge { .. } => "no_space",
        PageError::HostMemory { .. } => "memory_refused",
        PageError::Create { .. } => "page_file_unwritable",
        PageError::Read { .. } => "page_unreadable",
        PageError::Write { .. } => "page_unwritable",
        PageError::Lost { .. } => "page_file_lost",
        PageError::Device(error) => device_code(error),
        PageError::Thread { .. } => "threads_refused",
    }
}

impl Explain for ModelError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "model_unreadable",
            Self::Write { .. } => "model_unwritable",
            Self::NoSpace { .. } => "no_space",
            Self::NoCacheFolder => "no_cache_folder",
            Self::Json { .. } => "model_no_json",
            Self::MissingKey { .. } => "config_incomplete",
            Self::BadValue { .. } => "config_impossible",
            Self::Unsupported { .. } => "config_unsupported",
            Self::UnknownArchitecture { .. } => "architecture_unknown",
            Self::UnknownId { .. } => "model_unknown",
            Self::NoWeights { .. } => "no_weights",
            Self::MissingShard { .. } => "shard_missing",
            Self::MissingTensor { .. } => "tensor_missing",
            Self::WrongShape { .. } => "tensor_shape",
            Self::UnsupportedDtype { .. } => "tensor_type",
            Self::Quantized { .. } => "model_quantized",
            Self::Truncated { .. } => "model_truncated",
            Self::BadHeader { .. } => "model_header",
            Self::Memory(error) => memory_code(error),
            Self::Page(error) => page_code(error),
            Self::Cancelled => "cancelled",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some(
                "choose the folder of a model: the one that holds its config.json, \
                 .safetensors files and tokenizer.json"
                    .into(),
            ),
            _ => None,
        }
    }
}

impl Explain for PlanError {
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownTarget { .. } => "target_unknown",
            Self::SequenceTooLong { .. } => "sequence_too_long",
            Self::DoesNotFit { .. } => "does_not_fit",
            Self::HostTooSmall { .. } => "host_memory",
        }
    }
}

impl Explain for AdapterError {
    fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "adapter_unreadable",
            Self::Config { .. } => "adapter_config",
            Self::Unsupported { .. } => "adapter_unsupported",
            Self::Mismatch { .. } => "adapter_of_another_model",
        }
    }
}

impl Explain for CheckpointError {
    fn code(&self) -> &'static str {
        match self {
            Self::Write { .. } => "checkpoint_unwritable",
            Self::NoSpace { .. } => "no_space",
            Self::Companions(error) => error.code(),
            Self::Read { .. } => "checkpoint_unreadable",
            Self::Damaged { .. } => "checkpoint_damaged",
            Self::Adapter(error) => error.code(),
            Self::Page(error) => page_code(error),
            Self::Device(error) => device_code(error),
        }
    }
}

impl Explain for GenerateError {
    fn code(&self) -> &'static str {
        match self {
            Self::Model(error) => error.code(),
            Self::Adapter(error) => error.code(),
            Self::Data(error) => data_code(error),
            Self::Memory(error) => memory_code(error),
            Self::Open(error) => error.code(),
            Self::Page(error) => page_code(error),
            Self::Setting { .. } => "setting_impossible",
            Self::Sample(_) => "no_next_token",
            Self::DoesNotFit { .. } => "session_does_not_fit",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Model(error) => error.advice(),
            Self::Data(error) => data_advice(error),
            _ => None,
        }
    }
}

impl Explain for ExportError {
    fn code(&self) -> &'static str {
        match self {
            Self::Run(error) => error.code(),
            Self::NoCheckpoint { .. } | Self::NoSuchStep { .. } => "no_checkpoint",
            Self::NoAdapter => "no_adapter",
            Self::Exists { .. } => "folder_not_empty",
            Self::Write { .. } => "export_unwritable",
            Self::Open(error) => error.code(),
            Self::Adapter(error) => error.code(),
            Self::Differs { .. } => "export_differs",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Run(error) => error.advice(),
            Self::Open(error) => error.advice(),
            _ => None,
        }
    }
}

impl Explain for TrainError {
    fn code(&self) -> &'static str {
        match self {
            Self::Run(error) => error.code(),
            Self::Model(error) => error.code(),
            Self::Data(error) => data_code(error),
            Self::Plan(error) => error.code(),
            Self::Open(error) => error.code(),
            Self::Memory(error) => memory_code(error),
            Self::Device(error) => device_code(error),
            Self::Checkpoint(error) => error.code(),
            Self::Adapter(error) => error.code(),
            Self::Generate(error) => error.code(),
            Self::NotDownloaded { .. } => "not_downloaded",
            Self::Page(error) => page_code(error),
            Self::Diverged { .. } => "diverged",
            Self::DamagedModel { .. } => "model_damaged",
            Self::Complete { .. } => "run_complete",
            Self::Threads(_) => "threads_refused",
            Self::Panicked => "defect",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Run(error) => error.advice(),
            Self::Model(error) => error.advice(),
            Self::Data(error) => data_advice(error),
            Self::NotDownloaded { repository, .. } => Some(format!(
                "download {repository} from the Hugging Face hub into a folder, and choose that \
                 folder"
            )),
            Self::Generate(error) => error.advice(),
            Self::Diverged { learning_rate, .. } => Some(format!(
                "try a learning rate of {:e}, more warm-up steps, or clip the gradient to 1; the \
                 last checkpoint is from before the run diverged",
                learning_rate / 10.0
            )),
            _ => None,
        }
    }
}

impl Explain for PlaygroundError {
    fn code(&self) -> &'static str {
        match self {
            Self::Run(error) => error.code(),
            Self::Generate(error) => error.code(),
            Self::NoCheckpoint { .. } => "no_checkpoint",
            Self::Nobody => "nobody_asked",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Run(error) => error.advice(),
            Self::Generate(error) => error.advice(),
            _ => None,
        }
    }
}
