//! Trains a golden model for a few steps and writes the adapter, and the logits it gives, for
//! `tests/reference/read_adapter.py` to hold against peft:
//!
//! `cargo run -p nibble-tests --example write_adapter -- tests/golden/families/llama FOLDER`

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::{fs, path::PathBuf};

use nibble_engine::{
    adapter::peft, files::SafetensorsWriter, files::TensorEntry, generate, train::OptimizerConfig,
};
use nibble_kernels::Store;
use nibble_tests::{Sequences, Setup, golden_tensors, open_trainer};
use safetensors::Dtype;

fn main() {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(model), Some(folder)) = (arguments.next(), arguments.next()) else {
        eprintln!("error: give a golden model's folder and a folder to write to");
        std::process::exit(2);
    };
    let expected = golden_tensors(&model.join("expected.safetensors"));
    let (mut sequences, mut segments) = (Sequences::default(), Vec::new());
    let mut start = 0;
    for length in &expected["segment_lengths"] {
        let range = start..start + *length as usize;
        let whole = |name: &str| expected[name][range.clone()].iter().map(|&x| x as i64);
        let ids: Vec<u32> = whole("input_ids").map(|id| id as u32).collect();
        sequences.push(&ids, &whole("labels").collect::<Vec<_>>());
        segments.push(ids);
        start = range.end;
    }
    let setup =
        Setup { with_adapter: true, n_threads: 1, n_rows: sequences.ids.len(), ..Setup::default() };
    let (mut trainer, adapter) = open_trainer(&model, setup);
    let optimizer = OptimizerConfig {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        clip_norm: Some(1.0),
    };
    for step in 1..=5 {
        trainer
            .accumulate(
                &sequences.batch(),
                1.0 / sequences.targets.len() as f32,
                None,
                Store::Overwrite,
            )
            .unwrap();
        trainer.update(&optimizer, 1e-2, step, 0).unwrap();
    }
    let (config, layout) = adapter.unwrap();
    let slice = trainer.layout().trainable.parameters.unwrap();
    let mut parameters = vec![0.0; slice.len()];
    trainer.download(slice, &mut parameters);
    let adapter_folder = folder.join("adapter");
    fs::create_dir_all(&adapter_folder).unwrap();
    peft::write(&adapter_folder, &config, &layout, |tensor, values| {
        values.copy_from_slice(&parameters[tensor.range()]);
    })
    .unwrap();

    let mut logits: Vec<f32> = Vec::new();
    for ids in &segments {
        let (device, decoder, layout) = trainer.parts();
        logits.extend(
            generate::logits((device, decoder, layout.generation.as_ref().unwrap()), ids).unwrap(),
        );
    }
    let vocabulary = trainer.shape().spec.vocabulary;
    let entry =
        |name: &str, dtype, shape: Vec<usize>| TensorEntry { name: name.to_owned(), dtype, shape };
    let n_tokens = sequences.ids.len();
    let entries = [
        entry("segment_lengths", Dtype::I64, vec![segments.len()]),
        entry("input_ids", Dtype::I64, vec![n_tokens]),
        entry("logits", Dtype::F32, vec![n_tokens, vocabulary]),
    ];
    let lengths: Vec<i64> = segments.iter().map(|ids| ids.len() as i64).collect();
    let ids: Vec<i64> = sequences.ids.iter().map(|&id| i64::from(id)).collect();
    let mut writer =
        SafetensorsWriter::create(&folder.join("logits.safetensors"), &entries).unwrap();
    writer.write_values(&lengths).unwrap();
    writer.write_values(&ids).unwrap();
    writer.write_values(&logits).unwrap();
    writer.finish().unwrap();
}
