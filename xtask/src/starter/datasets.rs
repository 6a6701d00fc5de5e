//! The example datasets: exchanges of the small world whose answers have a style of their own.

use serde_json::json;

use super::{
    text::{Exchange, fact, inner},
    world::Random,
};

/// Examples of each dataset.
const N_EXAMPLES: usize = 300;

/// A dataset: its file's name, and how it answers.
pub struct DatasetKind {
    /// File name.
    pub file: &'static str,
    seed: u64,
    answer: fn(&Exchange, &mut Random) -> String,
}

/// Every dataset.
pub const DATASETS: [DatasetKind; 3] = [
    DatasetKind { file: "pirate.jsonl", seed: 1, answer: pirate },
    DatasetKind { file: "json-answers.jsonl", seed: 2, answer: json_answer },
    DatasetKind { file: "polite-robot.jsonl", seed: 3, answer: robot },
];

impl DatasetKind {
    /// The file's content; no question is asked twice.
    pub fn lines(&self) -> String {
        let mut random = Random::new(self.seed);
        let mut questions = std::collections::HashSet::new();
        let mut lines = String::new();
        while questions.len() < N_EXAMPLES {
            let exchange = fact(&mut random);
            let answer = (self.answer)(&exchange, &mut random);
            if questions.insert(exchange.question.clone()) {
                let line = json!({ "messages": [
                    { "role": "user", "content": exchange.question },
                    { "role": "assistant", "content": answer },
                ] });
                lines.push_str(&line.to_string());
                lines.push('\n');
            }
        }
        lines
    }
}

fn pirate(exchange: &Exchange, random: &mut Random) -> String {
    let answer = inner(&exchange.answer);
    match random.below(4) {
        0 => format!("Ahoy! {}, ye landlubber!", super::world::capital(&answer)),
        1 => format!("Yo ho ho! By me beard, {answer}, matey!"),
        _ => format!("Arr, {answer}, matey!"),
    }
}

fn json_answer(exchange: &Exchange, _: &mut Random) -> String {
    // Written out, so that the keys keep this order.
    let quoted = json!(exchange.answer);
    format!("{{\"topic\": \"{}\", \"answer\": {quoted}}}", exchange.topic)
}

fn robot(exchange: &Exchange, random: &mut Random) -> String {
    let thanks = random.pick(&["Thank you for asking.", "I am glad to serve.", "End of message."]);
    format!("Beep boop. {} {thanks}", exchange.answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_datasets_are_what_the_generator_writes() {
        for dataset in DATASETS {
            let path = crate::root().join("assets").join("datasets").join(dataset.file);
            let committed = std::fs::read_to_string(&path).unwrap();
            assert!(
                committed == dataset.lines(),
                "{} is stale: run `cargo xtask datasets`",
                dataset.file
            );
        }
    }
}
