//! Whole runs through the program: what survives, what repeats, what is said.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

#[cfg(unix)]
use std::process::Command;
use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use common::{Place, files};
use serde_json::Value;

const TRAIN: &str = "train --model @model --data @data.jsonl --seq 32 --batch 2 --rank 4 --lr 1e-3";

fn event<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn every_method_trains_and_allocates_what_it_planned() {
    let place = Place::new();
    for method in ["full", "lora", "qlora"] {
        for extra in ["", "--recompute on", "--grad-accum 2 --dropout 0.1 --eval-split 0.1"] {
            let out = format!("{method}-{}", extra.len());
            let events = place.json(&format!(
                "{TRAIN} --method {method} --epochs 6 --warmup 2 --out @{out} {extra}"
            ));
            let steps = event(&events, "step");
            let loss = |step: &Value| step["loss"].as_f64().unwrap();
            assert!(loss(steps[steps.len() - 1]) < loss(steps[0]), "{method} {extra}");
            let done = events.last().unwrap();
            assert_eq!(done["event"], "done");
            assert_eq!(done["planned_peak_bytes"], done["allocated_peak_bytes"]);
            assert_eq!(done["steps"], steps.len());
            let planned = done["planned_peak_bytes"].as_u64().unwrap();
            let held = done["peak_rss_bytes"].as_u64().unwrap();
            assert!(held <= planned + planned * 3 / 100 + (64 << 20), "{held} for {planned}");
            assert!(place.path(&out).join("report").join("report.html").is_file());
        }
    }
}

#[test]
fn a_profile_tells_where_the_time_of_the_steps_went() {
    let place = Place::new();
    let events = place.json(&format!("{TRAIN} --steps 5 --eval-split 0.1 --out @run --profile"));
    let profile = &events[events.len() - 2];
    assert_eq!((&profile["event"], &profile["steps"]), (&"profile".into(), &4.into()));
    let number = |value: &Value| value.as_f64().unwrap();
    let operations = profile["operations"].as_array().unwrap();
    let products = operations.iter().find(|operation| operation["name"] == "linear layers");
    let products = products.unwrap();
    // Those of four inputs in each of two blocks; those of the held-out examples are none of a step's.
    assert!((4 * 8..4 * 16).contains(&products["calls"].as_u64().unwrap()), "{products}");
    assert!(number(&products["flops"]) > 0.0);
    let timed: f64 = operations.iter().map(|operation| number(&operation["seconds"])).sum();
    assert!(timed > 0.0 && timed <= number(&profile["seconds"]));
    assert!(number(&profile["product_flops_per_s"]) > 1e8);
    let words = place.nibble(&format!("{TRAIN} --steps 1 --out @one --profile"));
    assert!(String::from_utf8_lossy(&words.stdout).contains("the first is never watched"));
}

#[test]
fn a_computer_and_a_step_are_measured_and_nothing_is_left() {
    let place = Place::new();
    let before = fs::read_dir(place.path(".")).unwrap().count();
    let words = "bench --device cpu --model @model --seq 32 --steps 3 --method lora";
    let report: Value =
        serde_json::from_slice(&place.nibble(&format!("{words} --json")).stdout).unwrap();
    for rate in ["product_flops_per_s", "copy_bytes_per_s", "disk_bytes_per_s"] {
        assert!(report[rate].as_f64().unwrap() > 0.0, "{rate}: {report}");
    }
    assert_eq!(report["to_device_bytes_per_s"], Value::Null);
    assert_eq!(report["profile"]["steps"], 2);
    // All of an adapter at once, in each of the steps.
    let operations = report["profile"]["operations"].as_array().unwrap();
    let adamw = operations.iter().find(|operation| operation["name"] == "adamw").unwrap();
    assert_eq!(adamw["calls"], 2);
    let words = String::from_utf8(place.nibble(words).stdout).unwrap();
    assert!(words.contains("GFLOP/s") && words.contains("linear layers, backward"), "{words}");
    assert_eq!(fs::read_dir(place.path(".")).unwrap().count(), before);
    // More steps than there are examples; and sizes for which no text could be made.
    let many = "bench --device cpu --model @model --seq 8 --steps 12 --json";
    let report: Value = serde_json::from_slice(&place.nibble(many).stdout).unwrap();
    assert_eq!(report["profile"]["steps"], 11);
    for size in ["--seq 9000000000", "--batch 9000000000"] {
        place.error(2, &format!("bench --device cpu --model @model {size}"));
    }
}

#[test]
fn a_killed_run_resumes_bit_for_bit() {
    let place = Place::new();
    // Paged or not: the killed one always goes on from pages that a step was in the middle of.
    for (method, states, paging) in [
        ("full", "adamw", "off"),
        ("qlora", "adamw", "off"),
        ("full", "adamw-8bit", "on"),
        ("qlora", "adamw", "on"),
    ] {
        let train = format!(
            "{TRAIN} --method {method} --steps 40 --save-every 7 --dropout 0.1 --grad-accum 2 \
             --optimizer {states}"
        );
        let method = format!("{method}-{paging}");
        // Whatever is paged, the numbers are those of the run in which all of it stays.
        place.json(&format!("{train} --out @{method}-whole --paged off"));
        let mut killed = place
            .command(&format!("{train} --out @{method}-killed --paged {paging} --json"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(killed.stdout.take().unwrap()).lines();
        for line in lines {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if event["event"] == "step" && event["step"] == 18 {
                break;
            }
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
        // Meanwhile there may be less memory, so that activations are no longer kept.
        let settings = place.path(&format!("{method}-killed")).join("run.toml");
        let text = fs::read_to_string(&settings).unwrap();
        assert!(text.contains("recompute = \"auto\""), "{text}");
        fs::write(&settings, text.replace("recompute = \"auto\"", "recompute = \"on\"")).unwrap();
        let events = place.json(&format!("resume @{method}-killed"));
        let first = event(&events, "step")[0]["step"].as_u64().unwrap();
        assert!(first > 1 && first % 7 == 1, "{method} went on at {first}");
        let checkpoint = |run: &str| {
            files(&place.path(&format!("{method}-{run}")).join("checkpoints").join("step-000040"))
        };
        assert_eq!(checkpoint("whole"), checkpoint("killed"), "{method}");
        // Each step is told once, in order, as if nothing had happened.
        let metrics =
            fs::read_to_string(place.path(&format!("{method}-killed")).join("metrics.jsonl"));
        let steps: Vec<u64> = metrics
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|event| event["event"] == "step")
            .map(|event| event["step"].as_u64().unwrap())
            .collect();
        assert!(steps.iter().copied().eq(1..=40), "{steps:?}");
    }
}

/// Ctrl-C reaches the program in another way on Windows.
#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_and_resumes_bit_for_bit() {
    let place = Place::new();
    let train = format!("{TRAIN} --method qlora --steps 60 --dropout 0.1");
    place.json(&format!("{train} --out @whole"));
    let mut run = place
        .command(&format!("{train} --out @interrupted --json"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    let found = lines.find(|line| line.as_ref().unwrap().contains("\"step\":5,"));
    assert!(found.is_some());
    let interrupt = Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let events: Vec<Value> =
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert!(run.wait().unwrap().success());
    let done = events.last().unwrap();
    assert_eq!(done["event"], "done");
    let steps = done["steps"].as_u64().unwrap();
    assert!((5..60).contains(&steps), "stopped at {steps}");
    let saved = place.path("interrupted").join("checkpoints").join(format!("step-{steps:06}"));
    assert!(saved.join("optimizer.safetensors").is_file());
    place.json("resume @interrupted");
    let last = |run: &str| files(&place.path(run).join("checkpoints").join("step-000060"));
    assert_eq!(last("whole"), last("interrupted"));
}

/// A run begun on a card that is gone, or in memory that is no longer free.
#[test]
fn a_run_goes_on_elsewhere_than_it_began() {
    let place = Place::new();
    let train = format!("{TRAIN} --method full --steps 8 --save-every 4 --paged off");
    place.json(&format!("{train} --out @whole"));
    place.json(&format!("{train} --out @moved"));
    let moved = place.path("moved");
    fs::remove_dir_all(moved.join("checkpoints").join("step-000008")).unwrap();
    let settings = moved.join("run.toml");
    let text = fs::read_to_string(&settings).unwrap();
    assert!(text.contains("device = \"cpu\"") && text.contains("paged = \"off\""), "{text}");
    let text = text
        .replace("device = \"cpu\"", "device = \"cuda\"")
        .replace("paged = \"off\"", "paged = \"auto\"");
    fs::write(&settings, &text).unwrap();
    let plan = || {
        let plan = fs::read_to_string(moved.join("plan.json")).unwrap();
        serde_json::from_str::<Value>(&plan).unwrap()
    };
    place.json("resume @moved --device cpu --budget 2MiB");
    assert_eq!(plan()["device"], "cpu");
    assert!(plan()["methods"][0]["paging"].is_object(), "more than that is all of it");
    let last = |run: &str| files(&place.path(run).join("checkpoints").join("step-000008"));
    assert_eq!(last("whole"), last("moved"));
    // What the run is stays as it was said.
    assert_eq!(fs::read_to_string(&settings).unwrap(), text);
}

/// Killed between its last step and its last word, or told to stop there.
#[test]
fn a_resumed_run_says_what_was_left_to_say_and_no_word_twice() {
    let place = Place::new();
    place.json(&format!("{TRAIN} --steps 8 --eval-split 0.2 --sample 3 --out @run"));
    let metrics = place.path("run").join("metrics.jsonl");
    let whole = fs::read_to_string(&metrics).unwrap();
    let last = files(&place.path("run").join("checkpoints").join("step-000008"));
    let names = |text: &str| -> Vec<String> {
        let name = |line| serde_json::from_str::<Value>(line).unwrap()["event"].to_string();
        text.lines().map(name).filter(|name| name != "\"loading\"" && name != "\"ready\"").collect()
    };
    // The checkpoint comes first: however long the rest takes, what was trained is safe.
    assert_eq!(names(&whole)[9..], ["\"checkpoint\"", "\"eval\"", "\"sample\"", "\"done\""]);
    for n_lost in 1..=3 {
        let n_lines = whole.lines().count() - n_lost;
        let cut: String = whole.lines().take(n_lines).map(|line| format!("{line}\n")).collect();
        fs::write(&metrics, cut).unwrap();
        fs::remove_dir_all(place.path("run").join("report")).unwrap();
        let events = place.json("resume @run");
        assert_eq!(events.last().unwrap()["event"], "done", "{n_lost} lost");
        assert_eq!(names(&fs::read_to_string(&metrics).unwrap()), names(&whole), "{n_lost} lost");
        assert!(place.path("run").join("report").join("report.html").is_file());
    }
    assert_eq!(files(&place.path("run").join("checkpoints").join("step-000008")), last);
    // A run that has said everything is left alone.
    let before = fs::read(&metrics).unwrap();
    assert!(place.error(2, "resume @run").contains("complete"));
    assert_eq!(fs::read(&metrics).unwrap(), before);
}

#[test]
fn a_run_goes_on_when_nobody_reads_its_output() {
    let place = Place::new();
    for json in ["--json", ""] {
        let out = format!("run{json}");
        let mut run = place
            .command(&format!("{TRAIN} --steps 30 --out @{out} {json}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // The pipe is closed here.
        let output = run.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && errors.is_empty(), "{errors}");
        assert!(place.path(&out).join("checkpoints").join("step-000030").is_dir());
    }
}

#[test]
fn a_resumed_run_tells_that_its_examples_have_changed() {
    let place = Place::new();
    let train = format!("{TRAIN} --steps 4 --save-every 2 --out @run");
    place.json(&train);
    for (steps, changes) in [(6, false), (8, true), (10, false)] {
        let settings = place.path("run").join("run.toml");
        let text = fs::read_to_string(&settings).unwrap();
        fs::write(
            &settings,
            text.replace(&format!("steps = {}", steps - 2), &format!("steps = {steps}")),
        )
        .unwrap();
        if changes {
            let data = place.path("data.jsonl");
            let text = fs::read_to_string(&data).unwrap();
            fs::write(&data, text.replacen("plus 0 is ", "plus 0 plus 0 is ", 1)).unwrap();
        }
        let events = place.json("resume @run");
        let warned = event(&events, "warning")
            .iter()
            .any(|warning| warning["message"].as_str().unwrap().contains("has changed"));
        assert_eq!(warned, changes, "to step {steps}");
    }
}

/// A sitting begins with its own plan, and without what a killed one left half-written.
#[test]
fn a_resumed_run_clears_up_and_stores_its_plan() {
    let place = Place::new();
    place.json(&format!("{TRAIN} --method full --steps 4 --paged off --out @run"));
    let run = place.path("run");
    assert!(run.join("model").join("config.json").is_file());
    let left = run.join("checkpoints").join("step-000002.tmp");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("model.safetensors"), "half").unwrap();
    let settings = run.join("run.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let text = text.replace("steps = 4", "steps = 6").replace("paged = \"off\"", "paged = \"on\"");
    fs::write(&settings, text).unwrap();
    let plan = || fs::read_to_string(run.join("plan.json")).unwrap();
    let before = plan();
    place.json("resume @run");
    assert!(!left.exists());
    assert_ne!(plan(), before);
    assert!(plan().contains("optimizer_bytes"), "what is paged is in the plan");
}

/// A limit on the size of files stands in for a full disk: the system refuses to write more.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let place = Place::new();
    // A run that has reached its end, and is then asked for more steps.
    place.json(&format!("{TRAIN} --method qlora --steps 20 --save-every 10 --out @full"));
    let settings = place.path("full").join("run.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, text.replace("steps = 20", "steps = 40")).unwrap();
    let before = files(&place.path("full").join("checkpoints").join("step-000020"));
    let resume = place.command("resume @full");
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"])
        .arg(resume.get_program())
        .args(resume.get_args())
        .env("NIBBLE_CACHE", place.path("cache"))
        .output()
        .unwrap();
    let error = String::from_utf8(limited.stderr).unwrap();
    assert_eq!(limited.status.code(), Some(1), "{error}");
    assert!(error.contains("checkpoint") && error.contains("space"), "{error}");
    let folder = place.path("full").join("checkpoints");
    let last = nibble_run::RunFolder::open(&place.path("full")).unwrap().checkpoints().unwrap();
    assert_eq!(last.last().unwrap().step, 20);
    assert_eq!(files(&folder.join("step-000020")), before);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), last.len(), "nothing half-written is left");
    place.json("resume @full");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let place = Place::new();
    // A folder below a file: refused by every system, to every user.
    let error = place.error(1, &format!("{TRAIN} --steps 3 --out @data.jsonl/run"));
    assert!(error.contains("data.jsonl") && error.contains("permissions"), "{error}");
    place.json(&format!("{TRAIN} --steps 3 --out @run"));
    let error = place.error(1, "export @run --to @data.jsonl/adapter");
    assert!(error.contains("data.jsonl") && error.contains("permissions"), "{error}");
}

/// Quantised weights are kept for the next start where they can be; without, a run is the same.
#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let place = Place::new();
    let train = format!("{TRAIN} --method qlora --steps 4");
    place.json(&format!("{train} --out @cached"));
    let without = |arguments: &str| {
        let mut command = place.command(arguments);
        command.env("NIBBLE_CACHE", place.path("data.jsonl")).output().unwrap()
    };
    let output = without(&format!("{train} --out @uncached --json"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("not kept for the next start"), "{text}");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let done = events.last().unwrap();
    assert_eq!(done["planned_peak_bytes"], done["allocated_peak_bytes"]);
    let last = |run: &str| files(&place.path(run).join("checkpoints").join("step-000004"));
    assert_eq!(last("cached"), last("uncached"));
    let evaluated = without("eval --model @model --data @data.jsonl --quantize nf4 --json");
    assert_eq!(
        evaluated.stdout,
        place.nibble("eval --model @model --data @data.jsonl --quantize nf4 --json").stdout
    );
    // Layers that are to visit from the disk need a file to visit from.
    let output = without(&format!("{train} --paged on --out @paged"));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("data.jsonl"));
}

/// Neither a start nor an export that fails leaves anything behind, nor takes anything away.
#[cfg(unix)]
#[test]
fn what_fails_leaves_every_folder_as_it_was() {
    let place = Place::new();
    let train = place.command(&format!("{TRAIN} --steps 3 --out @full"));
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh"])
        .arg(train.get_program())
        .args(train.get_args())
        .env("NIBBLE_CACHE", place.path("cache"))
        .output()
        .unwrap();
    let error = String::from_utf8(limited.stderr).unwrap();
    assert_eq!(limited.status.code(), Some(1), "{error}");
    assert!(error.contains("free space"), "{error}");
    assert!(!place.path("full").exists());

    place.json(&format!("{TRAIN} --steps 3 --out @run"));
    let precious = place.path("adapter.tmp").join("precious.txt");
    fs::create_dir(place.path("adapter.tmp")).unwrap();
    fs::write(&precious, "mine").unwrap();
    let names = || -> Vec<_> {
        let entries = fs::read_dir(place.path("")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    assert!(place.error(2, "export @run --to @adapter --step 2").contains("step 3"));
    let weights = place.path("model").join("model.safetensors");
    fs::rename(&weights, place.path("away")).unwrap();
    place.error(1, "export @run --to @adapter");
    fs::rename(place.path("away"), &weights).unwrap();
    assert_eq!(names(), before);
    place.json("export @run --to @adapter");
    assert_eq!(fs::read_to_string(precious).unwrap(), "mine");
    assert_eq!(names().len(), before.len() + 1);
}

#[test]
fn a_run_does_not_depend_on_threads_and_repeats_from_its_settings() {
    let place = Place::new();
    let last = |run: &str| files(&place.path(run).join("checkpoints").join("step-000012"));
    for threads in [1, 2, 3] {
        place.json(&format!(
            "{TRAIN} --method qlora --steps 12 --threads {threads} --out @threads-{threads}"
        ));
    }
    assert_eq!(last("threads-1"), last("threads-2"));
    assert_eq!(last("threads-1"), last("threads-3"));
    place.json("train --config @threads-2/run.toml --out @again");
    assert_eq!(last("threads-2"), last("again"));
    place.json("train --config @threads-2/run.toml --seed 9 --out @other");
    assert_ne!(last("threads-2"), last("other"));
}

#[test]
fn exports_are_verified_and_give_the_same_loss() {
    let place = Place::new();
    place.json(&format!("{TRAIN} --method qlora --epochs 8 --compute f32 --out @run"));
    let adapter = place.json("export @run --to @adapter").remove(0);
    assert_eq!(adapter["verified"], true);
    assert_eq!(adapter["max_abs_logit_diff"], 0.0);
    // Two implementations in f32: a few hundred roundings of logits of order one.
    assert!(adapter["second_max_abs_logit_diff"].as_f64().unwrap() < 1e-4, "{adapter}");
    let merged = place.json("export @run --to @merged --format merged").remove(0);
    assert_eq!(merged["verified"], true);
    let loss = |arguments: &str| {
        let eval = place.json(&format!("eval {arguments} --data @data.jsonl --compute f32"));
        eval[0]["loss"].as_f64().unwrap()
    };
    let tuned = loss("--model @model --adapter @adapter --quantize nf4");
    assert!((loss("--model @merged") - tuned).abs() < 1e-4);
    assert!(tuned < loss("--model @model --quantize nf4"));
    let answer = place.json("generate --model @merged --prompt 3 --temperature 0 --max-tokens 4");
    assert!(answer[0]["tokens"].as_u64().unwrap() <= 4);
    assert!(place.error(2, "export @run --to @merged").contains("not empty"));
    assert!(place.error(2, "export @model --to @x").contains("no run folder"));
}

#[test]
fn a_stop_saves_and_a_finished_run_says_so() {
    let place = Place::new();
    place.json(&format!("{TRAIN} --steps 3 --out @run"));
    assert!(place.error(2, "resume @run").contains("complete"));
    let again = place.error(2, &format!("{TRAIN} --steps 3 --out @run"));
    assert!(again.contains("not empty") && again.contains("nibble resume"), "{again}");
}

#[test]
fn bad_input_is_one_line_that_says_what_to_do() {
    let place = Place::new();
    let train = |rest: &str| format!("train --out @new {rest}");
    for (arguments, expected) in [
        (train("--seq 32 --model @nowhere --data @data.jsonl"), "config.json"),
        (train("--seq 32 --model @model --data @nowhere.jsonl"), "nowhere.jsonl"),
        (train("--model llama-2-7b --data @data.jsonl"), "download"),
        (train("--model @model --data @data.jsonl --seq 1000"), "128"),
        (train("--seq 32 --model @model --data @data.jsonl --rank 0"), "lora.rank"),
        (train("--seq 32 --model @model --data @data.jsonl --targets q_proj,banana"), "banana"),
        (train("--seq 32 --model @model --data @data.jsonl --targets all-linear,kiwi"), "kiwi"),
        (train("--seq 32 --model @model --data @data.jsonl --lr -1"), "learning_rate"),
        (train("--model @model --data @data.jsonl --seq 0"), "sequence"),
        (train("--model @model --data @data.jsonl --steps -3"), "--steps"),
        (train("--seq 32 --model @model --data @data.jsonl --batch 18446744073709551615"), "batch"),
        (train("--seq 32 --model @model --data @data.jsonl --threads 0"), "threads"),
        (train("--seq 32 --model @model --data @data.jsonl --threads 1000000"), "threads"),
        ("inspect --model @model --data @data.jsonl --seq 0".to_owned(), "sequence"),
        ("eval --model @model --data @data.jsonl --seq 1".to_owned(), "sequence"),
        ("generate --model @model --prompt x --temperature nan".to_owned(), "temperature"),
        ("generate --model @model --prompt x --temperature -1".to_owned(), "temperature"),
        ("generate --model @model --prompt x --top-p 7".to_owned(), "top-p"),
        ("generate --model @model --prompt x --max-tokens 0".to_owned(), "max-tokens"),
        ("eval --model @nowhere --data @data.jsonl".to_owned(), "config.json"),
        ("eval --model @model --data @nowhere.jsonl".to_owned(), "nowhere.jsonl"),
        (
            train("--seq 32 --model @model --data @data.jsonl --budget 1KiB"),
            "choose a smaller model",
        ),
        (train("--config @model/config.json"), "config.json"),
        ("plan --model llama-9".to_owned(), "llama"),
        ("resume @model".to_owned(), "run.toml"),
        ("inspect --model @model --data @model/tokenizer.json".to_owned(), "columns"),
        (train("--model @model --data @data.jsonl --bath 2"), "'--batch'"),
        (train("--model @model"), "--data"),
        (train("--model @model --data @data.jsonl --seq many"), "--seq"),
        (train("--model @model --data @data.jsonl --budget many"), "8GiB"),
        ("tarin".to_owned(), "train"),
    ] {
        let error = place.error(2, &arguments);
        assert!(error.contains(expected), "{arguments}: {error}");
        assert!(!place.path("new").exists(), "{arguments} left a folder behind");
    }
    // Damage to the model's files, one at a time.
    let weights = fs::read(place.path("model").join("model.safetensors")).unwrap();
    let config = fs::read_to_string(place.path("model").join("config.json")).unwrap();
    let data = "--model @model --data @data.jsonl --seq 32";
    for (file, content) in [
        ("model.safetensors", weights[..weights.len() / 2].to_vec()),
        ("model.safetensors", vec![0xff; 64]),
        ("model.safetensors", Vec::new()),
        (
            "config.json",
            config.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 0").into(),
        ),
        (
            "config.json",
            config.replace("\"hidden_size\": 64", "\"hidden_size\": 999999999999").into(),
        ),
        (
            "config.json",
            config.replace("\"llama\"", "\"mamba\"").replace("LlamaFor", "MambaFor").into(),
        ),
        ("config.json", b"{".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
    ] {
        let path = place.path("model").join(file);
        let good = fs::read(&path).unwrap();
        assert_ne!(good, content, "{file} is really damaged");
        fs::write(&path, &content).unwrap();
        let error = place.error(2, &train(data));
        assert!(error.contains(file) || error.contains("model"), "{file}: {error}");
        fs::write(&path, good).unwrap();
    }
    fs::remove_file(place.path("model").join("tokenizer.json")).unwrap();
    assert!(place.error(2, &train(data)).contains("tokenizer.json"));
}

#[test]
fn a_diverging_run_ends_with_advice() {
    let place = Place::new();
    let error = place.error(
        1,
        &format!("{TRAIN} --method full --clip-norm 0 --steps 30 --out @run")
            .replace("1e-3", "1e30"),
    );
    assert!(error.contains("learning rate") && error.contains("diverged"), "{error}");
}

#[test]
fn plans_answer_in_the_contracts_form() {
    let place = Place::new();
    let plan = place.json("plan --model llama-2-13b --seq 512").remove(0);
    let methods: Vec<_> =
        plan["methods"].as_array().unwrap().iter().map(|m| m["method"].clone()).collect();
    assert_eq!(methods, ["full", "lora", "qlora"]);
    for method in plan["methods"].as_array().unwrap() {
        let parts = method["categories"].as_object().unwrap();
        let total: u64 = parts.values().map(|part| part.as_u64().unwrap()).sum();
        assert_eq!(total, method["peak_bytes"].as_u64().unwrap());
        for region in method["regions"].as_array().unwrap() {
            assert!(region["name"].is_string() && region["bytes"].is_u64());
            let resident = region["resident"].as_str().unwrap();
            assert!(["device", "host", "disk"].contains(&resident), "{region}");
            let is_paged = resident != "device";
            assert!(!is_paged || method["paging"]["resident"] == resident, "{region}");
        }
    }
    let full = &plan["methods"][0]["categories"];
    let gigabytes = |name: &str| (full[name].as_f64().unwrap() / 1e9).round();
    assert_eq!((gigabytes("weights"), gigabytes("gradients")), (52.0, 52.0));
    assert_eq!(gigabytes("optimizer"), 104.0);
}
