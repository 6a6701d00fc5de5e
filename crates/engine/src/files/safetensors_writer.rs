//! A safetensors file written front to back: the header first, then each tensor's bytes as they
//! come. The `safetensors` crate writes tensors that all exist at once; a model that fills the
//! memory has no room for a copy of itself.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

/// One tensor of the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its number type.
    pub dtype: Dtype,
    /// Its extents.
    pub shape: Vec<usize>,
}

impl TensorEntry {
    /// Size in bytes.
    pub fn n_bytes(&self) -> u64 {
        let n_elements: u64 = self.shape.iter().map(|&extent| extent as u64).product();
        n_elements * self.dtype.bitsize() as u64 / 8
    }
}

/// A file being written.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: BufWriter<File>,
    missing_bytes: u64,
}

impl SafetensorsWriter {
    /// Creates the file and writes its header. The bytes of `entries` follow in their order.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: &Path, entries: &[TensorEntry]) -> io::Result<Self> {
        let mut header = Map::new();
        // Python readers ask which framework's conventions the names follow.
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut end = 0_u64;
        for entry in entries {
            let start = end;
            end += entry.n_bytes();
            header.insert(
                entry.name.clone(),
                json!({
                    "dtype": entry.dtype.to_string(),
                    "shape": entry.shape,
                    "data_offsets": [start, end],
                }),
            );
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // Tensors begin at a multiple of 8, so that readers can map them in place.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        Ok(Self { file, missing_bytes: end })
    }

    /// Appends the next bytes of the current tensor, or of the next one.
    ///
    /// # Errors
    /// When the disk is full, or more is written than the header promised.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.missing_bytes = self
            .missing_bytes
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("more bytes than the header promised"))?;
        self.file.write_all(bytes)
    }

    /// Appends values.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::write`].
    pub fn write_values<T: bytemuck::Pod>(&mut self, values: &[T]) -> io::Result<()> {
        self.write(bytemuck::cast_slice(values))
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// When the disk is full, or less was written than the header promised.
    pub fn finish(mut self) -> io::Result<()> {
        if self.missing_bytes > 0 {
            return Err(io::Error::other("fewer bytes than the header promised"));
        }
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_safetensors_crate_reads_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let entry = |name: &str, shape: &[usize]| TensorEntry {
            name: name.into(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        };
        let entries = [entry("b \"quoted\"", &[2, 3]), entry("a", &[1]), entry("empty", &[0, 4])];
        let mut writer = SafetensorsWriter::create(&path, &entries).unwrap();
        writer.write_values(&[1.0_f32, 2.0, 3.0, 4.0]).unwrap();
        writer.write_values(&[5.0_f32, 6.0, 7.0]).unwrap();
        assert!(writer.write(&[0]).is_err(), "a byte too many");
        let mut writer = SafetensorsWriter::create(&path, &entries).unwrap();
        writer.write_values(&[1.0_f32; 6]).unwrap();
        assert!(writer.finish().is_err(), "a tensor too few");
        let mut writer = SafetensorsWriter::create(&path, &entries).unwrap();
        writer.write_values(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).unwrap();
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("b \"quoted\"").unwrap().shape(), [2, 3]);
        assert_eq!(tensors.tensor("a").unwrap().data(), 7.0_f32.to_le_bytes());
        assert_eq!(tensors.tensor("empty").unwrap().shape(), [0, 4]);
    }
}
