//! A Hugging Face model folder: its configuration and its safetensors files, checked as a whole
//! before anything is loaded.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use super::safetensors_file::StoredType;
use super::{
    layout::{TensorRole, WeightFormat, WeightLayout},
    safetensors_file::{SafetensorsFile, StoredTensor, convert},
};
use crate::model::{ModelError, ModelSpec};

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// A model folder whose weights are all there and of the right shapes.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    spec: ModelSpec,
    files: Vec<SafetensorsFile>,
    /// Each tensor the model needs: which file, and where in it.
    tensors: HashMap<TensorRole, (usize, StoredTensor)>,
    identity: String,
}

/// The part of an index file that is read.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl ModelFolder {
    /// Opens the folder and checks all of it up front.
    ///
    /// Tensors that the model does not use are ignored: older files store the rotation's
    /// frequencies, and some tied models store their table twice.
    ///
    /// # Errors
    /// Names the file, and the key or the tensor, that is missing, cut off or wrong.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let spec = ModelSpec::from_config_file(&path.join(CONFIG_FILE))?;
        let (files, file_of) = open_files(path)?;
        let mut tensors = HashMap::new();
        // Names and shapes are the same in every format.
        for place in WeightLayout::new(&spec, WeightFormat::F32).tensors() {
            let name = place.role.name();
            let missing = |folder: &Path| ModelError::MissingTensor {
                folder: folder.to_owned(),
                tensor: name.clone(),
            };
            let number = match &file_of {
                None => 0,
                Some(file_of) => *file_of.get(&name).ok_or_else(|| missing(path))?,
            };
            let file = &files[number];
            let stored =
                file.tensor(&name, &place.shape.to_vec())?.ok_or_else(|| missing(file.path()))?;
            tensors.insert(place.role, (number, stored));
        }
        let mut hash = Sha256::new();
        for file in &files {
            file.identify(&mut hash);
        }
        let identity = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { path: path.to_owned(), spec, files, tensors, identity })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// What tells these weights from others, in hexadecimal: names, sizes, times, headers and
    /// samples of the files.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Bytes of the tensors that the model needs, as they are stored.
    pub fn n_stored_bytes(&self) -> usize {
        self.tensors.values().map(|(_, stored)| stored.n_bytes()).sum()
    }

    /// The type a tensor's numbers are stored in.
    ///
    /// # Panics
    /// When the model has no such tensor.
    pub fn stored_type(&self, role: TensorRole) -> StoredType {
        self.stored(role).1.stored_type
    }

    /// Reads elements of a tensor as f32 into `values`, and lets go of the memory that reading them
    /// from the file brought in.
    ///
    /// # Panics
    /// When the model has no such tensor or the range leaves it.
    pub fn read_f32(&self, role: TensorRole, elements: Range<usize>, values: &mut [f32]) {
        self.visit(role, elements, |stored_type, bytes| convert(stored_type, bytes, values));
    }

    /// Shows `visit` the bytes of a tensor's elements as they are stored, little-endian.
    ///
    /// # Panics
    /// When the model has no such tensor or the range leaves it.
    pub(super) fn visit<R>(
        &self,
        role: TensorRole,
        elements: Range<usize>,
        visit: impl FnOnce(StoredType, &[u8]) -> R,
    ) -> R {
        let (number, stored) = self.stored(role);
        assert!(elements.end <= stored.n_elements, "{elements:?} of {role:?}");
        let n_bytes = stored.stored_type.n_bytes();
        let end = stored.offset + elements.end * n_bytes;
        let file = &self.files[*number];
        let bytes = file.bytes(stored.offset + elements.start * n_bytes..end);
        let result = visit(stored.stored_type, bytes);
        // From the tensor's start: only whole pages are let go of, and this also catches the one
        // that the last reader shared with this one.
        file.release(stored.offset..end);
        result
    }

    /// Brings elements of a tensor, which will be read soon, from the disk.
    pub(super) fn expect(&self, role: TensorRole, elements: Range<usize>) {
        let (number, stored) = self.stored(role);
        let n_bytes = stored.stored_type.n_bytes();
        let [start, end] = [elements.start, elements.end].map(|n| stored.offset + n * n_bytes);
        self.files[*number].expect(start..end);
    }

    fn stored(&self, role: TensorRole) -> &(usize, StoredTensor) {
        self.tensors.get(&role).unwrap_or_else(|| panic!("the model has no {role:?}"))
    }
}

impl StoredTensor {
    fn n_bytes(&self) -> usize {
        self.n_elements * self.stored_type.n_bytes()
    }
}

/// The folder's files, and by which of them each tensor is stored; `None`: there is only one.
type Files = (Vec<SafetensorsFile>, Option<HashMap<String, usize>>);

fn open_files(folder: &Path) -> Result<Files, ModelError> {
    let index_path = folder.join(INDEX_FILE);
    if !index_path.exists() {
        let single = folder.join(WEIGHTS_FILE);
        if !single.exists() {
            return Err(ModelError::NoWeights { folder: folder.to_owned() });
        }
        return Ok((vec![SafetensorsFile::open(&single)?], None));
    }
    let text = std::fs::read_to_string(&index_path)
        .map_err(|source| ModelError::Read { path: index_path.clone(), source })?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|source| ModelError::Json { path: index_path.clone(), source })?;
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut files = Vec::new();
    let mut file_of = HashMap::with_capacity(index.weight_map.len());
    for (tensor, name) in &index.weight_map {
        let number = match numbers.get(name.as_str()) {
            Some(number) => *number,
            None => {
                let shard = shard_path(folder, name, &index_path)?;
                files.push(SafetensorsFile::open(&shard)?);
                numbers.insert(name, files.len() - 1);
                files.len() - 1
            }
        };
        file_of.insert(tensor.clone(), number);
    }
    Ok((files, Some(file_of)))
}

/// Where the index says a shard is: in the folder itself, for an index comes with the model and
/// must not reach for other files.
fn shard_path(folder: &Path, name: &str, index: &Path) -> Result<PathBuf, ModelError> {
    let is_plain = Path::new(name).file_name().is_some_and(|file_name| file_name == name);
    if !is_plain {
        return Err(ModelError::BadValue {
            path: index.to_owned(),
            key: "weight_map".into(),
            found: format!("{name:?}"),
            expected: "names of files in the same folder".into(),
        });
    }
    let shard = folder.join(name);
    match shard.exists() {
        true => Ok(shard),
        false => Err(ModelError::MissingShard { shard, index: index.to_owned() }),
    }
}
