use std::{collections::BTreeMap, fs, path::PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::*;
use crate::{
    model::ModelError,
    weights::layout::{TensorRole, WeightFormat, WeightLayout},
};

/// A tensor as it is stored: type, shape, bytes.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// Reads a safetensors file, lets `change` alter its tensors, and writes it back.
fn rewrite(path: &Path, change: impl FnOnce(&mut BTreeMap<String, Stored>)) {
    let bytes = fs::read(path).unwrap();
    let mut tensors: BTreeMap<String, Stored> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| {
            (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A file with this header and `n_data` zeros.
fn with_header(header: &str, n_data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + n_data, 0);
    bytes
}

fn sharded() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = RandomModel { max_shard_bytes: Some(20_000), ..in_one_file(StoredType::Bf16) };
    write(&config(), folder.path(), model);
    folder
}

fn weights(folder: &TempDir) -> PathBuf {
    folder.path().join("model.safetensors")
}

fn failure(folder: &TempDir) -> ModelError {
    ModelFolder::open(folder.path()).expect_err("the folder is damaged")
}

#[test]
fn numbers_of_every_stored_type_are_read_exactly() {
    for stored_type in STORED_TYPES {
        let folder = tempfile::tempdir().unwrap();
        write(&config(), folder.path(), in_one_file(stored_type));
        let bytes = fs::read(weights(&folder)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let folder = open(&folder);
        for place in WeightLayout::new(folder.spec(), WeightFormat::F32).tensors() {
            let expected: Vec<f32> = match tensors.tensor(&place.role.name()).unwrap() {
                view if stored_type == StoredType::F32 => view
                    .data()
                    .chunks(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                view => view
                    .data()
                    .chunks(2)
                    .map(|b| match stored_type {
                        StoredType::F16 => half::f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
                        _ => half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32(),
                    })
                    .collect(),
            };
            // In two uneven parts.
            let mut values = vec![f32::NAN; expected.len()];
            let (first, second) = values.split_at_mut(7);
            folder.read_f32(place.role, 0..7, first);
            folder.read_f32(place.role, 7..expected.len(), second);
            assert_eq!(values, expected, "{place:?}");
        }
    }
}

#[test]
fn folders_written_by_the_reference_implementation_open() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/families");
    let mut n_opened = 0;
    for entry in fs::read_dir(families).unwrap() {
        let path = entry.unwrap().path();
        let folder = ModelFolder::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let mut values = vec![0.0; folder.spec().hidden_width];
        folder.read_f32(TensorRole::FinalNorm, 0..values.len(), &mut values);
        assert!(values.iter().any(|&value| value != 0.0), "{}", path.display());
        n_opened += 1;
    }
    assert!(n_opened >= 6);
}

#[test]
fn tensors_that_the_model_does_not_use_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let mut tied = config();
    tied["tie_word_embeddings"] = json!(true);
    write(&tied, folder.path(), in_one_file(StoredType::Bf16));
    let n_stored_bytes = open(&folder).n_stored_bytes();
    rewrite(&weights(&folder), |tensors| {
        let table = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), table);
        let frequencies = (Dtype::I64, vec![3], vec![0; 24]);
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), frequencies);
    });
    assert_eq!(open(&folder).n_stored_bytes(), n_stored_bytes);
}

#[test]
fn what_is_not_there_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = failure(&empty);
    assert!(matches!(&error, ModelError::Read { path, .. } if path.ends_with("config.json")));

    let without_weights = folder();
    fs::remove_file(weights(&without_weights)).unwrap();
    assert!(matches!(failure(&without_weights), ModelError::NoWeights { .. }));

    let without_shard = sharded();
    fs::remove_file(without_shard.path().join("model-00003-of-00005.safetensors")).unwrap();
    let error = failure(&without_shard);
    assert!(matches!(error, ModelError::MissingShard { .. }), "{error}");
    assert!(error.to_string().contains("model-00003-of-00005.safetensors"), "{error}");

    let without_tensor = folder();
    let name = "model.layers.1.self_attn.k_norm.weight";
    rewrite(&weights(&without_tensor), |tensors| drop(tensors.remove(name)));
    let error = failure(&without_tensor);
    assert!(
        matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == name),
        "{error}"
    );
}

#[test]
fn an_index_that_lies_is_caught() {
    let index = |folder: &TempDir| folder.path().join("model.safetensors.index.json");
    let change = |change: &dyn Fn(&mut Value)| {
        let folder = sharded();
        let mut value = serde_json::from_slice(&fs::read(index(&folder)).unwrap()).unwrap();
        change(&mut value);
        fs::write(index(&folder), value.to_string()).unwrap();
        failure(&folder)
    };
    let norm = "model.norm.weight";
    let error = change(&|value| drop(value["weight_map"].as_object_mut().unwrap().remove(norm)));
    assert!(
        matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == norm),
        "{error}"
    );
    let error =
        change(&|value| value["weight_map"][norm] = json!("model-00001-of-00005.safetensors"));
    assert!(
        matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == norm),
        "{error}"
    );
    for outside in ["../model.safetensors", "/etc/passwd", "..", ""] {
        let error = change(&|value| value["weight_map"][norm] = json!(outside));
        assert!(matches!(error, ModelError::BadValue { .. }), "{outside}: {error}");
    }
    assert!(matches!(change(&|value| *value = json!({})), ModelError::Json { .. }));
    assert!(matches!(change(&|value| value["weight_map"] = json!(4)), ModelError::Json { .. }));
}

#[test]
fn a_file_that_is_cut_off_says_how_much_is_missing() {
    let whole = fs::read(weights(&folder())).unwrap();
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for (kept, expected) in [
        (whole.len() - 1, whole.len()),
        (header_end, whole.len()),
        (header_end - 1, header_end),
        (8, header_end),
        (5, 8),
        (0, 8),
    ] {
        let folder = folder();
        fs::write(weights(&folder), &whole[..kept]).unwrap();
        let error = failure(&folder);
        let ModelError::Truncated { path, expected_bytes, found_bytes } = &error else {
            panic!("{kept}: {error}")
        };
        assert_eq!(path, &weights(&folder));
        assert_eq!((*expected_bytes, *found_bytes), (expected as u64, kept as u64));
    }
}

#[test]
fn a_header_that_lies_is_caught() {
    let tensor = |shape: &str, offsets: &str| {
        format!(
            r#"{{"model.norm.weight":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#
        )
    };
    let longer_than_said = with_header(&tensor("[48]", "[0,192]"), 193);
    let far_too_long = [u64::MAX.to_le_bytes().to_vec(), vec![b' '; 64]].concat();
    for bytes in [
        far_too_long,
        longer_than_said,
        with_header("", 0),
        with_header("not JSON", 0),
        with_header("[1, 2]", 0),
        with_header("{\"\u{fffd}", 0),
        with_header(&tensor("[48]", "[0,191]"), 191),
        with_header(&tensor("[48]", "[192,0]"), 192),
        with_header(&tensor("[48]", "[8,200]"), 200),
        with_header(&tensor("[-48]", "[0,192]"), 192),
        with_header(&tensor("[18446744073709551615,2]", "[0,192]"), 192),
        with_header(&tensor("[48]", "[0,192]").replace("F32", "F31"), 192),
    ] {
        let folder = folder();
        fs::write(weights(&folder), &bytes).unwrap();
        let error = failure(&folder);
        let shown = String::from_utf8_lossy(&bytes[8..]);
        assert!(matches!(error, ModelError::BadHeader { .. }), "{shown}: {error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn a_tensor_of_another_shape_or_type_is_named() {
    let name = "model.layers.0.mlp.down_proj.weight";
    let wrong_shape = folder();
    rewrite(&weights(&wrong_shape), |tensors| {
        tensors.get_mut(name).unwrap().1 = vec![80, 48];
    });
    let error = failure(&wrong_shape);
    let ModelError::WrongShape { tensor, expected, found, .. } = &error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), &expected[..], &found[..]), (name, &[48, 80][..], &[80, 48][..]));

    let wrong_type = folder();
    rewrite(&weights(&wrong_type), |tensors| {
        tensors.insert(name.into(), (Dtype::U8, vec![48, 80], vec![0; 48 * 80]));
    });
    let error = failure(&wrong_type);
    let ModelError::UnsupportedDtype { tensor, found, .. } = &error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), found.as_str()), (name, "U8"));
}

#[test]
fn the_identity_follows_the_weights() {
    let folder = folder();
    let before = open(&folder).identity().to_owned();
    assert_eq!(open(&folder).identity(), before);

    let modified = fs::metadata(weights(&folder)).unwrap().modified().unwrap();
    write(&config(), folder.path(), RandomModel { seed: 2, ..in_one_file(StoredType::Bf16) });
    // Even where a copy has kept the time of the file it replaces.
    fs::File::options().write(true).open(weights(&folder)).unwrap().set_modified(modified).unwrap();
    assert_ne!(open(&folder).identity(), before);
}
