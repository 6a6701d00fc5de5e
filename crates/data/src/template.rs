//! Chat templates: a conversation as the text that the model was trained on.

use std::{fmt, io, path::Path};

use minijinja::{
    Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use serde::Serialize;
use serde_json::Value as Json;

use crate::{DataError, Message, Tokenizer, tokenizer::read_json};

/// The template of models that have none: a turn is its role, its text and an empty line; the
/// assistant's end with the end-of-text token.
const PLAIN: &str = "\
{%- for message in messages -%}
{{ message['role'] + ':\\n' + message['content'] }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif -%}";

/// A model's chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    is_plain: bool,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("is_plain", &self.is_plain).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// The template in a model's folder, or a plain one where there is none.
    ///
    /// # Errors
    /// When the template cannot be read.
    pub fn open(folder: &Path, tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let path = folder.join("chat_template.jinja");
        let source = if path.is_file() {
            Some(
                std::fs::read_to_string(&path)
                    .map_err(|source| DataError::Read { path, source })?,
            )
        } else {
            let config = read_json(&folder.join("tokenizer_config.json"))?;
            match config.get("chat_template") {
                Some(Json::String(template)) => Some(template.clone()),
                // Several, by name.
                Some(Json::Array(templates)) => templates
                    .iter()
                    .find(|template| template["name"] == "default")
                    .or(templates.first())
                    .and_then(|template| template["template"].as_str().map(str::to_owned)),
                _ => None,
            }
        };
        Self::new(source, tokenizer.bos_token(), tokenizer.eos_token())
    }

    /// A template from its source; `None` is the plain one.
    ///
    /// # Errors
    /// When it is no template.
    pub fn new(
        source: Option<String>,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Result<Self, DataError> {
        let is_plain = source.is_none();
        let mut environment = Environment::new();
        // As the reference implementation sets them.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment
            .set_syntax(syntax.map_err(|error| DataError::Template { reason: describe(&error) })?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        let source = source.map_or_else(|| PLAIN.to_owned(), |source| without_marks(&source));
        environment
            .add_template_owned("chat", source)
            .map_err(|error| DataError::Template { reason: describe(&error) })?;
        Ok(Self {
            environment,
            bos_token: bos_token.unwrap_or_default().to_owned(),
            eos_token: eos_token.unwrap_or_default().to_owned(),
            is_plain,
        })
    }

    /// Whether the model has no template of its own.
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The text of a conversation; `add_generation_prompt` opens the assistant's next turn.
    ///
    /// # Errors
    /// When the template refuses the conversation.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, DataError> {
        let rendered = self.environment.get_template("chat").and_then(|template| {
            template.render(context! {
                messages => Value::from(Serde(messages)),
                add_generation_prompt => add_generation_prompt,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            })
        });
        rendered.map_err(|error| DataError::Template { reason: describe(&error) })
    }
}

/// Templates may mark what the assistant says with `{% generation %}` and `{% endgeneration %}`,
/// tags of the reference implementation's own. What is trained is found without them, so they become
/// a condition that always holds, which leaves the white space around them to the same rules.
fn without_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let end = start + length;
        let tag = &rest[start + 2..end];
        let replacement = match tag.trim_matches(['-', '+']).trim() {
            "generation" => Some(tag.replace("generation", "if true")),
            "endgeneration" => Some(tag.replace("endgeneration", "endif")),
            _ => None,
        };
        text.push_str(&rest[..start + 2]);
        text.push_str(replacement.as_deref().unwrap_or(tag));
        rest = &rest[end..];
    }
    text + rest
}

/// As the reference implementation writes JSON into templates: nothing escaped for web pages.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "a value has no JSON").with_source(error)
    };
    let n_spaces: Option<usize> = options.get("indent")?;
    // Python's other options change nothing that templates ask for.
    let mut json = Vec::new();
    match n_spaces {
        Some(n_spaces) => {
            let indent = " ".repeat(n_spaces);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced)),
    }
    .map_err(failed)?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&json).into_owned()))
}

/// JSON on one line, with a space behind each comma and colon, as Python writes it.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

/// Templates that greet with the date get a fixed one: what a model is trained on must not depend
/// on the day.
fn strftime_now(format: String) -> String {
    let parts = [("%d", "01"), ("%b", "Jan"), ("%B", "January"), ("%m", "01"), ("%Y", "2025")];
    parts.into_iter().fold(format, |text, (code, value)| text.replace(code, value))
}
