//! Adapter folders in the format of PEFT: `adapter_model.safetensors` and `adapter_config.json`.
//!
//! Only keys that every version of PEFT has read for years are written. Nibble's factor on a pair
//! is alpha / R (or alpha / √R), exactly PEFT's, so that alpha stays the number the person chose.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nibble_kernels::{DeviceSlice, Memory, memory::MappedFile};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{
    AdapterLayout, Targets,
    layout::{AdapterTensor, Factor},
};
use crate::{
    files::{SafetensorsWriter, TensorEntry},
    model::{ModelSpec, Projection},
    weights::{StoredType, convert},
};

/// File of the matrices.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// File of the settings.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Why an adapter folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The settings are no JSON, or lack what is needed.
    #[error("{path} is no PEFT adapter configuration: {reason}")]
    Config {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The adapter does something that Nibble does not.
    #[error(
        "{path} asks for {feature}, which Nibble does not support; it reads plain LoRA adapters"
    )]
    Unsupported {
        /// The file.
        path: std::path::PathBuf,
        /// What it asks for.
        feature: String,
    },
    /// The matrices do not belong to the model.
    #[error("{path} does not fit the model: {reason}; was it made for another one?")]
    Mismatch {
        /// The file.
        path: std::path::PathBuf,
        /// Which matrix, and how.
        reason: String,
    },
}

/// The settings of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// R.
    pub rank: usize,
    /// Numerator of the factor on every pair.
    pub alpha: f64,
    /// Whether the factor is alpha / √R instead of alpha / R.
    pub rslora: bool,
    /// Share of inputs dropped in training.
    pub dropout: f64,
    /// The linear layers with a pair.
    pub targets: Targets,
    /// The model it was trained on: a folder or a hub id.
    pub base_model: String,
}

impl AdapterConfig {
    /// Factor on every pair's output.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// `adapter_config.json`, as PEFT names its keys.
#[derive(Debug, Serialize, Deserialize)]
struct ConfigFile {
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    #[serde(default = "none")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    inference_mode: bool,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    peft_type: String,
    r: usize,
    target_modules: TargetModules,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    use_dora: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rank_pattern: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alpha_pattern: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    modules_to_save: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers_to_transform: Option<serde_json::Value>,
}

fn none() -> String {
    "none".into()
}

fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum TargetModules {
    Names(Vec<String>),
    Pattern(String),
}

/// Writes an adapter, one matrix in memory at a time: `fill` is asked for the values of each.
///
/// # Errors
/// When a file cannot be written.
pub fn write(
    folder: &Path,
    config: &AdapterConfig,
    layout: &AdapterLayout,
    mut fill: impl FnMut(&AdapterTensor, &mut [f32]),
) -> Result<(), AdapterError> {
    let path = folder.join(ADAPTER_WEIGHTS);
    let failed = |path: &Path, source| AdapterError::File { path: path.to_owned(), source };
    let entries = layout.tensors().map(|tensor| TensorEntry {
        name: tensor_name(&tensor),
        dtype: Dtype::F32,
        shape: tensor.shape.to_vec(),
    });
    let mut values = Vec::new();
    SafetensorsWriter::create(&path, &entries.collect::<Vec<_>>())
        .and_then(|mut writer| {
            for tensor in layout.tensors() {
                values.resize(tensor.n_elements(), 0.0);
                fill(&tensor, &mut values);
                writer.write_values(&values)?;
            }
            writer.finish()
        })
        .map_err(|source| failed(&path, source))?;

    let file = ConfigFile {
        base_model_name_or_path: Some(config.base_model.clone()),
        bias: none(),
        fan_in_fan_out: false,
        inference_mode: true,
        lora_alpha: config.alpha,
        lora_dropout: config.dropout,
        peft_type: "LORA".into(),
        r: config.rank,
        target_modules: TargetModules::Names(
            config.targets.iter().map(|target| target.name().to_owned()).collect(),
        ),
        task_type: Some("CAUSAL_LM".into()),
        use_rslora: config.rslora,
        use_dora: false,
        rank_pattern: None,
        alpha_pattern: None,
        modules_to_save: None,
        layers_to_transform: None,
    };
    let path = folder.join(ADAPTER_CONFIG);
    let mut json =
        serde_json::to_value(&file).map_err(|error| failed(&path, std::io::Error::other(error)))?;
    // A whole alpha is written as one: older readers declare it an integer.
    if config.alpha.fract() == 0.0 && config.alpha.abs() < 1e15 {
        json["lora_alpha"] = serde_json::json!(config.alpha as i64);
    }
    let text = serde_json::to_string_pretty(&json)
        .map_err(|error| failed(&path, std::io::Error::other(error)))?;
    fs::write(&path, text + "\n").map_err(|source| failed(&path, source))
}

/// Reads the settings of an adapter folder.
///
/// # Errors
/// When it is no adapter, or one with features beyond plain LoRA.
pub fn read_config(folder: &Path) -> Result<AdapterConfig, AdapterError> {
    let path = folder.join(ADAPTER_CONFIG);
    let text = fs::read_to_string(&path)
        .map_err(|source| AdapterError::File { path: path.clone(), source })?;
    let invalid = |reason: String| AdapterError::Config { path: path.clone(), reason };
    let file: ConfigFile =
        serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    let unsupported =
        |feature: String| Err(AdapterError::Unsupported { path: path.clone(), feature });
    if file.peft_type != "LORA" {
        return unsupported(format!("a {} adapter", file.peft_type));
    }
    if file.bias != "none" {
        return unsupported(format!("trained biases (`bias`: `{}`)", file.bias));
    }
    if file.use_dora {
        return unsupported("weight-decomposed pairs (`use_dora`)".into());
    }
    if file.fan_in_fan_out {
        return unsupported("transposed weights (`fan_in_fan_out`)".into());
    }
    for (key, pattern) in
        [("rank_pattern", &file.rank_pattern), ("alpha_pattern", &file.alpha_pattern)]
    {
        if pattern.as_ref().is_some_and(|pattern| !pattern.is_empty()) {
            return unsupported(format!("different pairs for different layers (`{key}`)"));
        }
    }
    if file.modules_to_save.as_ref().is_some_and(|modules| !modules.is_empty()) {
        return unsupported("whole retrained modules (`modules_to_save`)".into());
    }
    if file.layers_to_transform.as_ref().is_some_and(|layers| !layers.is_null()) {
        return unsupported("pairs in some layers only (`layers_to_transform`)".into());
    }
    if file.r == 0 {
        return Err(invalid("the rank `r` is 0".into()));
    }
    let targets = match file.target_modules {
        TargetModules::Pattern(pattern) if pattern == "all-linear" => Targets::all_linear(),
        TargetModules::Pattern(pattern) => {
            return unsupported(format!("targets by the pattern `{pattern}`"));
        }
        TargetModules::Names(names) => {
            let mut targets = Vec::with_capacity(names.len());
            for name in &names {
                let Some(target) = Projection::from_name(name) else {
                    return unsupported(format!("an adapter on `{name}`"));
                };
                targets.push(target);
            }
            targets.into_iter().collect()
        }
    };
    Ok(AdapterConfig {
        rank: file.r,
        alpha: file.lora_alpha,
        rslora: file.use_rslora,
        dropout: file.lora_dropout,
        targets,
        base_model: file.base_model_name_or_path.unwrap_or_default(),
    })
}

/// An adapter folder whose settings are read, and fit a model.
#[derive(Debug)]
pub struct AdapterFolder {
    /// Its settings.
    pub config: AdapterConfig,
    /// The order of its numbers in memory.
    pub layout: AdapterLayout,
    weights: PathBuf,
}

impl AdapterFolder {
    /// Reads the settings of the adapter in `folder`, for a model like `spec`.
    ///
    /// # Errors
    /// As [`read_config`].
    pub fn open(folder: &Path, spec: &ModelSpec) -> Result<Self, AdapterError> {
        let config = read_config(folder)?;
        let layout = AdapterLayout::new(spec, config.targets, config.rank);
        Ok(Self { config, layout, weights: folder.join(ADAPTER_WEIGHTS) })
    }

    /// Reads its matrices to `parameters` on `device`.
    ///
    /// # Errors
    /// As [`read_parameters`].
    pub fn upload<M: Memory>(
        &self,
        device: &mut M,
        parameters: DeviceSlice<f32>,
    ) -> Result<(), AdapterError> {
        read_parameters(&self.weights, &self.layout, |tensor, values| {
            device.upload(values, parameters.slice(tensor.range()));
        })
    }
}

/// Reads the matrices of `layout` from the safetensors file at `path`, one in memory at a time, which
/// `place` is handed.
///
/// # Errors
/// When a matrix is missing, has another shape than the layout asks for, or is no float.
pub fn read_parameters(
    path: &Path,
    layout: &AdapterLayout,
    mut place: impl FnMut(&AdapterTensor, &[f32]),
) -> Result<(), AdapterError> {
    let failed = |source| AdapterError::File { path: path.to_owned(), source };
    let file = MappedFile::open(path).map_err(|error| failed(std::io::Error::other(error)))?;
    let tensors = SafeTensors::deserialize(&file)
        .map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
    let mismatch = |reason| AdapterError::Mismatch { path: path.to_owned(), reason };
    if tensors.len() != layout.tensors().count() {
        return Err(mismatch(format!(
            "it holds {} matrices where the model and its settings make {}",
            tensors.len(),
            layout.tensors().count()
        )));
    }
    let mut values = Vec::new();
    for tensor in layout.tensors() {
        let name = tensor_name(&tensor);
        let view =
            tensors.tensor(&name).map_err(|_| mismatch(format!("there is no matrix `{name}`")))?;
        if view.shape() != tensor.shape {
            return Err(mismatch(format!(
                "`{name}` is {:?} instead of {:?}",
                view.shape(),
                tensor.shape
            )));
        }
        let stored_type = match view.dtype() {
            Dtype::F32 => StoredType::F32,
            Dtype::F16 => StoredType::F16,
            Dtype::BF16 => StoredType::Bf16,
            other => return Err(mismatch(format!("`{name}` is stored as {other}"))),
        };
        values.resize(tensor.n_elements(), 0.0);
        convert(stored_type, view.data(), &mut values);
        place(&tensor, &values);
    }
    Ok(())
}

/// A matrix's name in the file.
pub(crate) fn tensor_name(tensor: &AdapterTensor) -> String {
    let factor = match tensor.factor {
        Factor::A => "lora_A",
        Factor::B => "lora_B",
    };
    let module = tensor.projection.path();
    format!("base_model.model.model.layers.{}.{module}.{factor}.weight", tensor.layer)
}
