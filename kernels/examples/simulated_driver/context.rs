//! A context: memory, kernels, and streams of what was asked for and is not done yet.

use std::{
    collections::{BTreeMap, VecDeque},
    ptr,
    sync::Arc,
};

use cudarc::driver::sys::{CUevent, CUfunction, CUmodule, CUresult, CUstream};
use nibble_simulator::{Kernel, Launch, Machine, Module};

use crate::{Answer, Kind, Settings, number};

#[derive(Default)]
pub struct Context {
    /// Among the driver's.
    pub number: usize,
    pub machine: Machine,
    pub streams: Vec<Stream>,
    /// How far which stream had been asked to go when each was recorded.
    pub events: Vec<Option<(usize, u64)>>,
    pub modules: Vec<Module>,
    pub functions: Vec<Function>,
    /// Lengths by address, on the card and in the host's pinned memory.
    pub allocated: BTreeMap<u64, usize>,
    pub pinned: BTreeMap<usize, Vec<u8>>,
    /// Why nothing is done any more.
    pub failed: Option<CUresult>,
}

pub struct Function {
    pub kernel: Arc<Kernel>,
    /// Beside what it declares itself.
    pub most_shared_bytes: usize,
}

#[derive(Default)]
pub struct Stream {
    pub n_done: u64,
    n_copies: u64,
    /// Whether it was ever asked for more than copies.
    works: bool,
    pub asked: VecDeque<Work>,
}

impl Stream {
    pub fn end(&self) -> u64 {
        self.n_done + self.asked.len() as u64
    }
}

pub enum Work {
    Kernel {
        function: usize,
        launch: Launch,
        arguments: Vec<u8>,
    },
    Clear {
        target: u64,
        byte: u8,
        n_bytes: usize,
    },
    Copy {
        source: u64,
        target: u64,
        n_bytes: usize,
    },
    /// Out of pinned memory, when it is done.
    Load {
        source: usize,
        target: u64,
        n_bytes: usize,
    },
    /// What was read of other memory at once.
    Write {
        bytes: Vec<u8>,
        target: u64,
    },
    Save {
        source: u64,
        target: usize,
        n_bytes: usize,
    },
    Wait {
        stream: usize,
        position: u64,
    },
}

impl Work {
    /// The pinned memory that it uses.
    pub fn pinned(&self) -> Option<usize> {
        match *self {
            Self::Load { source: host, .. } | Self::Save { target: host, .. } => Some(host),
            _ => None,
        }
    }
}

impl Context {
    /// The numbers that handles stand for.
    pub fn stream(&self, handle: CUstream) -> Answer<usize> {
        number(handle, (Kind::Stream, self.number), self.streams.len())
    }

    pub fn event(&self, handle: CUevent) -> Answer<usize> {
        number(handle, (Kind::Event, self.number), self.events.len())
    }

    pub fn module(&self, handle: CUmodule) -> Answer<usize> {
        number(handle, (Kind::Module, self.number), self.modules.len())
    }

    pub fn function(&self, handle: CUfunction) -> Answer<usize> {
        number(handle, (Kind::Function, self.number), self.functions.len())
    }

    /// Lets `stream` go on to `end`.
    pub fn run(&mut self, stream: usize, end: u64, settings: &Settings) -> Answer {
        while self.streams[stream].n_done < end {
            let Some(work) = self.streams[stream].asked.pop_front() else { break };
            self.streams[stream].n_done += 1;
            if let Work::Wait { stream, position } = work {
                self.run(stream, position, settings)?;
            } else if let Err(error) = self.carry_out(work, settings) {
                self.failed = Some(error);
                return Err(error);
            }
        }
        Ok(())
    }

    fn carry_out(&self, work: Work, settings: &Settings) -> Answer {
        let done = match work {
            Work::Kernel { function, launch, arguments } => {
                if settings.fails_with.as_ref().is_some_and(|path| path.exists()) {
                    return Err(CUresult::CUDA_ERROR_LAUNCH_FAILED);
                }
                let kernel = &self.functions[function].kernel;
                self.machine.launch(kernel, launch, &arguments).map(drop)
            }
            Work::Clear { target, byte, n_bytes } => {
                self.machine.write(target, &vec![byte; n_bytes])
            }
            Work::Copy { source, target, n_bytes } => {
                let mut bytes = vec![0; n_bytes];
                let read = self.machine.read(source, &mut bytes);
                read.and_then(|()| self.machine.write(target, &bytes))
            }
            Work::Load { source, target, n_bytes } => {
                // Pinned memory is not freed while something that is asked for uses it.
                let source = ptr::with_exposed_provenance::<u8>(source);
                let bytes = unsafe { std::slice::from_raw_parts(source, n_bytes) };
                self.machine.write(target, bytes)
            }
            Work::Write { bytes, target } => self.machine.write(target, &bytes),
            Work::Save { source, target, n_bytes } => {
                let target = ptr::with_exposed_provenance_mut::<u8>(target);
                let bytes = unsafe { std::slice::from_raw_parts_mut(target, n_bytes) };
                self.machine.read(source, bytes)
            }
            Work::Wait { .. } => Ok(()),
        };
        done.map_err(|fault| {
            eprintln!("the simulated card: {fault}");
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        })
    }

    pub fn run_all(&mut self, settings: &Settings) -> Answer {
        (0..self.streams.len())
            .try_for_each(|stream| self.run(stream, self.streams[stream].end(), settings))
    }

    /// Whether `n_bytes` of the host at `start` are pinned.
    pub fn is_pinned(&self, start: usize, n_bytes: usize) -> bool {
        let before = self.pinned.range(..=start).next_back();
        before.is_some_and(|(first, bytes)| start + n_bytes <= first + bytes.len())
    }

    pub fn ask(&mut self, stream: usize, work: Work) {
        let stream = &mut self.streams[stream];
        stream.works |= matches!(work, Work::Kernel { .. } | Work::Clear { .. });
        stream.asked.push_back(work);
    }

    /// Of pinned memory and the card.
    pub fn ask_for_copy(&mut self, stream: usize, work: Work, settings: &Settings) -> Answer {
        self.ask(stream, work);
        let Stream { n_copies, works, .. } = &mut self.streams[stream];
        *n_copies += 1;
        // A period that is none of two buffers in turn.
        let is_early = !*works && *n_copies % 3 == 0;
        if is_early { self.run(stream, self.streams[stream].end(), settings) } else { Ok(()) }
    }
}
