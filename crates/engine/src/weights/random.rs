//! Model folders with random weights, as a model has them before it is trained: what a new model is
//! pretrained from, and what speed and memory are measured with when the real weights are not at
//! hand.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    panic,
    path::Path,
    thread,
};

use half::{bf16, f16};
use nibble_kernels::random::{Sequence, hash, uniform};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use super::{
    layout::{LayerTensor, TensorPlace, TensorRole, WeightFormat, WeightLayout},
    safetensors_file::StoredType,
};
use crate::model::{ModelError, ModelSpec};

/// The spread of initial weights where the configuration has no `initializer_range`.
const DEFAULT_DEVIATION: f64 = 0.02;
/// Bytes of the tensors that are made at a time, at most, unless one alone is larger.
const AT_ONCE: usize = 2 << 30;

/// How a folder of random weights is stored.
#[derive(Clone, Copy, Debug)]
pub struct RandomModel {
    /// Decides every number.
    pub seed: u64,
    /// What the numbers are stored as.
    pub stored_type: StoredType,
    /// Bytes of tensors after which a new file is begun; `None`: one file.
    pub max_shard_bytes: Option<usize>,
}

/// Writes a model folder of the shape that `config` describes: `config.json` and safetensors.
///
/// Matrices are normally distributed with the configuration's `initializer_range` (0.02 where it has
/// none), norms are 1, biases 0. The folder is made where it does not exist; memory stays small
/// whatever the model's size.
///
/// # Errors
/// When `config` describes no supported model or the files cannot be written.
pub fn write_random_model(
    config: &Value,
    folder: &Path,
    model: RandomModel,
) -> Result<ModelSpec, ModelError> {
    let config_path = folder.join("config.json");
    let spec = ModelSpec::from_config(config, &config_path)?;
    let deviation = config
        .get("initializer_range")
        .and_then(Value::as_f64)
        .filter(|deviation| deviation.is_finite() && *deviation >= 0.0)
        .unwrap_or(DEFAULT_DEVIATION);
    std::fs::create_dir_all(folder)
        .map_err(|source| ModelError::Write { path: folder.to_owned(), source })?;
    let mut config = config.clone();
    config["torch_dtype"] = json!(match model.stored_type {
        StoredType::F32 => "float32",
        StoredType::F16 => "float16",
        StoredType::Bf16 => "bfloat16",
    });
    write_json(&config_path, &config)?;

    let shards = shards(&spec, model);
    let n_shards = shards.len();
    let mut weight_map = BTreeMap::new();
    for (number, places) in shards.iter().enumerate() {
        let name = match n_shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{n_shards:05}.safetensors", number + 1),
        };
        let path = folder.join(&name);
        write_shard(&path, places, model, deviation)
            .map_err(|source| ModelError::Write { path, source })?;
        weight_map.extend(places.iter().map(|place| (place.role.name(), name.clone())));
    }
    if n_shards > 1 {
        let total_size = spec.n_parameters() * model.stored_type.n_bytes();
        let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    Ok(spec)
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    std::fs::write(path, format!("{value:#}\n"))
        .map_err(|source| ModelError::Write { path: path.to_owned(), source })
}

/// The tensors of each file; a tensor is never cut.
fn shards(spec: &ModelSpec, model: RandomModel) -> Vec<Vec<TensorPlace>> {
    let limit = model.max_shard_bytes.unwrap_or(usize::MAX);
    let mut shards = vec![Vec::new()];
    let mut n_bytes = 0;
    // Names and shapes are the same in every format.
    for place in WeightLayout::new(spec, WeightFormat::F32).tensors() {
        let more = place.shape.n_elements() * model.stored_type.n_bytes();
        if n_bytes > 0 && more > limit - n_bytes.min(limit) {
            shards.push(Vec::new());
            n_bytes = 0;
        }
        n_bytes += more;
        if let Some(shard) = shards.last_mut() {
            shard.push(place);
        }
    }
    shards
}

fn write_shard(
    path: &Path,
    places: &[TensorPlace],
    model: RandomModel,
    deviation: f64,
) -> std::io::Result<()> {
    let mut offset = 0;
    let infos = places.iter().map(|place| {
        let start = offset;
        offset += place.shape.n_elements() * model.stored_type.n_bytes();
        let info = TensorInfo {
            dtype: model.stored_type.dtype(),
            shape: place.shape.to_vec(),
            data_offsets: (start, offset),
        };
        (place.role.name(), info)
    });
    let about = [("format".to_owned(), "pt".to_owned())].into();
    let metadata = Metadata::new(Some(about), infos.collect()).map_err(std::io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    // A thread makes a tensor, as each has a sequence of its own.
    let n_threads = thread::available_parallelism().map_or(1, |n| n.get());
    let mut left = places;
    while !left.is_empty() {
        let mut n_bytes = 0;
        let fits = |place: &&TensorPlace| {
            n_bytes += place.shape.n_elements() * model.stored_type.n_bytes();
            n_bytes <= AT_ONCE
        };
        let n = left.iter().take(n_threads).take_while(fits).count().max(1);
        let (now, later) = left.split_at(n);
        thread::scope(|scope| {
            let make = |place| scope.spawn(move || numbers_of(place, model, deviation));
            let made: Vec<_> = now.iter().map(make).collect();
            made.into_iter().try_for_each(|made| {
                let bytes = made.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
                file.write_all(&bytes)
            })
        })?;
        left = later;
    }
    file.flush()
}

/// A tensor's numbers as they are stored.
fn numbers_of(place: &TensorPlace, model: RandomModel, deviation: f64) -> Vec<u8> {
    let mut numbers = Numbers::of(place.role, model.seed, deviation);
    let n = place.shape.n_elements();
    let mut bytes = Vec::with_capacity(n * model.stored_type.n_bytes());
    for _ in 0..n {
        let number = numbers.next();
        match model.stored_type {
            StoredType::F32 => bytes.extend_from_slice(&number.to_le_bytes()),
            StoredType::F16 => bytes.extend_from_slice(&f16::from_f32(number).to_le_bytes()),
            StoredType::Bf16 => bytes.extend_from_slice(&bf16::from_f32(number).to_le_bytes()),
        }
    }
    bytes
}

/// The initial numbers of a tensor, one after another.
enum Numbers {
    Constant(f32),
    Normal { generator: Normals, deviation: f64, spare: Option<f64> },
}

impl Numbers {
    /// Each tensor has a sequence of its own, so that its numbers do not depend on the others.
    fn of(role: TensorRole, seed: u64, deviation: f64) -> Self {
        match role {
            TensorRole::Layer(_, LayerTensor::Bias(_)) => Self::Constant(0.0),
            _ if !role.is_matrix() => Self::Constant(1.0),
            _ => {
                let name = role.name();
                let seed = name.bytes().fold(seed, |seed, byte| hash(seed, u64::from(byte)));
                Self::Normal { generator: Normals(Sequence::new(seed)), deviation, spare: None }
            }
        }
    }

    fn next(&mut self) -> f32 {
        match self {
            Self::Constant(value) => *value,
            Self::Normal { generator, deviation, spare } => {
                let normal = spare.take().unwrap_or_else(|| {
                    let (first, second) = generator.pair();
                    *spare = Some(second);
                    first
                });
                (normal * *deviation) as f32
            }
        }
    }
}

/// Normal numbers, one pair after another.
struct Normals(Sequence);

impl Normals {
    /// A number from −1 to 1.
    fn symmetric(&mut self) -> f64 {
        2.0 * uniform(self.0.next()) - 1.0
    }

    /// Two independent standard normal numbers, by Marsaglia's polar method.
    fn pair(&mut self) -> (f64, f64) {
        loop {
            let (x, y) = (self.symmetric(), self.symmetric());
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * square.ln() / square).sqrt();
                return (x * scale, y * scale);
            }
        }
    }
}
