//! Paged runs on a disk that fills up, and with files that other programs take away: a clear error, the
//! last checkpoint whole, and a resumed run that is bit for bit the one that nothing disturbed.
//!
//! Linux alone lets a test fill a disk of its own and lower the limits of a running program.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "every test program uses its own part")]
mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
    time::Duration,
};

use common::{Place, files};
use nibble_run::RunFolder;
use serde_json::Value;

/// Steps that take seconds: what happens to a run after its 30th happens long before its end.
const STEPS: usize = 150;

const METHODS: [&str; 2] = ["full --optimizer adamw-8bit", "qlora --dropout 0.1"];

fn train(method: &str) -> String {
    format!(
        "train --model @model --data @data.jsonl --seq 128 --batch 8 --rank 4 --lr 1e-3 --steps {STEPS} \
         --save-every 20 --method {method}"
    )
}

/// What the run that nothing disturbs ends with.
fn expected(place: &Place, method: &str) -> Vec<(String, Vec<u8>)> {
    place.json(&format!("{} --out @whole --paged off", train(method)));
    let last = files(&place.path("whole").join("checkpoints").join("step-000150"));
    fs::remove_dir_all(place.path("whole")).unwrap();
    last
}

/// The events of a run.
type Events = Lines<BufReader<ChildStdout>>;

/// Starts a run of which everything is paged, and returns soon after it has done step 30.
fn start(place: &Place, method: &str) -> (Child, Events) {
    let run = place.command(&format!("{} --out @run --paged on --json", train(method)));
    // A file beyond its limit is then an error, as a full disk is, not a signal.
    let mut run = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .env("NIBBLE_CACHE", place.path("cache"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    let is_due = |line: String| {
        let event: Value = serde_json::from_str(&line).unwrap();
        event["event"] == "step" && event["step"] == 30
    };
    assert!(lines.any(|line| is_due(line.unwrap())), "it ended before");
    (run, lines)
}

/// The one line of a program that failed.
fn one_error(output: &Output, case: &str) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{case}: {errors}");
    assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
    errors
}

/// That every checkpoint of the run is whole and nothing else is left; the step of the last.
fn last_checkpoint(run: &Path) -> u64 {
    let checkpoints = RunFolder::open(run).unwrap().checkpoints().unwrap();
    let n_entries = fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(n_entries, checkpoints.len(), "nothing half-written is left");
    checkpoints.last().unwrap().step
}

#[test]
fn a_page_file_that_is_disturbed_ends_a_run_that_resumes_bit_for_bit() {
    let limit = |run: &Child, _: &Path| {
        // Pages that end beyond it are refused, as a full disk refuses them; the metrics are shorter.
        let mut prlimit = Command::new("prlimit");
        let limited = prlimit.args(["--pid", &run.id().to_string(), "--fsize=32768:"]).status();
        assert!(limited.unwrap().success());
    };
    let remove = |_: &Child, pages: &Path| fs::remove_file(pages).unwrap();
    let shrink = |_: &Child, pages: &Path| {
        // Again and again: a page file of which nothing is read before all of it is written anew is
        // whole again after one cut.
        let pages = fs::OpenOptions::new().write(true).open(pages).unwrap();
        for _ in 0..200 {
            pages.set_len(4096).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
    };
    type Disturbance = fn(&Child, &Path);
    let disturbances: [(&str, Disturbance); 3] =
        [("space", limit), ("removed", remove), ("page file", shrink)];
    for method in METHODS {
        let place = Place::new();
        let expected = expected(&place, method);
        for (word, disturb) in disturbances {
            let (run, events) = start(&place, method);
            let pages = place.path("run").join("pages.bin");
            assert!(pages.is_file());
            disturb(&run, &pages);
            // It goes on beside a reader that has gone.
            drop(events);
            let error = one_error(&run.wait_with_output().unwrap(), &format!("{method} {word}"));
            assert!(error.contains("page file") && error.contains(word), "{method}: {error}");
            assert!(error.contains("resume"), "{method}: {error}");
            assert!(!pages.exists(), "{method} {word}: the page file goes with the run");
            let step = last_checkpoint(&place.path("run"));
            assert!((20..STEPS as u64).contains(&step), "{method} {word}: {step}");
            place.json("resume @run");
            let last = files(&place.path("run").join("checkpoints").join("step-000150"));
            assert_eq!(last, expected, "{method} {word}");
            fs::remove_dir_all(place.path("run")).unwrap();
        }
    }
}

#[test]
fn a_killed_runs_page_file_is_gone_after_the_next_sitting() {
    let place = Place::new();
    let (mut run, _events) = start(&place, METHODS[1]);
    run.kill().unwrap();
    run.wait().unwrap();
    let pages = place.path("run").join("pages.bin");
    let left_bytes = fs::metadata(&pages).unwrap().len();
    // Also when the next sitting does not page.
    let settings = place.path("run").join("run.toml");
    let text = fs::read_to_string(&settings).unwrap();
    for paging in ["on", "off"] {
        fs::write(&pages, vec![0xff; left_bytes as usize]).unwrap();
        let steps = if paging == "on" { STEPS } else { STEPS + 5 };
        let text = text.replace(&format!("steps = {STEPS}"), &format!("steps = {steps}"));
        fs::write(&settings, text.replace("paged = \"on\"", &format!("paged = \"{paging}\"")))
            .unwrap();
        place.json("resume @run");
        assert!(!pages.exists(), "{paging}");
    }
}

/// Runs `script` where `$disk` is a disk of its own of `size`, alone in seeing it, with `$1` the
/// program and `$2` the place's folder.
fn on_a_small_disk(place: &Place, size: &str, script: &str) -> Output {
    let disk = place.path("disk");
    fs::create_dir_all(&disk).unwrap();
    let script = format!("set -e\nmount -t tmpfs -o size={size} none \"$disk\"\n{script}");
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
        .arg(env!("CARGO_BIN_EXE_nibble"))
        .arg(place.path(""))
        .env("NIBBLE_CACHE", place.path("cache"))
        .env("disk", &disk)
        .output()
        .unwrap()
}

#[test]
#[ignore = "needs a system that lets everybody mount a disk of their own"]
fn a_disk_without_room_for_the_page_file_is_told_at_the_start() {
    let place = Place::new();
    let train = train("full --out @disk/run --paged on");
    let words = train.split_whitespace().map(|word| word.replace('@', "$2/"));
    let command = words.collect::<Vec<_>>().join(" ");
    let output = on_a_small_disk(
        &place,
        "256k",
        &format!("\"$1\" {command} || {{ code=$?; ls \"$disk\"; exit $code; }}"),
    );
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    let numbers = error.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok());
    let numbers: Vec<u64> = numbers.collect();
    let missing = numbers.windows(3).any(|n| n[0] > n[1] && n[0] - n[1] == n[2]);
    assert!(error.contains("page file") && error.contains("free") && missing, "{error}");
    assert!(output.stdout.is_empty(), "a run that was refused leaves nothing behind");
}

#[test]
#[ignore = "needs a system that lets everybody mount a disk of their own"]
fn a_disk_that_fills_up_beside_a_paged_run_costs_no_checkpoint() {
    let place = Place::new();
    for method in METHODS {
        let expected = expected(&place, method);
        let train = train(&format!("{method} --out @disk/run --paged on"));
        let words = train.split_whitespace().map(|word| word.replace('@', "$2/"));
        let command = words.collect::<Vec<_>>().join(" ");
        // Beside the page file and the first checkpoint somebody else takes nearly all that is left:
        // the metrics go on, the next checkpoint does not fit. Then they give it back.
        let script = format!(
            r#"
            trap '' PIPE
            (code=0; "$1" {command} --json 2> "$2/error" || code=$?; echo $code > "$2/code") |
                while read -r line; do
                    case "$line" in
                        *'"event":"checkpoint"'*)
                            free=$(df -k --output=avail "$disk" | tail -n 1)
                            [ -e "$disk/filler" ] ||
                                head -c $(((free - 48) * 1024)) /dev/zero > "$disk/filler";;
                    esac
                done
            ls "$disk/run/checkpoints" > "$2/left"
            rm "$disk/filler"
            rm -rf "$2/result"
            "$1" resume "$disk/run" > "$2/log"
            cp -r "$disk/run/checkpoints/step-000150" "$2/result"
            ls "$disk/run" > "$2/run-left"
            "#
        );
        let output = on_a_small_disk(&place, "8m", &script);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{method}: {said}");
        let read = |name: &str| fs::read_to_string(place.path(name)).unwrap();
        assert_eq!(read("code").trim(), "1", "{method}: {}", read("error"));
        let error = read("error");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        assert!(error.contains("checkpoint") && error.contains("space"), "{error}");
        let left = read("left");
        assert!(left.contains("step-000") && !left.contains(".tmp"), "{left}");
        assert_eq!(files(&place.path("result")), expected, "{method}");
        assert!(!read("run-left").contains("pages.bin"));
    }
}
