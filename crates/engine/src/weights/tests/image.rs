use std::{
    fs,
    ops::ControlFlow,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::*;
use crate::{
    model::ModelError,
    weights::{
        image::{FOOTER_BYTES, cached_image, default_cache_folder},
        layout::{WeightFormat, WeightLayout},
        load::{LoadProgress, load, unwatched},
    },
};

fn nf4(folder: &ModelFolder) -> WeightLayout {
    WeightLayout::new(folder.spec(), WeightFormat::Nf4)
}

/// The image's path, and whether it had to be made.
fn cached(folder: &ModelFolder, layout: &WeightLayout, cache: &Path) -> (PathBuf, bool) {
    let mut was_made = false;
    let mut watch = |_: LoadProgress| {
        was_made = true;
        ControlFlow::Continue(())
    };
    let path = cached_image(folder, layout, cache, &mut watch).unwrap();
    (path, was_made)
}

/// What lies in the cache beside images and locks.
fn leftovers(cache: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cache.join("weights")) else { return Vec::new() };
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| !matches!(path.extension().unwrap().to_str(), Some("nibble" | "lock")))
        .collect()
}

#[test]
fn an_image_is_made_once_and_equals_what_loading_gives() {
    let folder = folder();
    let folder = open(&folder);
    let cache = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for format in [WeightFormat::Nf4, WeightFormat::Bf16, WeightFormat::F32] {
        let layout = WeightLayout::new(folder.spec(), format);
        let (path, was_made) = cached(&folder, &layout, cache.path());
        assert!(was_made);
        assert_eq!(cached(&folder, &layout, cache.path()), (path.clone(), false));

        let mut expected = vec![0; layout.n_bytes()];
        load(&folder, &layout, &mut unwatched, |offset, bytes| {
            expected[offset..offset + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        let found = fs::read(&path).unwrap();
        assert_eq!(found.len(), layout.n_bytes() + FOOTER_BYTES);
        assert!(found[..layout.n_bytes()] == expected);
        paths.push(path);
    }
    paths.dedup();
    assert_eq!(paths.len(), 3);
    assert!(leftovers(cache.path()).is_empty());
}

#[test]
fn other_weights_have_another_image() {
    let weights = folder();
    let cache = tempfile::tempdir().unwrap();
    let folder = open(&weights);
    let (first, _) = cached(&folder, &nf4(&folder), cache.path());
    // Windows does not write over a file that is mapped.
    drop(folder);
    write(&config(), weights.path(), RandomModel { seed: 2, ..in_one_file(StoredType::Bf16) });
    let folder = open(&weights);
    let (second, was_made) = cached(&folder, &nf4(&folder), cache.path());
    assert!(was_made);
    assert_ne!(first, second);
}

#[test]
fn a_damaged_image_is_made_again() {
    let folder = folder();
    let folder = open(&folder);
    let layout = nf4(&folder);
    let cache = tempfile::tempdir().unwrap();
    let (path, _) = cached(&folder, &layout, cache.path());
    let whole = fs::read(&path).unwrap();
    let zeroed = |range: std::ops::Range<usize>| {
        let mut bytes = whole.clone();
        bytes[range].fill(0);
        bytes
    };
    for damaged in [
        Vec::new(),
        whole[..10].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        [&whole[..], b" "].concat(),
        zeroed(0..4096),
        zeroed(layout.layer_offset(1)..layout.layer_offset(1) + 64),
        zeroed(layout.n_bytes()..whole.len()),
    ] {
        fs::write(&path, damaged).unwrap();
        assert!(cached(&folder, &layout, cache.path()).1);
        assert!(fs::read(&path).unwrap() == whole);
    }
}

#[test]
fn nothing_is_left_of_a_cancelled_or_abandoned_image() {
    let folder = folder();
    let folder = open(&folder);
    let layout = nf4(&folder);
    let cache = tempfile::tempdir().unwrap();
    let result = cached_image(&folder, &layout, cache.path(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(result, Err(ModelError::Cancelled)));
    assert!(leftovers(cache.path()).is_empty());

    // What a process that was killed leaves.
    let (path, _) = cached(&folder, &layout, cache.path());
    fs::write(path.with_extension("1.0.partial"), "abandoned").unwrap();
    fs::remove_file(&path).unwrap();
    assert!(cached(&folder, &layout, cache.path()).1);
    assert!(leftovers(cache.path()).is_empty());
}

#[test]
fn two_at_once_make_it_once() {
    let folder = folder();
    let cache = tempfile::tempdir().unwrap();
    let n_made = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let folder = open(&folder);
                let mut made = false;
                let mut watch = |progress: LoadProgress| {
                    // Who waits reports that nothing is done yet.
                    made |= progress.done_bytes > 0;
                    ControlFlow::Continue(())
                };
                cached_image(&folder, &nf4(&folder), cache.path(), &mut watch).unwrap();
                n_made.fetch_add(usize::from(made), Ordering::Relaxed);
            });
        }
    });
    assert_eq!(n_made.into_inner(), 1);
    assert!(leftovers(cache.path()).is_empty());
}

#[test]
fn waiting_for_another_process_can_be_cancelled() {
    let folder = folder();
    let folder = open(&folder);
    let cache = tempfile::tempdir().unwrap();
    let (path, _) = cached(&folder, &nf4(&folder), cache.path());
    fs::remove_file(&path).unwrap();
    let lock = fs::File::open(path.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let mut n_calls = 0;
    let mut cancel = |_| {
        n_calls += 1;
        if n_calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let result = cached_image(&folder, &nf4(&folder), cache.path(), &mut cancel);
    assert!(matches!(result, Err(ModelError::Cancelled)));
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let folder = folder();
    let folder = open(&folder);
    let parent = tempfile::tempdir().unwrap();
    let cache = parent.path().join("a file");
    fs::write(&cache, "").unwrap();
    let error = cached_image(&folder, &nf4(&folder), &cache, &mut unwatched).unwrap_err();
    assert!(matches!(error, ModelError::Write { .. }), "{error}");
    assert!(error.to_string().contains("a file"), "{error}");
}

/// Files with holes make a model that no disk has room for; elsewhere holes would be filled.
#[cfg(target_os = "linux")]
#[test]
fn no_room_on_the_disk_is_said_before_anything_is_written() {
    let weights = tempfile::tempdir().unwrap();
    let available_bytes = fs4::available_space(weights.path()).unwrap();
    let vocabulary = 1_u64 << 24;
    let hidden = (available_bytes / (vocabulary * 4) + 1).next_multiple_of(16);
    let mut config = config();
    config["hidden_size"] = json!(hidden);
    config["vocab_size"] = json!(vocabulary);
    config["num_hidden_layers"] = json!(1);
    config["tie_word_embeddings"] = json!(true);
    fs::write(weights.path().join("config.json"), config.to_string()).unwrap();

    let spec =
        crate::model::ModelSpec::from_config(&config, &weights.path().join("config.json")).unwrap();
    let layout = WeightLayout::new(&spec, WeightFormat::F32);
    let mut offset = 0;
    let header: serde_json::Map<String, Value> = layout
        .tensors()
        .map(|place| {
            let start = offset;
            offset += place.shape.n_elements() * 2;
            let shape = place.shape.to_vec();
            let info = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, offset]});
            (place.role.name(), info)
        })
        .collect();
    let header = serde_json::to_vec(&header).unwrap();
    let path = weights.path().join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + offset) as u64).unwrap();

    let folder = open(&weights);
    let cache = tempfile::tempdir().unwrap();
    let error = cached_image(&folder, &layout, cache.path(), &mut unwatched).unwrap_err();
    assert!(matches!(error, ModelError::NoSpace { .. }), "{error}");
    assert!(leftovers(cache.path()).is_empty());
}

#[test]
fn the_default_cache_is_a_folder_of_its_own() {
    assert!(default_cache_folder().unwrap().components().count() > 1);
}
