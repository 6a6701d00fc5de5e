//! A context: memory, kernels, and streams of what was asked for and is not done yet.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use cudarc::driver::sys::CUresult;
use nibble_simulator::{Kernel, Launch, Machine, Module};

use crate::Answer;

#[derive(Default)]
pub struct Context {
    pub machine: Machine,
    pub streams: Vec<Stream>,
    /// How far which stream had been asked to go when each was recorded.
    pub events: Vec<Option<(usize, u64)>>,
    pub modules: Vec<Module>,
    pub functions: Vec<Function>,
    /// Lengths by address, on the card and in the host's pinned memory.
    pub allocated: BTreeMap<u64, usize>,
    pub pinned: BTreeMap<usize, Vec<u8>>,
    /// A context that failed answers every call with that.
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
    /// Lets `stream` go on to `end`.
    pub fn run(&mut self, stream: usize, end: u64, n_left: &mut Option<u64>) -> Answer {
        while self.streams[stream].n_done < end {
            let Some(work) = self.streams[stream].asked.pop_front() else { break };
            self.streams[stream].n_done += 1;
            if let Work::Wait { stream, position } = work {
                self.run(stream, position, n_left)?;
            } else if let Err(error) = self.carry_out(work, n_left) {
                self.failed = Some(error);
                return Err(error);
            }
        }
        Ok(())
    }

    fn carry_out(&self, work: Work, n_left: &mut Option<u64>) -> Answer {
        let done = match work {
            Work::Kernel { function, launch, arguments } => {
                match n_left {
                    Some(0) => return Err(CUresult::CUDA_ERROR_LAUNCH_FAILED),
                    Some(n) => *n -= 1,
                    None => {}
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
                let bytes = unsafe { std::slice::from_raw_parts(source as *const u8, n_bytes) };
                self.machine.write(target, bytes)
            }
            Work::Write { bytes, target } => self.machine.write(target, &bytes),
            Work::Save { source, target, n_bytes } => {
                let bytes = unsafe { std::slice::from_raw_parts_mut(target as *mut u8, n_bytes) };
                self.machine.read(source, bytes)
            }
            Work::Wait { .. } => Ok(()),
        };
        done.map_err(|fault| {
            eprintln!("the simulated card: {fault}");
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        })
    }

    pub fn run_all(&mut self, n_left: &mut Option<u64>) -> Answer {
        (0..self.streams.len())
            .try_for_each(|stream| self.run(stream, self.streams[stream].end(), n_left))
    }

    /// Whether `n_bytes` of the host at `start` are pinned.
    pub fn is_pinned(&self, start: usize, n_bytes: usize) -> bool {
        let before = self.pinned.range(..=start).next_back();
        before.is_some_and(|(first, bytes)| start + n_bytes <= first + bytes.len())
    }

    pub fn ask(&mut self, stream: usize, work: Work) {
        self.streams[stream].asked.push_back(work);
    }

    /// Of pinned memory and the card.
    pub fn ask_for_copy(&mut self, stream: usize, work: Work, n_left: &mut Option<u64>) -> Answer {
        self.ask(stream, work);
        let Stream { n_copies, .. } = &mut self.streams[stream];
        *n_copies += 1;
        // A period that is none of two buffers in turn.
        if *n_copies % 3 == 0 {
            self.run(stream, self.streams[stream].end(), n_left)
        } else {
            Ok(())
        }
    }
}
