use std::ops::ControlFlow;

use half::bf16;
use nibble_kernels::nf4::{self, Nf4Layout};
use sha2::{Digest, Sha256};

use super::*;
use crate::{
    model::ModelError,
    weights::{
        layout::{EmbeddingFormat, TensorParts, WeightFormat, WeightLayout},
        load::{LoadProgress, load, unwatched},
    },
};

/// The image that loading makes, checking that its pieces come in order.
fn image(folder: &ModelFolder, layout: &WeightLayout) -> Vec<u8> {
    let mut image = vec![0; layout.n_bytes()];
    let mut end = 0;
    load(folder, layout, &mut unwatched, |offset, bytes| {
        assert!(offset >= end);
        end = offset + bytes.len();
        image[offset..end].copy_from_slice(bytes);
        Ok(())
    })
    .unwrap();
    image
}

/// The image made the plain way, each tensor converted whole.
fn expected_image(folder: &ModelFolder, layout: &WeightLayout) -> Vec<u8> {
    let mut image = vec![0; layout.n_bytes()];
    let mut put = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    for place in layout.tensors() {
        let mut values = vec![0.0; place.shape.n_elements()];
        folder.read_f32(place.role, 0..values.len(), &mut values);
        match place.parts {
            TensorParts::F32 { offset } => put(offset, bytemuck::cast_slice(&values)),
            TensorParts::Bf16 { offset } => {
                let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
                put(offset, bytemuck::cast_slice(&values));
            }
            TensorParts::Nf4 { codes, absmax_codes, absmax_scales, absmax_offset } => {
                let layout = Nf4Layout { n_elements: values.len() };
                let mut packed = vec![0; layout.n_codes()];
                let mut absmax = vec![0.0; layout.n_blocks()];
                nf4::quantize(&values, &mut packed, &mut absmax);
                put(codes, &packed);
                let offset = nf4::absmax_offset(&absmax);
                let mut coded = vec![0; layout.n_blocks()];
                let mut scales = vec![0.0; layout.n_groups()];
                nf4::quantize_absmax(&absmax, offset, &mut coded, &mut scales);
                put(absmax_codes, &coded);
                put(absmax_scales, bytemuck::cast_slice(&scales));
                put(absmax_offset, &offset.to_ne_bytes());
            }
        }
    }
    image
}

const FORMATS: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Nf4];

#[test]
fn loading_equals_converting_each_tensor_whole() {
    for stored_type in STORED_TYPES {
        let folder = tempfile::tempdir().unwrap();
        write(&config(), folder.path(), in_one_file(stored_type));
        let folder = open(&folder);
        for format in FORMATS {
            for embedding in [EmbeddingFormat::F32, EmbeddingFormat::Bf16] {
                let layout = WeightLayout::with_embedding_format(folder.spec(), format, embedding);
                let same = image(&folder, &layout) == expected_image(&folder, &layout);
                assert!(same, "{stored_type:?} to {format:?} with {embedding:?}");
            }
        }
    }
}

#[test]
fn tensors_longer_than_a_chunk_have_no_seams() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    // 1089 · 1001 numbers: over one chunk, and no multiple of a block.
    for (key, value) in
        [("hidden_size", 1089), ("intermediate_size", 1001), ("num_hidden_layers", 1)]
    {
        config[key] = json!(value);
    }
    write(&config, folder.path(), in_one_file(StoredType::F16));
    let folder = open(&folder);
    for format in FORMATS {
        let layout = WeightLayout::new(folder.spec(), format);
        assert!(image(&folder, &layout) == expected_image(&folder, &layout), "{format:?}");
    }
}

#[test]
fn quantising_while_loading_gives_the_bytes_of_bitsandbytes() {
    let hexadecimal = |bytes: &[u8]| -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let text = std::fs::read_to_string(golden.join("trajectories.json")).unwrap();
    let golden_forms: Value = serde_json::from_str(&text).unwrap();
    let forms = &golden_forms["methods"]["qlora"]["nf4_forms"];

    let folder = ModelFolder::open(&golden.join("families/llama")).unwrap();
    let layout = WeightLayout::new(folder.spec(), WeightFormat::Nf4);
    let image = image(&folder, &layout);
    let mut n_compared = 0;
    for place in layout.tensors() {
        let TensorParts::Nf4 { codes, absmax_codes, absmax_scales, absmax_offset } = place.parts
        else {
            continue;
        };
        let n = Nf4Layout { n_elements: place.shape.n_elements() };
        let codes = &image[codes..codes + n.n_codes()];
        let absmax_codes = &image[absmax_codes..absmax_codes + n.n_blocks()];
        let floats = |offset: usize, n: usize| -> Vec<f32> {
            bytemuck::pod_collect_to_vec(&image[offset..offset + n * size_of::<f32>()])
        };
        let scales = floats(absmax_scales, n.n_groups());
        let offset = floats(absmax_offset, 1)[0];
        let mut values = vec![0.0; n.n_elements];
        nf4::dequantize(codes, absmax_codes, &scales, offset, &mut values);

        let name = place.role.name();
        let form = &forms[&name];
        assert_eq!(f64::from(offset), form["absmax_offset"].as_f64().unwrap(), "{name}");
        for (part, bytes) in [
            ("codes_sha256", codes),
            ("absmax_codes_sha256", absmax_codes),
            ("dequantized_sha256", bytemuck::cast_slice(&values)),
        ] {
            assert_eq!(hexadecimal(bytes), form[part].as_str().unwrap(), "{part} of {name}");
        }
        n_compared += 1;
    }
    assert_eq!(n_compared, forms.as_object().unwrap().len());
}

#[test]
fn progress_rises_to_the_total() {
    let folder = folder();
    let folder = open(&folder);
    let layout = WeightLayout::new(folder.spec(), WeightFormat::Nf4);
    let mut last = LoadProgress { done_bytes: 0, total_bytes: folder.n_stored_bytes() };
    let mut watch = |progress: LoadProgress| {
        assert!(progress.done_bytes > last.done_bytes);
        last = progress;
        ControlFlow::Continue(())
    };
    load(&folder, &layout, &mut watch, |_, _| Ok(())).unwrap();
    assert_eq!(last.done_bytes, last.total_bytes);
}

#[test]
fn cancelling_ends_loading_at_once() {
    let folder = folder();
    let folder = open(&folder);
    let layout = WeightLayout::new(folder.spec(), WeightFormat::Nf4);
    let mut n_calls = 0;
    let mut cancel = |_| {
        n_calls += 1;
        ControlFlow::Break(())
    };
    let result = load(&folder, &layout, &mut cancel, |_, _| Ok(()));
    assert!(matches!(result, Err(ModelError::Cancelled)));
    assert_eq!(n_calls, 1);
}

#[cfg(target_os = "linux")]
#[test]
fn reading_a_file_leaves_none_of_it_resident() {
    /// Bytes of the file at `path` that count as this process's memory.
    fn resident_bytes(path: &Path) -> usize {
        let name = path.to_string_lossy();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_ours = false;
        let mut kilobytes = 0;
        for line in maps.lines() {
            if line.split_whitespace().next().is_some_and(|first| !first.ends_with(':')) {
                is_ours = line.ends_with(name.as_ref());
            } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| is_ours) {
                kilobytes += rest.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
            }
        }
        kilobytes * 1024
    }
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config["vocab_size"] = json!(100_000);
    write(&config, folder.path(), in_one_file(StoredType::F32));
    let path = folder.path().join("model.safetensors");
    let folder = open(&folder);
    let layout = WeightLayout::new(folder.spec(), WeightFormat::Nf4);
    let mut most = 0;
    load(&folder, &layout, &mut unwatched, |_, _| {
        most = most.max(resident_bytes(&path));
        Ok(())
    })
    .unwrap();
    // A page or two at each tensor's ends, and what the system reads around a fault.
    assert!(most < folder.n_stored_bytes() / 10, "{most} of {}", folder.n_stored_bytes());
}
