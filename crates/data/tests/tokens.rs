//! Which tokens are trained on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ops::ControlFlow;

use common::{read_tokens, tokenizer, write_rows, write_tokenizer};
use nibble_data::{
    BatchBuffer, BatchPlan, ChatTemplate, ColumnMapping, DataError, Encoder, Example, Message,
    StreamDecoder, TokenizeOptions, TokenizedDataset, Tokenizer, TrainOn, inspect,
};
use serde_json::json;

const CHATML: &str = "{% for message in messages %}\
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const INSTRUCT: &str = "{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}\
{% endfor %}";

/// Drops what was said before the last turn between angle brackets, as reasoning models do.
const FORGETFUL: &str = "{% for message in messages %}\
{% set content = message.content.split('>')[-1] if not loop.last else message.content %}\
{{ message.role[0] + ':' + content.strip() + eos_token }}{% endfor %}\
{% if add_generation_prompt %}{{ 'a:' }}{% endif %}";

const WHOLE: TokenizeOptions =
    TokenizeOptions { max_tokens: usize::MAX, train_on: TrainOn::Completions };

/// The trained tokens' text between brackets, others plain.
fn shade(example: &Example, template: &ChatTemplate, tokenizer: &Tokenizer) -> String {
    let encoded =
        Encoder { tokenizer, template, options: WHOLE, n_threads: 1 }.encode(example).unwrap();
    let mut text = String::new();
    let mut inside = false;
    for (id, trained) in encoded.ids.iter().zip(&encoded.trained) {
        if inside != *trained {
            text.push(if inside { ']' } else { '[' });
            inside = *trained;
        }
        text.push_str(&tokenizer.decode(&[*id], false).unwrap());
    }
    if inside {
        text.push(']');
    }
    text
}

fn chat(turns: &[(&str, &str)]) -> Example {
    let message = |(role, content): &(&str, &str)| Message {
        role: (*role).into(),
        content: (*content).into(),
    };
    Example::Messages(turns.iter().map(message).collect())
}

#[test]
fn only_what_the_model_should_say_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let plain = |source: Option<&str>| {
        ChatTemplate::new(source.map(str::to_owned), Some("<s>"), Some("</s>")).unwrap()
    };
    let two = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")];
    for (template, example, expected) in [
        (None, Example::Text("hi".into()), "[hi</s>]"),
        (None, Example::Text("hi</s>".into()), "[hi</s>]"),
        (None, Example::Completion { prompt: "q: ".into(), completion: "a".into() }, "q: [a</s>]"),
        (None, chat(&two[..2]), "user:\nq\n\nassistant:\n[a</s>]\n\n"),
        (
            Some(CHATML),
            chat(&two[..2]),
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n[</s>]",
        ),
        (Some(INSTRUCT), chat(&two), "<s>[INST] q [/INST][ a</s>][INST] r [/INST][ b</s>]"),
        (
            Some(FORGETFUL),
            chat(&[("user", "q"), ("assistant", "x>a"), ("user", "r"), ("assistant", "y>b")]),
            "u:q</s>a:a</s>u:r</s>a:[y>b</s>]",
        ),
        // A conversation that the person ends teaches the answers before, and no end.
        (Some(INSTRUCT), chat(&two[..3]), "<s>[INST] q [/INST][ a</s>][INST] r [/INST]"),
    ] {
        let shaded = shade(&example, &plain(template), &tokenizer);
        // Brackets of the text itself are not shading; compare with them told apart.
        assert_eq!(shaded, expected, "{template:?}");
    }
}

#[test]
fn the_end_of_turn_of_a_chat_model_is_its_end_of_text() {
    let folder = tempfile::tempdir().unwrap();
    write_tokenizer(folder.path(), json!({ "eos_token": "<|im_end|>", "chat_template": CHATML }));
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    let template = ChatTemplate::open(folder.path(), &tokenizer).unwrap();
    assert!(!template.is_plain());
    let shaded = shade(&chat(&[("user", "q"), ("assistant", "a")]), &template, &tokenizer);
    let expected = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n";
    assert_eq!(shaded, expected);
}

#[test]
fn a_template_that_refuses_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let template = ChatTemplate::new(Some(INSTRUCT.into()), Some("<s>"), Some("</s>")).unwrap();
    let example = chat(&[("system", "s"), ("user", "q"), ("assistant", "a")]);
    let encoder =
        Encoder { tokenizer: &tokenizer, template: &template, options: WHOLE, n_threads: 1 };
    let error = encoder.encode(&example).unwrap_err();
    assert!(error.to_string().contains("Only user and assistant roles"), "{error}");
    let broken = ChatTemplate::new(Some("{% for %}".into()), None, None).unwrap_err();
    assert!(matches!(broken, DataError::Template { .. }));
}

#[test]
fn conversations_that_the_template_refuses_are_counted_by_their_number() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let template = ChatTemplate::new(Some(INSTRUCT.into()), Some("<s>"), Some("</s>")).unwrap();
    let options = TokenizeOptions { max_tokens: 40, train_on: TrainOn::Completions };
    let encoder = Encoder { tokenizer: &tokenizer, template: &template, options, n_threads: 3 };
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let good = json!({ "messages": [turn("user", "q"), turn("assistant", "a")] });
    let mut refused = good.clone();
    refused["messages"].as_array_mut().unwrap().insert(0, turn("system", "s"));
    let data = folder.path().join("data.jsonl");
    write_rows(&data, &[good.clone(), refused.clone(), good.clone()]);
    let tokenized = read_tokens(&data, encoder).unwrap();
    assert_eq!((tokenized.len(), tokenized.refused.len()), (2, 1));
    assert_eq!(tokenized.refused.first()[0].line, 2);
    assert!(tokenized.refused.first()[0].error.contains("Only user and assistant roles"));
    let to_the_end = &mut |_| ControlFlow::Continue(());
    let columns = ColumnMapping::default();
    let inspection = inspect(&data, &columns, encoder, 3, to_the_end).unwrap();
    assert_eq!((inspection.samples.len(), inspection.malformed.len()), (2, 1));
    assert_eq!(inspection.n_malformed, 1);
    write_rows(&data, &[good, refused.clone(), refused]);
    let error = read_tokens(&data, encoder).unwrap_err().to_string();
    assert!(error.contains("2 of 3") && error.contains("line 2"), "{error}");
}

#[test]
fn a_template_may_do_what_the_reference_implementation_lets_it() {
    for (source, expected) in [
        // Marks of what is trained, with every way to treat the white space around them.
        ("a {% generation %} b {% endgeneration %} c", "a  b  c"),
        ("a {%- generation -%} b {%- endgeneration -%} c", "abc"),
        ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "<é> & 'q'"}"#),
        (
            "{{ {'a': [1, 2], 'b': {}} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        ("{{ messages[-1].content.strip().split('q')[0] | trim }}", "<é> & '"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages[1:] | length }}",
            "21",
        ),
        ("{{ messages[0].get('tool_calls') is none }}{{ 'role' in messages[0] }}", "TrueTrue"),
        (
            "{%- if tools is not defined %}{% set tools = none %}{% endif %}{{ tools is none }}",
            "True",
        ),
    ] {
        let template = ChatTemplate::new(Some(source.into()), None, None).unwrap();
        let messages = [Message::user("<é> & 'q'"), Message::user("<é> & 'q'")];
        assert_eq!(template.render(&messages, false).unwrap(), expected, "{source}");
    }
}

/// A base model of a family whose texts begin with a token: without a template of its own, its
/// conversations begin with it as its texts do.
#[test]
fn a_plain_conversation_begins_as_the_model_s_texts_do() {
    let folder = tempfile::tempdir().unwrap();
    write_tokenizer(folder.path(), json!({ "bos_token": "<s>", "eos_token": "</s>" }));
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bos = Tokenizer::open(folder.path()).unwrap().bos_id().unwrap();
    file["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [
            { "SpecialToken": { "id": "<s>", "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } },
        ],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [bos], "tokens": ["<s>"] } },
    });
    std::fs::write(&path, file.to_string()).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    let template = ChatTemplate::open(folder.path(), &tokenizer).unwrap();
    let shaded = shade(&chat(&[("user", "q"), ("assistant", "a")]), &template, &tokenizer);
    assert_eq!(shaded, "<s>user:\nq\n\nassistant:\n[a</s>]\n\n");
    let prompt = tokenizer.encode_prompt("user:", template.is_plain()).unwrap();
    assert_eq!(prompt[0], bos);
}

#[test]
fn cut_and_skipped_examples_are_counted_and_nothing_to_train_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let template = ChatTemplate::new(None, None, Some("</s>")).unwrap();
    let pair =
        |prompt: &str, completion: &str| json!({ "prompt": prompt, "completion": completion });
    let options = TokenizeOptions { max_tokens: 6, train_on: TrainOn::Completions };
    let encoder = Encoder { tokenizer: &tokenizer, template: &template, options, n_threads: 3 };
    let data = folder.path().join("data.jsonl");
    write_rows(&data, &[pair("ab", "cd"), pair("abc", "defgh"), pair("abcdefgh", "i")]);
    let tokenized = read_tokens(&data, encoder).unwrap();
    assert_eq!((tokenized.len(), tokenized.n_cut, tokenized.n_skipped), (2, 2, 1));
    assert_eq!((tokenized.n_tokens(), tokenized.n_trained), (5 + 6, 3 + 3));
    write_rows(&data, &[pair("abcdefgh", "i")]);
    let error = read_tokens(&data, encoder).unwrap_err();
    assert!(error.to_string().contains("abcdefghi"), "{error}");
}

/// More text than is tokenized at a time, on however many cores: the same tokens, in order.
#[test]
fn many_examples_are_tokenized_in_their_order_and_told_as_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let template = ChatTemplate::new(None, None, Some("</s>")).unwrap();
    let options = TokenizeOptions { max_tokens: 3000, train_on: TrainOn::Completions };
    let encoder = Encoder { tokenizer: &tokenizer, template: &template, options, n_threads: 3 };
    let texts: Vec<String> = (0..2000).map(|i| format!("{i} ").repeat(1 + i % 577)).collect();
    let rows: Vec<_> = texts.iter().map(|text| json!({ "text": text })).collect();
    let data = folder.path().join("data.jsonl");
    write_rows(&data, &rows);
    let n_bytes = std::fs::metadata(&data).unwrap().len();
    assert!(n_bytes > 2 << 20);
    let mut told = Vec::new();
    let tokenized = TokenizedDataset::read(
        &data,
        &ColumnMapping::default(),
        encoder,
        Some(folder.path()),
        &mut |n_read| {
            told.push(n_read);
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    assert!(told.len() >= 2 && told.is_sorted() && *told.last().unwrap() <= n_bytes, "{told:?}");
    assert_eq!(tokenized.len(), texts.len());
    for (i, text) in texts.iter().enumerate() {
        let n_tokens = text.len() + 1;
        assert_eq!(tokenized.example_len(i), n_tokens.min(3000), "example {i}");
    }
    let everything: Vec<usize> = (0..texts.len()).collect();
    let mut plan = BatchPlan::new(&tokenized, &everything, (1, 3000), false, 0);
    let mut batch = BatchBuffer::new(plan.capacity());
    for index in 0..plan.len() {
        let example = plan.micro_batch(0, index).examples[0] as usize;
        plan.fill(&tokenized, 0, index, &mut batch).unwrap();
        let whole = encoder.encode(&Example::Text(texts[example].clone())).unwrap();
        assert_eq!(*batch.ids(), whole.ids[..batch.ids().len()], "example {example}");
    }
    let broken_off = &mut |_| ControlFlow::Break(());
    let columns = ColumnMapping::default();
    let error = TokenizedDataset::read(&data, &columns, encoder, None, broken_off).unwrap_err();
    assert!(matches!(error, DataError::Cancelled), "{error}");
}

#[test]
fn tokenizers_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Tokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("no tokenizer.json"), "{missing}");
    let tokenizer = tokenizer(folder.path());
    let n = tokenizer.n_tokens();
    assert!(tokenizer.check_vocabulary(n + 20).is_ok());
    assert!(tokenizer.check_vocabulary(n).is_ok());
    assert!(tokenizer.check_vocabulary(n - 1).is_err());
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(Tokenizer::open(folder.path()).unwrap_err().to_string().contains("tokenizer.json"));
}

#[test]
fn streamed_text_is_the_whole_text() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let ids = tokenizer.encode("Hello, you!", false).unwrap();
    let mut decoder = StreamDecoder::new(&tokenizer);
    let mut text = String::new();
    for id in &ids {
        text.extend(decoder.push(*id).unwrap());
    }
    text.extend(decoder.finish().unwrap());
    assert_eq!(text, tokenizer.decode(&ids, true).unwrap());
}

#[test]
fn the_beginning_of_a_long_text_has_the_tokens_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let template = ChatTemplate::new(None, Some("<s>"), Some("</s>")).unwrap();
    let words = "the quick brown fox, 12 dogs and \u{72d0}\u{72f8}\n\n  jump ".repeat(4000);
    let one_word = "\u{72d0}\u{72f8}x".repeat(20_000);
    for text in [words, one_word] {
        let encoder =
            |options| Encoder { tokenizer: &tokenizer, template: &template, options, n_threads: 3 };
        let example = Example::Text(text);
        let whole = encoder(WHOLE).encode(&example).unwrap();
        for max_tokens in [1, 7, 100, 3000] {
            let options = TokenizeOptions { max_tokens, ..WHOLE };
            let beginning = encoder(options).encode(&example).unwrap();
            assert_eq!(beginning.ids[..max_tokens], whole.ids[..max_tokens]);
            assert_eq!(beginning.trained[..max_tokens], whole.trained[..max_tokens]);
            let n_most = 16 * (max_tokens + 256) + 4096;
            assert!(beginning.ids.len() > max_tokens && beginning.ids.len() <= n_most);
        }
        let short = TokenizeOptions { max_tokens: whole.ids.len(), ..WHOLE };
        let all = encoder(short).encode(&example).unwrap();
        assert_eq!(all, whole);
    }
}
