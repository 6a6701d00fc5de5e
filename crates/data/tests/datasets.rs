//! What files are taken for, and what is said of broken ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::{ControlFlow, Deref};

use nibble_data::{ColumnMapping, DataError, Dataset, Example, Format, Message};

/// A whole file.
#[derive(Debug, PartialEq)]
struct Whole {
    dataset: Dataset,
    examples: Vec<Example>,
    lines: Vec<usize>,
}

impl Deref for Whole {
    type Target = Dataset;

    fn deref(&self) -> &Dataset {
        &self.dataset
    }
}

fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Whole, DataError> {
    read_mapped(name, content, &ColumnMapping::default())
}

fn read_mapped(
    name: &str,
    content: impl AsRef<[u8]>,
    mapping: &ColumnMapping,
) -> Result<Whole, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    let (mut examples, mut lines) = (Vec::new(), Vec::new());
    let on_example = &mut |line, example| {
        examples.push(example);
        lines.push(line);
        Ok(())
    };
    let to_the_end = &mut |_| ControlFlow::Continue(());
    let dataset = Dataset::read(&path, mapping, to_the_end, on_example)?;
    assert_eq!(dataset.n_examples, examples.len());
    Ok(Whole { dataset, examples, lines })
}

#[test]
fn formats_are_recognised() {
    let chat = Example::Messages(vec![Message::user("q"), Message::assistant("a")]);
    let pair = Example::Completion { prompt: "q".into(), completion: "a".into() };
    for (content, format, example) in [
        (r#"{"text":"t"}"#, Format::Text, Example::Text("t".into())),
        (r#"{"prompt":"q","completion":"a"}"#, Format::PromptCompletion, pair.clone()),
        (r#"{"question":"q","answer":"a"}"#, Format::PromptCompletion, pair.clone()),
        (r#"{"instruction":"q","input":"","output":"a"}"#, Format::Alpaca, chat.clone()),
        (r#"{"instruction":"q","input":null,"output":"a"}"#, Format::Alpaca, chat.clone()),
        (
            r#"{"instruction":"q","input":"i","output":"a"}"#,
            Format::Alpaca,
            Example::Messages(vec![Message::user("q\n\ni"), Message::assistant("a")]),
        ),
        (
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#,
            Format::Messages,
            chat.clone(),
        ),
        (
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"q"}]},{"role":"assistant","content":["a"]}]}"#,
            Format::Messages,
            chat.clone(),
        ),
        (
            r#"{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#,
            Format::ShareGpt,
            chat,
        ),
    ] {
        for (name, content) in [
            ("a.jsonl", content.to_owned()),
            ("a.jsonl", format!("\u{feff}{content}\r\n\r\n{content}\r\n")),
            ("a.json", format!("[{content}]")),
            ("a.json", format!("{{\"version\":1,\"data\":[{content}]}}")),
            ("a.json", format!("{content}\n{content}\n")),
        ] {
            let dataset = read(name, &content).unwrap_or_else(|e| panic!("{content}: {e}"));
            assert_eq!(dataset.format, format, "{content}");
            assert_eq!(dataset.examples[0], example, "{content}");
            assert!(dataset.malformed.is_empty(), "{content}");
        }
    }
}

#[test]
fn plain_text_is_one_example_a_paragraph() {
    let dataset = read("a.txt", "one\ntwo\n\n\nthree\n").unwrap();
    let texts = ["one\ntwo", "three"].map(|text| Example::Text(text.into()));
    assert_eq!(dataset.examples, texts);
}

#[test]
fn columns_can_be_named_by_hand() {
    let mapping = ColumnMapping {
        prompt: Some("ask".into()),
        completion: Some("say".into()),
        ..ColumnMapping::default()
    };
    let dataset = read_mapped("a.jsonl", r#"{"ask":"q","say":3}"#, &mapping).unwrap();
    let pair = Example::Completion { prompt: "q".into(), completion: "3".into() };
    assert_eq!(dataset.examples, [pair]);
    let error = read_mapped("a.jsonl", r#"{"ask":"q","told":3}"#, &mapping).unwrap_err();
    assert!(error.to_string().contains("no `say` among its columns `ask`, `told`"), "{error}");
}

#[test]
fn malformed_lines_are_counted_by_their_number() {
    let content = "{\"text\":\"a\"}\n\n{broken\n{\"text\":\"b\"}\n{\"text\":7e}\n{\"text\":\"c\"}\n\
                   {\"text\":null}\n{\"text\":\"d\"}\n";
    let dataset = read("a.jsonl", content).unwrap();
    assert_eq!(dataset.examples.len(), 4);
    let lines: Vec<_> = dataset.malformed.first().iter().map(|line| line.line).collect();
    assert_eq!(lines, [3, 5, 7]);
    assert!(dataset.malformed.first()[2].error.contains("`text` is null"));
    assert_eq!(dataset.lines, [1, 4, 6, 8]);
    // Within a line there is one number that helps: the column.
    let error = &dataset.malformed.first()[0].error;
    assert!(error.contains("(column 2)") && !error.contains("line 1"), "{error}");
    // The same lines, in a file that is called JSON.
    let named_json = read("a.json", content).unwrap();
    assert_eq!(named_json, dataset);
}

/// Whatever is in it: a person who took the wrong file waits for no more than a part of it.
#[test]
fn a_file_of_bad_lines_is_broken_off_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photo.jsonl");
    std::fs::write(&path, "no JSON at all\n".repeat(300_000)).unwrap();
    let mut told = Vec::new();
    let twice = &mut |n_read| {
        told.push(n_read);
        if told.len() < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let columns = ColumnMapping::default();
    let result = Dataset::read(&path, &columns, twice, &mut |_, _| unreachable!());
    assert!(matches!(result, Err(DataError::Cancelled)), "{result:?}");
    assert!(told[1] < 3 << 20, "{told:?}");
}

#[test]
fn of_very_many_malformed_lines_the_first_are_remembered() {
    let content: String = (0..1500).map(|_| "{\"text\": \"a\"}\n{\"text\": 1\n").collect();
    let dataset = read("a.jsonl", content).unwrap();
    assert_eq!((dataset.examples.len(), dataset.malformed.len()), (1500, 1500));
    assert_eq!(dataset.malformed.first().len(), 1000);
    assert_eq!(dataset.malformed.first()[999].line, 2000);
}

#[test]
fn files_from_other_systems_are_read() {
    let content = "\u{feff}{\"text\":\"naïve 🦜\"}\r\n\r\n{\"text\":\"b\"}\r\n{oops}\r\n";
    let dataset = read("a.jsonl", content).unwrap();
    assert_eq!(dataset.examples, ["naïve 🦜", "b"].map(|text| Example::Text(text.into())));
    assert_eq!(dataset.malformed.first()[0].line, 4);
    let dataset = read("a.txt", "\u{feff}one\r\ntwo\r\n\r\nthree").unwrap();
    assert_eq!(dataset.examples, ["one\ntwo", "three"].map(|text| Example::Text(text.into())));
    assert_eq!(dataset.lines, [1, 4]);
    let wide: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let error = read("a.jsonl", wide).unwrap_err().to_string();
    assert!(error.contains("UTF-16") && error.contains("UTF-8"), "{error}");
}

#[test]
fn files_that_cannot_be_trained_on_say_why() {
    for (name, content, expected) in [
        ("a.jsonl", "", "holds no examples"),
        ("a.jsonl", "\n\n", "holds no examples"),
        ("a.json", "[]", "holds no examples"),
        ("a.txt", "\n \n", "holds no examples"),
        ("a.jsonl", r#"{"foo":"x","bar":"y"}"#, "`foo`"),
        ("a.jsonl", "{broken\n{broken\n{\"text\":\"a\"}", "2 of 3 examples"),
        ("a.json", "[{\"text\":\"a\"}", "is no JSON"),
        ("a.jsonl", "\u{0}\u{1}binary", "cannot be read"),
        ("a.jsonl", "[1,2,3]", "cannot be read"),
        ("a.jsonl", r#"{"messages":[]}"#, "no messages"),
        ("a.csv", "prompt,completion\na,b\n", "one JSON object a line"),
        ("a.jsonl", r#"{"conversations":[{"from":"dog","value":"x"}]}"#, "`dog`"),
    ] {
        let error = read(name, content).unwrap_err().to_string();
        assert!(error.contains(expected), "{content:?}: {error}");
    }
    let path = "/no/such/file.jsonl".as_ref();
    let columns = ColumnMapping::default();
    let missing =
        Dataset::read(path, &columns, &mut |_| unreachable!(), &mut |_, _| unreachable!());
    assert!(missing.unwrap_err().to_string().contains("/no/such/file.jsonl"));
}

#[test]
fn text_that_is_no_utf8_is_malformed_and_nothing_worse() {
    let mut content = b"{\"text\":\"a\"}\n{\"text\":\"b\"}\n".to_vec();
    content.extend(b"{\"text\":\"\xff\xfe\"}\n");
    let dataset = read("a.jsonl", content).unwrap();
    assert_eq!((dataset.examples.len(), dataset.malformed.first()[0].line), (2, 3));
    let error = read("a.txt", b"\xe9t\xe9\n\n\xe9t\xe9\n").unwrap_err().to_string();
    assert!(error.contains("2 of 2") && error.contains("utf-8"), "{error}");
}
