//! Compiles the kernels of a card with NVRTC and writes `src/cuda/compiled.bin` and `simulated.bin`; started by
//! `cargo xtask kernels`, which sees to it that the compiler is found.
//!
//! `compile_kernels [--only-ptx] [--verbose]`: for development the PTX alone, which is what the
//! simulator runs; what each kernel takes of registers and memory.

use std::{
    collections::BTreeMap,
    error::Error,
    ffi::{CStr, CString, c_char},
    fs,
    process::ExitCode,
    ptr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use cudarc::nvrtc::{result, sys};
use nibble_kernels::cuda::{
    code::{Module, Target, write_archive},
    sources::{PTX_VERSION, Source, Sources, compiler_version, crate_folder, options},
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    match compile_all(has("--only-ptx"), has("--verbose")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compile_all(only_ptx: bool, verbose: bool) -> Result<(), Box<dyn Error>> {
    check_version()?;
    let sources = Sources::read()?;
    let shipped = if only_ptx { &Target::ALL[..1] } else { &Target::ALL[..] };
    let targets = || shipped.iter().copied().chain([Target::Ptx90]);
    let work: Vec<(&Source, Target)> =
        sources.units().iter().flat_map(|unit| targets().map(move |t| (unit, t))).collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let compile_some = || -> Result<(), String> {
        while let Some(&(unit, target)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let Compiled { image, log } =
                compile(&sources, unit, target, verbose).map_err(|error| error.to_string())?;
            println!("{} for {target}: {:.2} s", unit.path, start.elapsed().as_secs_f64());
            if !log.trim().is_empty() {
                println!("{}", log.trim());
            }
            let mut done = done.lock().map_err(|error| error.to_string())?;
            done.insert((unit.name().to_owned(), target), image);
        }
        Ok(())
    };
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(compile_some)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err("a thread of the compiler failed".into()))
        })
    })?;
    let mut archive: BTreeMap<Target, Vec<Module>> = BTreeMap::new();
    let mut kernels = Vec::new();
    let done = done.into_inner().map_err(|error| error.to_string())?;
    // By name, PTX first, which tells the kernels' names; but for 9.0, which has more.
    let of_90: BTreeMap<String, Vec<String>> = done
        .iter()
        .filter(|((_, target), _)| *target == Target::Ptx90)
        .map(|((name, _), image)| (name.clone(), entries(&String::from_utf8_lossy(image))))
        .collect();
    for ((name, target), mut image) in done {
        if target == Target::Ptx {
            image = with_lower_version(image)?;
            kernels = entries(&String::from_utf8_lossy(&image));
        }
        // Of 9.0 what it alone has.
        if target == Target::Ptx90 && !String::from_utf8_lossy(&image).contains("wgmma.") {
            continue;
        }
        let kernels = match target {
            Target::Ptx90 | Target::Compute(90) => of_90.get(&name).cloned().unwrap_or_default(),
            _ => kernels.clone(),
        };
        archive.entry(target).or_default().push(Module { name, kernels, image });
    }
    let simulated = archive.split_off(&Target::Ptx90);
    for (name, archive) in [("compiled.bin", archive), ("simulated.bin", simulated)] {
        let bytes = write_archive(sources.hash(), &archive)?;
        let path = crate_folder().join("src").join("cuda").join(name);
        let unfinished = path.with_extension("tmp");
        fs::write(&unfinished, &bytes)?;
        fs::rename(&unfinished, &path)?;
        println!("{}: {:.2} MB", path.display(), bytes.len() as f64 / 1e6);
    }
    if only_ptx {
        println!("PTX alone: run this again without --only-ptx before it is committed");
    }
    Ok(())
}

/// The pinned compiler and no other: what it makes is committed.
fn check_version() -> Result<(), Box<dyn Error>> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are places for a number.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result()?;
    let found = format!("{major}.{minor}");
    if compiler_version().starts_with(&format!("{found}.")) {
        return Ok(());
    }
    Err(format!("NVRTC {found} was found, not {}", compiler_version()).into())
}

struct Compiled {
    image: Vec<u8>,
    log: String,
}

/// A program of the compiler, destroyed when it is dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created and is destroyed once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile(
    sources: &Sources,
    unit: &Source,
    target: Target,
    verbose: bool,
) -> Result<Compiled, Box<dyn Error>> {
    let text = CString::new(unit.text.as_str())?;
    let name = CString::new(unit.path.as_str())?;
    let headers = sources.headers().iter();
    let (texts, names): (Vec<CString>, Vec<CString>) = headers
        .map(|header| Ok((CString::new(&header.text[..])?, CString::new(&header.file_name[..])?)))
        .collect::<Result<Vec<_>, std::ffi::NulError>>()?
        .into_iter()
        .unzip();
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).collect()
    };
    let (text_pointers, name_pointers) = (pointers(&texts), pointers(&names));
    let mut program = ptr::null_mut();
    // SAFETY: every pointer is to a string that outlives the call, which copies what it keeps.
    unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            text.as_ptr(),
            name.as_ptr(),
            texts.len() as i32,
            text_pointers.as_ptr(),
            name_pointers.as_ptr(),
        )
    }
    .result()?;
    let program = Program(program);
    let mut options = options(target);
    if verbose && matches!(target, Target::Compute(_)) {
        options.push("--ptxas-options=-v".into());
    }
    // SAFETY: the program was created above.
    let compiled = unsafe { result::compile_program(program.0, &options) };
    // SAFETY: as above; the log ends with a zero.
    let log = unsafe { result::get_program_log(program.0) }?;
    // SAFETY: the compiler ends its log with a zero.
    let log = unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned();
    if compiled.is_err() {
        return Err(format!("{} for {target}:\n{log}", unit.path).into());
    }
    let image = match target {
        // SAFETY: the program was compiled.
        Target::Ptx | Target::Ptx90 => unsafe { result::get_ptx(program.0) }?
            .into_iter()
            .map(|byte| byte as u8)
            .take_while(|&byte| byte != 0)
            .collect(),
        Target::Compute(_) => {
            let mut n_bytes = 0;
            // SAFETY: the program was compiled, and `n_bytes` is a place for a number.
            unsafe { sys::nvrtcGetCUBINSize(program.0, &mut n_bytes) }.result()?;
            let mut image = vec![0_u8; n_bytes];
            // SAFETY: `image` has room for as many bytes as were said.
            unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) }.result()?;
            image
        }
    };
    Ok(Compiled { image, log })
}

/// The names of the kernels in a module's text.
fn entries(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.split(".entry ").nth(1));
    lines.map(|rest| rest.split('(').next().unwrap_or(rest).trim().to_owned()).collect()
}

/// PTX that says that it is of [`PTX_VERSION`], and has nothing that is later: a hint that names the bytes of a
/// wide load that are used would be ignored by a driver that does not know it, and refused by one that does.
fn with_lower_version(image: Vec<u8>) -> Result<Vec<u8>, Box<dyn Error>> {
    let text = String::from_utf8(image)?;
    let line =
        text.lines().find(|line| line.starts_with(".version ")).ok_or("PTX without a version")?;
    let text = text.replacen(line, &format!(".version {PTX_VERSION}"), 1);
    let is_later = |line: &&str| line.trim_start().starts_with(".pragma \"used_bytes_mask");
    Ok(text.split_inclusive('\n').filter(|line| !is_later(line)).collect::<String>().into_bytes())
}
