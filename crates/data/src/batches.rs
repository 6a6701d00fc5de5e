//! Micro-batches: whole examples behind one another, without padding.
//!
//! A micro-batch has room for `rows × sequence` tokens. Packed, it takes as many examples as fit;
//! unpacked, at most `rows`. Which examples share a micro-batch is decided once for the run; each
//! epoch visits the micro-batches in an order of its own, so that every epoch has as many.

use std::collections::VecDeque;

use crate::{
    DataError, TokenizedDataset,
    random::{hash, shuffle},
    tokenize::TRAINED,
};

/// A micro-batch, with room for the largest of its plan.
#[derive(Clone, Debug)]
pub struct BatchBuffer {
    ids: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<[u32; 4]>,
    target_rows: Vec<u32>,
    targets: Vec<u32>,
    n_tokens: usize,
    n_segments: usize,
    n_targets: usize,
}

impl BatchBuffer {
    /// Room for `capacity` tokens; empty.
    pub fn new(capacity: usize) -> Self {
        Self {
            ids: vec![0; capacity],
            positions: vec![0; capacity],
            segments: vec![[0; 4]; capacity],
            target_rows: vec![0; capacity],
            targets: vec![0; capacity],
            n_tokens: 0,
            n_segments: 0,
            n_targets: 0,
        }
    }

    /// Token ids.
    pub fn ids(&self) -> &[u32] {
        &self.ids[..self.n_tokens]
    }

    /// Position of each token in its example.
    pub fn positions(&self) -> &[u32] {
        &self.positions[..self.n_tokens]
    }

    /// First query, number of queries, first key, number of keys of each example.
    pub fn segments(&self) -> &[[u32; 4]] {
        &self.segments[..self.n_segments]
    }

    /// Tokens whose successor in the same example is trained on.
    pub fn target_rows(&self) -> &[u32] {
        &self.target_rows[..self.n_targets]
    }

    /// That successor.
    pub fn targets(&self) -> &[u32] {
        &self.targets[..self.n_targets]
    }

    /// Adds an example of as many tokens as `read` is to fill, each with [`TRAINED`] where it is
    /// trained on.
    fn push(
        &mut self,
        len: usize,
        read: impl FnOnce(&mut [u32]) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let (start, end) = (self.n_tokens, self.n_tokens + len);
        let ids = &mut self.ids[start..end];
        read(ids)?;
        for (position, slot) in self.positions[start..end].iter_mut().enumerate() {
            *slot = position as u32;
        }
        let (first, n) = (start as u32, len as u32);
        self.segments[self.n_segments] = [first, n, first, n];
        for (i, word) in ids.iter_mut().enumerate() {
            let is_trained = *word & TRAINED != 0;
            *word &= !TRAINED;
            // The first token is predicted by nothing.
            if is_trained && i > 0 {
                self.target_rows[self.n_targets] = (start + i - 1) as u32;
                self.targets[self.n_targets] = *word;
                self.n_targets += 1;
            }
        }
        self.n_tokens = end;
        self.n_segments += 1;
        Ok(())
    }
}

/// The examples of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatchPlan<'a> {
    /// Their numbers in the dataset.
    pub examples: &'a [u32],
    /// Trained tokens.
    pub n_targets: usize,
}

/// A micro-batch that may still take examples.
#[derive(Debug, Default)]
struct OpenMicroBatch {
    examples: Vec<u32>,
    n_tokens: usize,
    n_targets: usize,
}

/// Every micro-batch of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    /// The examples of every micro-batch behind one another.
    examples: Vec<u32>,
    /// Where those of each begin, and the end of the last.
    starts: Vec<usize>,
    /// Trained tokens of each.
    n_targets: Vec<usize>,
    capacity: usize,
    seed: u64,
    /// The order of the epoch below; kept, so that another epoch allocates nothing.
    order: Vec<usize>,
    epoch: Option<u64>,
}

impl BatchPlan {
    /// Divides `examples` of `dataset` among micro-batches of `rows` rows of `sequence` tokens.
    ///
    /// # Panics
    /// When an example is longer than `sequence`: they were tokenized for a longer one.
    pub fn new(
        dataset: &TokenizedDataset,
        examples: &[usize],
        (rows, sequence): (usize, usize),
        packing: bool,
        seed: u64,
    ) -> Self {
        let capacity = rows * sequence;
        let mut shuffled = examples.to_vec();
        shuffle(&mut shuffled, hash(seed, u64::MAX));
        /// Micro-batches that are still open to examples: enough to fill gaps, few to search.
        const OPEN: usize = 64;
        let mut open: VecDeque<OpenMicroBatch> = VecDeque::with_capacity(OPEN);
        let mut plan = Self {
            examples: Vec::with_capacity(examples.len()),
            starts: vec![0],
            n_targets: Vec::new(),
            capacity,
            seed,
            order: Vec::new(),
            epoch: None,
        };
        for example in shuffled {
            let len = dataset.example_len(example);
            assert!(len <= sequence, "an example of {len} tokens in a row of {sequence}");
            let room = open.iter().position(|batch| {
                batch.n_tokens + len <= capacity && (packing || batch.examples.len() < rows)
            });
            let at = room.unwrap_or_else(|| {
                if open.len() == OPEN
                    && let Some(full) = open.pop_front()
                {
                    plan.push(&full);
                }
                open.push_back(OpenMicroBatch::default());
                open.len() - 1
            });
            let batch = &mut open[at];
            batch.examples.push(example as u32);
            batch.n_targets += dataset.example_trained(example);
            batch.n_tokens += len;
        }
        for batch in &open {
            plan.push(batch);
        }
        plan.order = (0..plan.len()).collect();
        plan
    }

    fn push(&mut self, batch: &OpenMicroBatch) {
        self.examples.extend_from_slice(&batch.examples);
        self.starts.push(self.examples.len());
        self.n_targets.push(batch.n_targets);
    }

    /// Tokens that a micro-batch has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Micro-batches of an epoch.
    pub fn len(&self) -> usize {
        self.n_targets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n_targets.is_empty()
    }

    /// The micro-batch at `index` of `epoch`.
    pub fn micro_batch(&mut self, epoch: u64, index: usize) -> MicroBatchPlan<'_> {
        if self.epoch != Some(epoch) {
            for (i, slot) in self.order.iter_mut().enumerate() {
                *slot = i;
            }
            shuffle(&mut self.order, hash(self.seed, epoch));
            self.epoch = Some(epoch);
        }
        let number = self.order[index];
        MicroBatchPlan {
            examples: &self.examples[self.starts[number]..self.starts[number + 1]],
            n_targets: self.n_targets[number],
        }
    }

    /// Writes the micro-batch at `index` of `epoch` over what is in `buffer`.
    ///
    /// # Errors
    /// When the tokens cannot be read.
    ///
    /// # Panics
    /// When `buffer` has room for less than [`BatchPlan::capacity`].
    pub fn fill(
        &mut self,
        dataset: &TokenizedDataset,
        epoch: u64,
        index: usize,
        buffer: &mut BatchBuffer,
    ) -> Result<(), DataError> {
        (buffer.n_tokens, buffer.n_segments, buffer.n_targets) = (0, 0, 0);
        for &example in self.micro_batch(epoch, index).examples {
            let example = example as usize;
            let read = |words: &mut [u32]| dataset.read_example(example, words);
            buffer.push(dataset.example_len(example), read)?;
        }
        Ok(())
    }
}

impl TokenizedDataset {
    /// The examples to train on, and a share of them held out, chosen by `seed`. At least one is
    /// trained on.
    pub fn split(&self, held_out: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
        let mut examples: Vec<usize> = (0..self.len()).collect();
        shuffle(&mut examples, hash(seed, u64::MAX - 1));
        let n_held_out = if held_out > 0.0 {
            ((self.len() as f64 * held_out).round() as usize)
                .clamp(1, self.len().max(2) - 1)
                .min(self.len().saturating_sub(1))
        } else {
            0
        };
        let mut training = examples.split_off(n_held_out);
        // In the file's order again: shuffling is the batches' own affair.
        examples.sort_unstable();
        training.sort_unstable();
        (training, examples)
    }
}
