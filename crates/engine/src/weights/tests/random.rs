use std::fs;

use super::*;
use crate::weights::layout::{LayerTensor, TensorRole, WeightFormat, WeightLayout};

/// All numbers of the folder, tensor by tensor.
fn numbers(folder: &TempDir) -> Vec<(TensorRole, Vec<f32>)> {
    let folder = open(folder);
    WeightLayout::new(folder.spec(), WeightFormat::F32)
        .tensors()
        .map(|place| {
            let mut values = vec![0.0; place.shape.n_elements()];
            folder.read_f32(place.role, 0..values.len(), &mut values);
            (place.role, values)
        })
        .collect()
}

#[test]
fn the_seed_decides_every_number() {
    let with_seed = |seed| {
        let folder = tempfile::tempdir().unwrap();
        write(&config(), folder.path(), RandomModel { seed, ..in_one_file(StoredType::F32) });
        fs::read(folder.path().join("model.safetensors")).unwrap()
    };
    assert_eq!(with_seed(5), with_seed(5));
    assert_ne!(with_seed(5), with_seed(6));
}

#[test]
fn shards_hold_the_same_numbers_as_one_file() {
    let sharded = tempfile::tempdir().unwrap();
    let model = RandomModel { max_shard_bytes: Some(20_000), ..in_one_file(StoredType::Bf16) };
    write(&config(), sharded.path(), model);
    assert!(sharded.path().join("model-00002-of-00005.safetensors").exists());
    assert_eq!(numbers(&sharded), numbers(&folder()));
}

#[test]
fn matrices_are_normal_norms_one_and_biases_zero() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config["hidden_size"] = json!(480);
    config["initializer_range"] = json!(0.05);
    write(&config, folder.path(), in_one_file(StoredType::F32));
    for (role, values) in numbers(&folder) {
        match role {
            TensorRole::Layer(_, LayerTensor::Bias(_)) => {
                assert!(values.iter().all(|&value| value == 0.0), "{role:?}");
            }
            _ if !role.is_matrix() => assert!(values.iter().all(|&value| value == 1.0), "{role:?}"),
            _ => {
                let n = values.len() as f64;
                let values = values.into_iter().map(|value| f64::from(value) / 0.05);
                let mean = values.clone().sum::<f64>() / n;
                let square = values.clone().map(|value| value * value).sum::<f64>() / n;
                let fourth = values.map(|value| value.powi(4)).sum::<f64>() / n;
                // Standard errors of a normal sample's mean, second and fourth moment; six of them
                // are exceeded once in 10^9.
                assert!(mean.abs() < 6.0 * (1.0 / n).sqrt(), "{role:?}: {mean}");
                assert!((square - 1.0).abs() < 6.0 * (2.0 / n).sqrt(), "{role:?}: {square}");
                assert!((fourth - 3.0).abs() < 6.0 * (96.0 / n).sqrt(), "{role:?}: {fourth}");
            }
        }
    }
}

#[test]
fn a_configuration_that_is_not_supported_writes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let config = json!({"model_type": "gpt2"});
    assert!(write_random_model(&config, &folder, in_one_file(StoredType::F32)).is_err());
    assert!(!folder.exists());
}
