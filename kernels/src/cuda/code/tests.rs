use std::collections::BTreeMap;

use super::*;
use crate::cuda::sources::{Sources, crate_folder};

/// A file as it is now, which a build of the compiler does not hold.
fn committed(name: &str) -> CodeArchive {
    let path = crate_folder().join("src").join("cuda").join(name);
    CodeArchive::from_bytes(std::fs::read(path).unwrap())
}

#[test]
fn the_archive_holds_what_the_sources_compile_to() {
    let sources = Sources::read().unwrap();
    let names: Vec<_> = sources.units().iter().map(|unit| unit.name()).collect();
    for (name, targets) in [("compiled.bin", &Target::ALL[..]), ("simulated.bin", &[Target::Ptx90])]
    {
        let advice = format!("kernels/src/cuda/{name} is stale: run `cargo xtask kernels`");
        let archive = committed(name);
        assert!(archive.source_hash() == Ok(sources.hash()), "{advice}");
        assert_eq!(archive.targets().unwrap(), targets, "{advice}");
        for &target in targets {
            let modules =
                archive.modules(target).unwrap_or_else(|error| panic!("{advice} ({error})"));
            let found: Vec<_> = modules.iter().map(|module| &module.name[..]).collect();
            match target {
                Target::Ptx90 => assert!(found == ["ceilings", "linear"], "{found:?}"),
                _ => assert_eq!(found, names),
            }
            for module in modules {
                let is_machine_code = matches!(target, Target::Compute(_));
                let begins: &[u8] = if is_machine_code { b"\x7fELF" } else { b"//" };
                assert!(module.image.starts_with(begins), "{} for {target}", module.name);
                assert!(!module.kernels.is_empty(), "{} for {target}", module.name);
            }
        }
    }
}

/// A driver that knows a hint refuses it in text of a version before it.
#[test]
fn text_has_no_hints_later_than_its_version() {
    let mut n_hints = 0;
    for module in committed("compiled.bin").modules(Target::Ptx).unwrap() {
        let text = String::from_utf8(module.image).unwrap();
        for hint in text.lines().filter(|line| line.contains(".pragma")) {
            assert_eq!(hint.trim(), ".pragma \"nounroll\";", "{}", module.name);
            n_hints += 1;
        }
    }
    assert!(n_hints > 0);
}

#[test]
#[cfg(not(feature = "compiler"))]
fn the_program_holds_the_file() {
    assert_eq!(CodeArchive::embedded().bytes, committed("compiled.bin").bytes);
    assert_eq!(CodeArchive::simulated().bytes, committed("simulated.bin").bytes);
}

#[test]
fn a_card_gets_the_newest_code_that_it_can_run() {
    let cases = [
        ((7, 5), None),
        ((8, 0), Some(Target::Compute(80))),
        ((8, 6), Some(Target::Compute(86))),
        ((8, 7), Some(Target::Ptx)),
        ((8, 9), Some(Target::Compute(89))),
        ((9, 0), Some(Target::Compute(90))),
        ((9, 1), Some(Target::Ptx)),
        ((10, 0), Some(Target::Ptx)),
        ((12, 0), Some(Target::Compute(120))),
        ((12, 1), Some(Target::Compute(120))),
        ((13, 0), Some(Target::Ptx)),
    ];
    for ((major, minor), expected) in cases {
        assert_eq!(Target::for_capability(major, minor), expected, "{major}.{minor}");
    }
}

fn example() -> (BTreeMap<Target, Vec<Module>>, Vec<u8>) {
    let module = |name: &str, n_kernels: usize, n_bytes: usize| Module {
        name: name.into(),
        kernels: (0..n_kernels).map(|i| format!("{name}_{i}")).collect(),
        image: (0..n_bytes).map(|i| (i * i / 7) as u8).collect(),
    };
    let targets = BTreeMap::from([
        (Target::Ptx, vec![module("a", 1, 300), module("bc", 3, 0)]),
        (Target::Compute(86), vec![module("a", 1, 70)]),
        (Target::Compute(120), vec![]),
    ]);
    let bytes = write_archive([7; HASH_BYTES], &targets).unwrap();
    (targets, bytes)
}

#[test]
fn an_archive_comes_back_as_it_was_written() {
    let (targets, bytes) = example();
    assert_eq!(bytes, example().1);
    let archive = CodeArchive::from_bytes(bytes);
    assert_eq!(archive.source_hash(), Ok([7; HASH_BYTES]));
    assert_eq!(archive.targets().unwrap(), targets.keys().copied().collect::<Vec<_>>());
    for (target, modules) in targets {
        assert_eq!(archive.modules(target), Ok(modules));
    }
    let target = Target::Compute(90);
    assert_eq!(archive.modules(target), Err(CodeError::MissingTarget { target }));
}

#[test]
fn damaged_bytes_are_errors_and_never_other_code() {
    let (targets, bytes) = example();
    let read = |bytes: &[u8]| -> Result<Vec<_>, CodeError> {
        let archive = CodeArchive::from_bytes(bytes.to_vec());
        targets.keys().map(|&target| archive.modules(target)).collect()
    };
    let whole = read(&bytes).unwrap();
    for n in 0..bytes.len() {
        assert!(read(&bytes[..n]).is_err(), "{n} bytes");
    }
    let hash = MAGIC.len() + 4..MAGIC.len() + 4 + HASH_BYTES;
    for at in (0..bytes.len()).filter(|at| !hash.contains(at)) {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            // Some bits of a stream mean nothing.
            assert!(read(&damaged).is_ok_and(|read| read == whole) || read(&damaged).is_err());
        }
    }
    assert!(read(&[&bytes[..], &[0]].concat()).is_err());
}
