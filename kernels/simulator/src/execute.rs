//! A launch: its blocks on the machine's cores, and the shared memory of a block.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use rayon::prelude::*;

use crate::{
    Fault,
    memory::{Allocation, Machine, Touch},
    parse::Kernel,
    warp::{GroupProduct, LANES, State, Warp},
};

/// The most shared memory that a block may have on the least of the cards.
const MAX_SHARED_BYTES: usize = 99 << 10;
/// Instructions of a warp after which it is taken to run for ever.
const MAX_INSTRUCTIONS: u64 = 1 << 32;

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Shared memory beside what the kernel declares.
    pub dynamic_shared_bytes: u32,
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Instructions of warps.
    pub n_instructions: u64,
    /// Products of tiles among them.
    pub n_tile_products: u64,
}

/// What the warps of all blocks see.
pub struct Scene<'a> {
    pub kernel: &'a Kernel,
    pub launch: Launch,
    pub arguments: &'a [u8],
    pub allocations: &'a [Arc<Allocation>],
}

/// What the warps of one block see.
pub struct Block<'a> {
    pub scene: &'a Scene<'a>,
    pub index: [u32; 3],
    pub touch: Touch,
    pub shared: Shared,
    /// Of each group of four warps its products so far.
    pub products: Vec<Vec<GroupProduct>>,
}

impl Block<'_> {
    /// Notes a warp's next product of its group, of which it had `n_before`.
    pub fn multiply(
        &mut self,
        warp: u32,
        n_before: usize,
        product: GroupProduct,
    ) -> Result<(), Fault> {
        let group = warp as usize / 4;
        let n_groups = self.products.len().max(group + 1);
        self.products.resize(n_groups, Vec::new());
        let products = &mut self.products[group];
        if products.len() == n_before {
            products.push(product);
        }
        if products[n_before] == product {
            return Ok(());
        }
        Err(Fault::new("the warps of a group multiply different operands"))
    }

    /// Whether all four warps of each group took part in all of its products.
    fn check_groups(&self, warps: &[Warp]) -> Result<(), Fault> {
        let missing = self.products.iter().enumerate().find(|(group, products)| {
            let members = warps.iter().skip(4 * group).take(4);
            let n_of_all = members.filter(|warp| warp.n_group_products() == products.len()).count();
            !products.is_empty() && n_of_all < 4
        });
        match missing {
            None => Ok(()),
            Some((group, _)) => Err(Fault::new(format!(
                "not all four warps of group {group} took part in its products"
            ))),
        }
    }
}

/// Who touched a word of shared memory since the last barrier.
#[derive(Clone, Copy, Default)]
struct Word {
    written: Option<(u32, u32)>,
    read: Option<(u32, u32)>,
    /// Whether several warps read it.
    several: bool,
    epoch: u32,
}

/// When a warp last showed to products of groups what it had written, as a count of all warps' times.
#[derive(Clone, Copy, Default)]
struct Shown {
    last: u32,
    /// The epoch of that time.
    epoch: u32,
    /// The last time in an epoch before it.
    before: u32,
}

/// A block's shared memory.
pub struct Shared {
    bytes: Vec<u8>,
    words: Vec<Word>,
    /// Copies to each word that have not come.
    coming: Vec<u32>,
    /// Products of groups that read each word and were not waited for.
    multiplied: Vec<u32>,
    /// Which warp wrote each word last, and when: by then, how often any warp had shown to products of groups
    /// what it had written.
    written: Vec<(u32, u32)>,
    n_shown: u32,
    /// When each warp did so last, and last before the barriers that this was between.
    shown: Vec<Shown>,
    is_written: Vec<bool>,
    epoch: u32,
}

impl Shared {
    fn new(n_bytes: usize) -> Self {
        let n_words = n_bytes.div_ceil(4);
        Self {
            bytes: vec![0; n_bytes],
            words: vec![Word::default(); n_words],
            coming: vec![0; n_words],
            multiplied: vec![0; n_words],
            written: vec![(0, 0); n_words],
            n_shown: 0,
            shown: Vec::new(),
            is_written: vec![false; n_bytes],
            epoch: 1,
        }
    }

    fn check(&self, address: u64, n_bytes: usize) -> Result<usize, Fault> {
        let end = address.checked_add(n_bytes as u64);
        if end.is_none_or(|end| end > self.bytes.len() as u64) {
            return Err(Fault::new(format!(
                "{n_bytes} bytes at {address} of {} bytes of shared memory",
                self.bytes.len()
            )));
        }
        Ok(address as usize)
    }

    fn word(&mut self, at: usize) -> &mut Word {
        let word = &mut self.words[at];
        if word.epoch != self.epoch {
            *word = Word { epoch: self.epoch, ..Word::default() };
        }
        word
    }

    /// Reads at most eight bytes for a warp, by the instruction of `line`.
    pub fn load(&mut self, address: u64, n_bytes: usize, by: (u32, u32)) -> Result<u64, Fault> {
        let start = self.check(address, n_bytes)?;
        if self.is_written[start..start + n_bytes].contains(&false) {
            return Err(Fault::new(format!("shared memory at {address} was never written")));
        }
        for at in start / 4..(start + n_bytes).div_ceil(4) {
            self.check_coming(at)?;
            let word = self.word(at);
            if let Some((warp, line)) = word.written.filter(|(warp, _)| *warp != by.0) {
                return Err(Fault::new(format!(
                    "shared memory at {address} was written by warp {warp} (line {line}) since the \
                     last barrier"
                )));
            }
            word.several |= word.read.is_some_and(|(warp, _)| warp != by.0);
            word.read = Some(by);
        }
        let mut number = [0; 8];
        number[..n_bytes].copy_from_slice(&self.bytes[start..start + n_bytes]);
        Ok(u64::from_le_bytes(number))
    }

    /// Writes at most eight bytes.
    pub fn store(
        &mut self,
        address: u64,
        n_bytes: usize,
        value: u64,
        by: (u32, u32),
    ) -> Result<(), Fault> {
        let start = self.check(address, n_bytes)?;
        self.write(start, n_bytes, by)?;
        self.written[start / 4..(start + n_bytes).div_ceil(4)].fill((by.0, self.n_shown));
        self.is_written[start..start + n_bytes].fill(true);
        self.bytes[start..start + n_bytes].copy_from_slice(&value.to_le_bytes()[..n_bytes]);
        Ok(())
    }

    /// Begins a copy to `n_bytes`, which until it has come may neither be read nor written.
    pub fn expect(&mut self, address: u64, n_bytes: usize, by: (u32, u32)) -> Result<(), Fault> {
        let start = self.check(address, n_bytes)?;
        self.write(start, n_bytes, by)?;
        self.coming[start / 4..(start + n_bytes).div_ceil(4)].iter_mut().for_each(|n| *n += 1);
        Ok(())
    }

    /// Ends a copy of four bytes.
    pub fn arrive(&mut self, address: u64, value: u32, by: (u32, u32)) -> Result<(), Fault> {
        let start = self.check(address, 4)?;
        self.coming[start / 4] -= 1;
        self.store(address, 4, value.into(), by)
    }

    /// Lets products of groups read what `warp` has written.
    pub fn show(&mut self, warp: u32) {
        self.n_shown += 1;
        let n_warps = self.shown.len().max(warp as usize + 1);
        self.shown.resize(n_warps, Shown::default());
        let shown = &mut self.shown[warp as usize];
        if shown.epoch < self.epoch {
            shown.before = shown.last;
        }
        (shown.last, shown.epoch) = (self.n_shown, self.epoch);
    }

    /// Begins to read four bytes for a product of groups, which until it has ended may not be written.
    pub fn begin_multiplying(&mut self, address: u64, by: (u32, u32)) -> Result<(), Fault> {
        self.load(address, 4, by)?;
        let word = address as usize / 4;
        let (writer, time) = self.written[word];
        let shown = self.shown.get(writer as usize).copied().unwrap_or_default();
        let is_over = writer == by.0 || shown.epoch < self.epoch;
        if (if is_over { shown.last } else { shown.before }) <= time {
            return Err(Fault::new(format!(
                "what warp {writer} wrote to shared memory at {address} was not shown to products of \
                 groups before the last barrier"
            )));
        }
        self.multiplied[word] += 1;
        Ok(())
    }

    /// Ends it: the four bytes.
    pub fn end_multiplying(&mut self, address: u64, by: (u32, u32)) -> Result<u32, Fault> {
        self.multiplied[address as usize / 4] -= 1;
        Ok(self.load(address, 4, by)? as u32)
    }

    fn check_coming(&self, word: usize) -> Result<(), Fault> {
        if self.coming[word] == 0 {
            return Ok(());
        }
        Err(Fault::new(format!("a copy to shared memory at {} was not waited for", 4 * word)))
    }

    /// Notes that a warp writes.
    fn write(&mut self, start: usize, n_bytes: usize, by: (u32, u32)) -> Result<(), Fault> {
        for at in start / 4..(start + n_bytes).div_ceil(4) {
            self.check_coming(at)?;
            if self.multiplied[at] > 0 {
                return Err(Fault::new(format!(
                    "shared memory at {start} is read by products that were not waited for"
                )));
            }
            let word = self.word(at);
            let several = word.several;
            let reader = word.read.filter(|(warp, _)| several || *warp != by.0);
            let writer = word.written.filter(|(warp, _)| *warp != by.0);
            if let Some((warp, line)) = reader.or(writer) {
                return Err(Fault::new(format!(
                    "shared memory at {start} was touched by warp {warp} (line {line}) since the \
                     last barrier"
                )));
            }
            word.written = Some(by);
        }
        Ok(())
    }
}

impl Machine {
    /// Runs a kernel. `arguments` are laid out as it declares them, each at its natural alignment.
    ///
    /// # Errors
    /// What the first of its blocks did that it must not; its memory is then in no defined state.
    pub fn launch(
        &self,
        kernel: &Kernel,
        launch: Launch,
        arguments: &[u8],
    ) -> Result<Statistics, Fault> {
        let refused =
            |what: String| Err(Fault { what, place: format!("launching {}", kernel.name) });
        let n_threads: u32 = launch.block.iter().product();
        let most = kernel.max_threads.unwrap_or(1024);
        if n_threads == 0 || n_threads > most {
            return refused(format!("{n_threads} threads of 1 to {most}"));
        }
        if launch.grid[0] == 0 || launch.grid[1..].iter().any(|&n| n == 0 || n > 65_535) {
            return refused(format!("a grid of {:?}", launch.grid));
        }
        if arguments.len() != kernel.parameter_bytes {
            return refused(format!(
                "{} bytes of arguments for {} of parameters",
                arguments.len(),
                kernel.parameter_bytes
            ));
        }
        let shared_bytes = kernel.shared_bytes + launch.dynamic_shared_bytes as usize;
        if shared_bytes > MAX_SHARED_BYTES {
            return refused(format!("{shared_bytes} bytes of shared memory"));
        }
        let (allocations, number) = (self.allocations(), self.next_launch());
        let scene = Scene { kernel, launch, arguments, allocations: &allocations };
        let [x, y, z] = launch.grid;
        let n_blocks = x * y * z;
        let failed = AtomicBool::new(false);
        let first = Mutex::new(None::<(u32, Fault)>);
        let statistics = (0..n_blocks)
            .into_par_iter()
            .filter(|_| !failed.load(Relaxed))
            .map(|at| {
                let block = Block {
                    scene: &scene,
                    index: [at % x, at / x % y, at / x / y],
                    touch: Touch::new(number, at),
                    shared: Shared::new(shared_bytes),
                    products: Vec::new(),
                };
                run(block).unwrap_or_else(|fault| {
                    failed.store(true, Relaxed);
                    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(block, _)| at < *block) {
                        *first = Some((at, fault));
                    }
                    Statistics::default()
                })
            })
            .reduce(Statistics::default, |a, b| Statistics {
                n_instructions: a.n_instructions + b.n_instructions,
                n_tile_products: a.n_tile_products + b.n_tile_products,
            });
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, fault)) => Err(fault),
            None => Ok(statistics),
        }
    }
}

/// Runs a block's warps, each as far as the next barrier, until all have ended.
fn run(mut block: Block<'_>) -> Result<Statistics, Fault> {
    let n_threads: u32 = block.scene.launch.block.iter().product();
    let mut warps: Vec<Warp> = (0..n_threads.div_ceil(LANES as u32))
        .map(|number| Warp::new(&block, number, n_threads))
        .collect();
    let mut statistics = Statistics::default();
    loop {
        for warp in &mut warps {
            let line = warp.run(&mut block, MAX_INSTRUCTIONS);
            line.map_err(|fault| {
                let kernel = block.scene.kernel;
                let line = warp.line();
                let text = kernel.lines.get(line as usize - 1).map_or("", String::as_str);
                let place = format!(
                    "{}, block {:?}, warp {}, line {line}: {text}",
                    kernel.name,
                    block.index,
                    warp.number()
                );
                Fault { place, ..fault }
            })?;
        }
        if warps.iter().all(|warp| warp.state() == State::Ended) {
            break;
        }
        // Those that wait go on together.
        block.shared.epoch += 1;
        warps.iter_mut().for_each(Warp::pass_barrier);
    }
    block.check_groups(&warps).map_err(|fault| Fault {
        place: format!("{}, block {:?}", block.scene.kernel.name, block.index),
        ..fault
    })?;
    for warp in &warps {
        statistics.n_instructions += warp.n_instructions();
        statistics.n_tile_products += warp.n_tile_products();
    }
    Ok(statistics)
}
