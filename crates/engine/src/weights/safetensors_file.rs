//! One safetensors file: its header, checked against the file, and its numbers.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use half::{f16, slice::HalfFloatSliceExt};
use nibble_kernels::memory::MappedFile;
use safetensors::{Dtype, tensor::Metadata};
use sha2::{Digest, Sha256};

use crate::model::ModelError;

/// Bytes before the header: its length.
pub(super) const LENGTH_BYTES: usize = 8;
/// The longest header the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Samples of the contents that enter a file's identity, beside its size and time.
const N_SAMPLES: usize = 16;
/// Bytes of each sample.
const SAMPLE_BYTES: usize = 4096;

/// A number type that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// Four bytes.
    F32,
    /// Two bytes, eleven significant bits.
    F16,
    /// Two bytes, eight significant bits, the range of f32.
    Bf16,
}

impl StoredType {
    /// Bytes of one number.
    pub const fn n_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    pub(super) const fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    fn from_dtype(dtype: Dtype) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|stored| stored.dtype() == dtype)
    }
}

/// A tensor's place in its file.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    pub(super) stored_type: StoredType,
    /// First byte, from the start of the file.
    pub(super) offset: usize,
    pub(super) n_elements: usize,
}

/// A mapped file whose header was read.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    path: PathBuf,
    file: MappedFile,
    metadata: Metadata,
    data_offset: usize,
    modified_nanos: u128,
}

impl SafetensorsFile {
    /// Maps the file at `path` and checks that its header and its length agree.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read { path: path.to_owned(), source };
        let details = std::fs::metadata(path).map_err(read)?;
        let found_bytes = details.len();
        let truncated = |expected_bytes| ModelError::Truncated {
            path: path.to_owned(),
            expected_bytes,
            found_bytes,
        };
        let bad = |reason: String| ModelError::BadHeader { path: path.to_owned(), reason };
        if found_bytes < LENGTH_BYTES as u64 {
            // Empty files cannot be mapped everywhere.
            return Err(truncated(LENGTH_BYTES as u64));
        }
        let file = MappedFile::open(path)?;
        let mut length = [0; LENGTH_BYTES];
        length.copy_from_slice(&file[..LENGTH_BYTES]);
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(bad(format!("it claims to be {header_bytes} bytes long")));
        }
        let data_offset = LENGTH_BYTES + header_bytes as usize;
        let header =
            file.get(LENGTH_BYTES..data_offset).ok_or_else(|| truncated(data_offset as u64))?;
        let metadata: Metadata =
            serde_json::from_slice(header).map_err(|error| bad(error.to_string()))?;
        let expected_bytes = (data_offset as u64)
            .checked_add(metadata.data_len() as u64)
            .ok_or_else(|| bad("its tensors exceed any file".into()))?;
        if found_bytes < expected_bytes {
            return Err(truncated(expected_bytes));
        }
        if found_bytes > expected_bytes {
            let surplus = found_bytes - expected_bytes;
            return Err(bad(format!("it leaves {surplus} bytes of the file unexplained")));
        }
        let modified = details.modified().map_err(read)?;
        let modified_nanos = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Ok(Self { path: path.to_owned(), file, metadata, data_offset, modified_nanos })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The tensor called `name` if it is here; it must have the shape `expected` and hold numbers of
    /// a type that is read.
    pub(super) fn tensor(
        &self,
        name: &str,
        expected: &[usize],
    ) -> Result<Option<StoredTensor>, ModelError> {
        let Some(info) = self.metadata.info(name) else { return Ok(None) };
        let Some(stored_type) = StoredType::from_dtype(info.dtype) else {
            return Err(ModelError::UnsupportedDtype {
                path: self.path.clone(),
                tensor: name.into(),
                found: format!("{:?}", info.dtype),
            });
        };
        if info.shape != expected {
            return Err(ModelError::WrongShape {
                path: self.path.clone(),
                tensor: name.into(),
                expected: expected.to_vec(),
                found: info.shape.clone(),
            });
        }
        Ok(Some(StoredTensor {
            stored_type,
            offset: self.data_offset + info.data_offsets.0,
            n_elements: info.shape.iter().product(),
        }))
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.file[range]
    }

    /// Brings `range`, which will be read soon, from the disk.
    pub(super) fn expect(&self, range: Range<usize>) {
        self.file.expect(range);
    }

    /// Lets go of the memory that reading `range` brought in.
    pub(super) fn release(&self, range: Range<usize>) {
        self.file.release(range);
    }

    /// Adds to `hash` what tells this file from another: its name, size and time, its header, and
    /// samples of its contents, for files that were copied without their times.
    pub(super) fn identify(&self, hash: &mut Sha256) {
        let name = self.path.file_name().unwrap_or_default().as_encoded_bytes();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((self.file.len() as u64).to_le_bytes());
        hash.update(self.modified_nanos.to_le_bytes());
        hash.update(&self.file[..self.data_offset]);
        let n_data = self.file.len() - self.data_offset;
        for sample in 0..N_SAMPLES {
            let start = self.data_offset + n_data / N_SAMPLES * sample;
            let end = (start + SAMPLE_BYTES).min(self.file.len());
            hash.update(&self.file[start..end]);
        }
        self.file.release(0..self.file.len());
    }
}

/// Converts numbers of `stored_type`, little-endian, to f32.
///
/// # Panics
/// When `bytes` and `values` are not of the same number of numbers.
pub(crate) fn convert(stored_type: StoredType, bytes: &[u8], values: &mut [f32]) {
    assert_eq!(bytes.len(), values.len() * stored_type.n_bytes(), "as many numbers as asked for");
    match stored_type {
        StoredType::F32 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        StoredType::Bf16 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        // Converted a slice at a time where the bytes are aligned, for then the processor's own
        // instructions are used.
        StoredType::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(values),
            _ => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
        },
    }
}
