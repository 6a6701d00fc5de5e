use std::fs;

use super::*;
use crate::{
    Cpu, DeviceProfile,
    testing::{Random, fetch, on_every_device, place},
};

const N: usize = 3 * 4096;

fn cpu() -> Cpu {
    Cpu::new(DeviceProfile::native_cpu()).unwrap()
}

fn bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.below(256) as u8).collect()
}

/// Runs `body` with a store of each kind.
fn in_every_store<D: Paging>(device: &mut D, body: impl Fn(&mut D, StoreId)) {
    let folder = tempfile::tempdir().unwrap();
    let store = device.host_store(N).unwrap();
    body(device, store);
    let file = PageFile::create(&folder.path().join("pages"), N as u64).unwrap();
    let store = device.file_store(file);
    body(device, store);
}

fn pages_come_back_as_they_went(device: &mut impl Paging) {
    in_every_store(device, |device, store| {
        let before = device.transferred();
        let page = bytes(1, 4096);
        let slice = place(device, &page);
        let there = StorePlace { store, offset: 4096 };
        let saved = device.save(slice, there).unwrap();
        device.wait(saved).unwrap();
        device.clear(slice);
        let loaded = device.load(there, slice).unwrap();
        device.wait(loaded).unwrap();
        assert_eq!(fetch(device, slice), page);
        let expected = Transferred { to_device: 4096, from_device: 4096 };
        assert_eq!(device.transferred() - before, expected);
        // What no page was saved to is zero.
        let mut rest = vec![1; 4096];
        device.read_store(StorePlace { store, offset: 8192 }, &mut rest).unwrap();
        assert_eq!(rest, [0; 4096]);
    });
}

fn transfers_happen_in_the_order_they_were_asked_for(device: &mut impl Paging) {
    in_every_store(device, |device, store| {
        let (first, second) = (bytes(1, 4096), bytes(2, 4096));
        let at = |offset| StorePlace { store, offset };
        device.write_store(at(4096), &second).unwrap();
        let slice = place(device, &first);
        // Saved and replaced without waiting in between, many times over.
        for _ in 0..50 {
            device.save(slice, at(0)).unwrap();
            device.load(at(4096), slice).unwrap();
            device.save(slice, at(8192)).unwrap();
            let back = device.load(at(0), slice).unwrap();
            device.wait(back).unwrap();
            assert_eq!(fetch(device, slice), first);
            let mut copy = vec![0; 4096];
            device.read_store(at(8192), &mut copy).unwrap();
            assert_eq!(copy, second);
        }
    });
}

on_every_device! {
    pages_come_back_as_they_went,
    transfers_happen_in_the_order_they_were_asked_for,
}

#[test]
#[should_panic(expected = "while a transfer")]
fn an_operation_on_a_page_under_way_to_a_card_is_refused() {
    let mut device = crate::Cuda::simulated(crate::Compute::F32).unwrap();
    let store = device.host_store(N).unwrap();
    let slice = place(&mut device, &bytes(1, 4096));
    device.load(StorePlace { store, offset: 0 }, slice).unwrap();
    device.clear(slice.slice(100..200));
}

/// Whatever a card that fails is asked for then, nothing panics, nothing is done, and the first failure
/// is told.
#[test]
fn a_card_that_failed_does_nothing_more() {
    use crate::rows::Rows;
    crate::cuda::fail_next_after(1);
    let mut device = crate::Cuda::simulated(crate::Compute::F32).unwrap();
    let store = device.host_store(N).unwrap();
    let (x, y) = (place(&mut device, &[1.0_f32; 8]), place(&mut device, &[2.0_f32; 8]));
    device.add(x, y);
    assert!(device.check().is_ok());
    assert_eq!(fetch(&device, y), [3.0; 8]);
    device.add(x, y);
    let first = device.check().unwrap_err().to_string();
    assert!(first.contains("resume"), "{first}");
    device.add(x, y);
    device.clear(y);
    assert_eq!(fetch(&device, y), [0.0; 8]);
    let slice = place(&mut device, &bytes(1, 4096));
    assert!(device.save(slice, StorePlace { store, offset: 0 }).is_err());
    assert!(device.read_store(StorePlace { store, offset: 0 }, &mut [0; 8]).is_err());
    assert_eq!(device.check().unwrap_err().to_string(), first);
}

#[test]
#[should_panic(expected = "while a transfer")]
fn an_operation_on_a_page_under_way_is_refused() {
    let mut device = cpu();
    let store = device.host_store(N).unwrap();
    let slice = place(&mut device, &bytes(1, 4096));
    device.load(StorePlace { store, offset: 0 }, slice).unwrap();
    device.clear(slice.slice(100..200));
}

#[test]
fn a_page_that_is_saved_may_be_read_meanwhile() {
    let mut device = cpu();
    let store = device.host_store(N).unwrap();
    let page = bytes(1, 4096);
    let slice = place(&mut device, &page);
    device.save(slice, StorePlace { store, offset: 0 }).unwrap();
    assert_eq!(fetch(&device, slice), page);
}

#[test]
fn a_device_may_go_while_transfers_wait() {
    let mut device = cpu();
    let store = device.host_store(N).unwrap();
    let slice = place(&mut device, &bytes(1, 4096));
    for _ in 0..100 {
        device.load(StorePlace { store, offset: 0 }, slice).unwrap();
    }
}

#[test]
fn a_page_file_leaves_with_its_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let mut device = cpu();
    device.file_store(PageFile::create(&path, N as u64).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), N as u64);
    drop(device);
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_cut_short_is_an_error_and_stays_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let mut device = cpu();
    let store = device.file_store(PageFile::create(&path, N as u64).unwrap());
    assert!(device.check_stores().is_ok());
    let slice = place(&mut device, &bytes(1, 4096));
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let error = device.check_stores().unwrap_err();
    assert!(error.to_string().contains("cut short"), "{error}");
    let loaded = device.load(StorePlace { store, offset: 4096 }, slice).unwrap();
    let error = device.wait(loaded).unwrap_err().to_string();
    assert!(error.contains("pages") && error.contains("resume"), "{error}");
    // Nothing is saved over good bytes by a device that has lost others.
    let saved = device.save(slice, StorePlace { store, offset: 0 }).unwrap();
    assert!(device.wait(saved).is_err());
}

/// Where the file system reserves space, as the usual ones of Linux do.
#[test]
#[cfg(target_os = "linux")]
fn a_hole_that_a_later_page_hides_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let mut device = cpu();
    let store = device.file_store(PageFile::create(&path, N as u64).unwrap());
    let slice = place(&mut device, &bytes(1, 4096));
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    let saved = device.save(slice, StorePlace { store, offset: 8192 }).unwrap();
    device.wait(saved).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), N as u64);
    let error = device.check_stores().unwrap_err().to_string();
    assert!(error.contains("cut short") && error.contains("resume"), "{error}");
}

#[test]
#[cfg(unix)]
fn a_file_that_is_removed_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let mut device = cpu();
    device.file_store(PageFile::create(&path, N as u64).unwrap());
    fs::remove_file(&path).unwrap();
    let error = device.check_stores().unwrap_err();
    assert!(error.to_string().contains("removed"), "{error}");
}

#[test]
fn a_file_that_finds_no_room_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let error = PageFile::create(&path, 1 << 60).unwrap_err();
    assert!(matches!(error, PageError::NoSpace { .. }), "{error}");
    assert!(!path.exists());
    let error = PageFile::create(&path.join("no").join("folder"), 10).unwrap_err();
    assert!(matches!(error, PageError::Create { .. }), "{error}");
}
