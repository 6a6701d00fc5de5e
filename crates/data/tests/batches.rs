//! Micro-batches hold every example once, and nothing of one example reaches another.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;

use nibble_data::{
    BatchBuffer, BatchPlan, ChatTemplate, Encoder, TokenizeOptions, TokenizedDataset, TrainOn,
};
use serde_json::json;

/// Examples of many lengths, each with a text of its own.
fn dataset(n: usize, max_tokens: usize) -> TokenizedDataset {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = common::tokenizer(folder.path());
    let template = ChatTemplate::new(None, None, Some("</s>")).unwrap();
    let data = folder.path().join("data.jsonl");
    let rows: Vec<_> = (0..n)
        .map(|i| json!({ "prompt": format!("{i}:"), "completion": "x".repeat(1 + i * 7 % 23) }))
        .collect();
    common::write_rows(&data, &rows);
    let options = TokenizeOptions { max_tokens, train_on: TrainOn::Completions };
    let encoder = Encoder { tokenizer: &tokenizer, template: &template, options, n_threads: 3 };
    common::read_tokens(&data, encoder).unwrap()
}

#[test]
fn every_epoch_visits_every_example_once() {
    let dataset = dataset(83, 24);
    let all: Vec<usize> = (0..dataset.len()).collect();
    for packing in [true, false] {
        for seed in 0..5 {
            let (rows, sequence) = (3, 24);
            let mut plan = BatchPlan::new(&dataset, &all, (rows, sequence), packing, seed);
            let mut batch = BatchBuffer::new(plan.capacity());
            let mut orders = Vec::new();
            for epoch in 0..3 {
                let mut seen: HashMap<Vec<u32>, usize> = HashMap::new();
                let mut n_targets = 0;
                let mut order = Vec::new();
                for index in 0..plan.len() {
                    let planned = plan.micro_batch(epoch, index);
                    order.push(planned.examples.to_vec());
                    let n_planned_targets = planned.n_targets;
                    plan.fill(&dataset, epoch, index, &mut batch).unwrap();
                    let (ids, positions, segments) =
                        (batch.ids(), batch.positions(), batch.segments());
                    assert_eq!(batch.targets().len(), n_planned_targets);
                    assert!(packing || segments.len() <= rows);
                    n_targets += batch.targets().len();
                    let mut end = 0;
                    for &[start, n, key, n_keys] in segments {
                        assert_eq!((start, n), (key, n_keys));
                        assert_eq!(start, end, "no gaps");
                        end = start + n;
                        let range = start as usize..end as usize;
                        assert!(positions[range.clone()].iter().copied().eq(0..n));
                        *seen.entry(ids[range].to_vec()).or_default() += 1;
                    }
                    assert_eq!(end as usize, ids.len());
                    for (row, target) in batch.target_rows().iter().zip(batch.targets()) {
                        assert_eq!(ids[*row as usize + 1], *target);
                        let segment = segments
                            .iter()
                            .find(|[start, n, ..]| (*start..start + n).contains(row))
                            .unwrap();
                        assert!(row + 1 < segment[0] + segment[1], "the next token is its own");
                    }
                }
                assert_eq!(seen.len(), dataset.len());
                assert!(seen.values().all(|&times| times == 1));
                assert_eq!(n_targets, dataset.n_trained);
                orders.push(order);
            }
            assert_ne!(orders[0], orders[1], "each epoch has an order of its own");
            let mut again = BatchPlan::new(&dataset, &all, (rows, sequence), packing, seed);
            let order: Vec<_> =
                (0..again.len()).map(|i| again.micro_batch(2, i).examples.to_vec()).collect();
            assert_eq!(order, orders[2], "and it is the same in every process");
        }
    }
}

#[test]
fn packing_wastes_little() {
    let dataset = dataset(200, 64);
    let all: Vec<usize> = (0..dataset.len()).collect();
    let plan = BatchPlan::new(&dataset, &all, (1, 64), true, 1);
    let fewest = dataset.n_tokens().div_ceil(64);
    assert!(plan.len() <= fewest + fewest / 10 + 1, "{} for {fewest}", plan.len());
}

#[test]
fn a_share_is_held_out_and_at_least_one_is_trained() {
    let dataset = dataset(50, 32);
    let (training, held_out) = dataset.split(0.2, 3);
    assert_eq!((training.len(), held_out.len()), (40, 10));
    assert!(training.iter().all(|example| !held_out.contains(example)));
    assert_eq!(dataset.split(0.2, 3), (training, held_out));
    assert_eq!(dataset.split(0.0, 3).1.len(), 0);
    assert_eq!(dataset.split(0.99, 3).0.len(), 1);
}
