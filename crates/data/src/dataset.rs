//! Reading examples: which format a file has, and what is wrong with its lines.

use std::{
    cell::Cell,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    ops::ControlFlow,
    path::Path,
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::DataError;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or whatever the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of the person.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".into(), content: content.into() }
    }
}

/// One example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Example {
    /// A text, trained as a whole.
    Text(String),
    /// A prompt and what should follow it.
    Completion {
        /// What is given.
        prompt: String,
        /// What is trained.
        completion: String,
    },
    /// A conversation, of which the assistant's turns are trained.
    Messages(Vec<Message>),
}

impl Example {
    /// Bytes of its texts.
    pub(crate) fn n_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Completion { prompt, completion } => prompt.len() + completion.len(),
            Self::Messages(messages) => {
                messages.iter().map(|message| message.role.len() + message.content.len()).sum()
            }
        }
    }
}

/// What the examples of a file look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Format {
    /// `{"text"}`
    Text,
    /// `{"prompt", "completion"}`
    PromptCompletion,
    /// `{"instruction", "input"?, "output"}`
    Alpaca,
    /// `{"messages": [{"role", "content"}]}`
    Messages,
    /// `{"conversations": [{"from", "value"}]}`
    #[serde(rename = "sharegpt")]
    ShareGpt,
}

impl Format {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "plain texts",
            Self::PromptCompletion => "prompts with completions",
            Self::Alpaca => "instructions (Alpaca)",
            Self::Messages => "conversations",
            Self::ShareGpt => "conversations (ShareGPT)",
        }
    }
}

/// Columns named by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnMapping {
    /// Column of whole texts.
    pub text: Option<String>,
    /// Column of prompts.
    pub prompt: Option<String>,
    /// Column of completions.
    pub completion: Option<String>,
    /// Column of conversations.
    pub messages: Option<String>,
}

/// An example that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS), ts(rename = "InspectedLine"))]
pub struct MalformedLine {
    /// Its line in the file, from 1; in a JSON array, its number.
    pub line: usize,
    /// What is wrong.
    pub error: String,
}

/// The examples that cannot be read, or used: how many there are, and the first of them. A file may
/// have more than are worth their memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MalformedLines {
    n: usize,
    first: Vec<MalformedLine>,
}

impl MalformedLines {
    /// More than anybody reads.
    pub(crate) const REMEMBERED: usize = 1000;

    /// Adds one that comes after all others.
    pub(crate) fn push(&mut self, line: usize, error: String) {
        self.n += 1;
        if self.first.len() < Self::REMEMBERED {
            self.first.push(MalformedLine { line, error });
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The first of them, at most a thousand.
    pub fn first(&self) -> &[MalformedLine] {
        &self.first
    }
}

/// What a file of examples is, beside the examples themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// What its examples look like.
    pub format: Format,
    /// How many can be read.
    pub n_examples: usize,
    /// Those that cannot.
    pub malformed: MalformedLines,
}

/// What is done with each example, as soon as it is read: it gets the example's place (the line that
/// it begins in, from 1; in a JSON list, its number), and the example.
pub type OnExample<'a> = &'a mut dyn FnMut(usize, Example) -> Result<(), DataError>;

/// Is told how many bytes of a file are read, and may break the reading off.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// How the fields of a row become an example.
#[derive(Clone, Debug)]
enum Columns {
    Text(String),
    Completion { prompt: String, completion: String },
    Alpaca,
    Messages(String),
    ShareGpt(String),
}

impl Columns {
    fn format(&self) -> Format {
        match self {
            Self::Text(_) => Format::Text,
            Self::Completion { .. } => Format::PromptCompletion,
            Self::Alpaca => Format::Alpaca,
            Self::Messages(_) => Format::Messages,
            Self::ShareGpt(_) => Format::ShareGpt,
        }
    }

    /// From the names given by hand, or from the fields of a row.
    fn recognise(mapping: &ColumnMapping, row: &Map<String, Value>) -> Option<Self> {
        let completion = |prompt: &str, completion: &str| Self::Completion {
            prompt: prompt.to_owned(),
            completion: completion.to_owned(),
        };
        match mapping {
            ColumnMapping { messages: Some(column), .. } => {
                return Some(if is_sharegpt(row.get(column)) {
                    Self::ShareGpt(column.clone())
                } else {
                    Self::Messages(column.clone())
                });
            }
            ColumnMapping { prompt, completion: Some(of), .. } => {
                return Some(completion(prompt.as_deref().unwrap_or("prompt"), of));
            }
            ColumnMapping { prompt: Some(prompt), .. } => {
                return Some(completion(prompt, "completion"));
            }
            ColumnMapping { text: Some(column), .. } => return Some(Self::Text(column.clone())),
            _ => {}
        }
        let has = |name: &str| row.contains_key(name);
        for column in ["messages", "conversations", "conversation"] {
            if has(column) {
                return Some(if is_sharegpt(row.get(column)) {
                    Self::ShareGpt(column.to_owned())
                } else {
                    Self::Messages(column.to_owned())
                });
            }
        }
        if has("instruction") && has("output") {
            return Some(Self::Alpaca);
        }
        let pairs = [
            ("prompt", "completion"),
            ("prompt", "response"),
            ("question", "answer"),
            ("input", "output"),
            ("instruction", "response"),
        ];
        if let Some((prompt, of)) = pairs.into_iter().find(|(p, c)| has(p) && has(c)) {
            return Some(completion(prompt, of));
        }
        has("text").then(|| Self::Text("text".to_owned()))
    }

    fn example(&self, row: &Map<String, Value>) -> Result<Example, String> {
        match self {
            Self::Text(column) => string(row, column).map(Example::Text),
            Self::Completion { prompt, completion } => Ok(Example::Completion {
                prompt: string(row, prompt)?,
                completion: string(row, completion)?,
            }),
            Self::Alpaca => {
                let mut prompt = string(row, "instruction")?;
                match row.get("input") {
                    None | Some(Value::Null) => {}
                    Some(_) => {
                        let input = string(row, "input")?;
                        if !input.is_empty() {
                            prompt = format!("{prompt}\n\n{input}");
                        }
                    }
                }
                // A question and its answer: through the chat template, like any conversation.
                let answer = string(row, "output")?;
                Ok(Example::Messages(vec![Message::user(prompt), Message::assistant(answer)]))
            }
            Self::Messages(column) => {
                let messages = array(row, column)?;
                let message = |(i, message): (usize, &Value)| {
                    let message = message
                        .as_object()
                        .ok_or_else(|| format!("message {} is no object", i + 1))?;
                    let within = |error| format!("message {}: {error}", i + 1);
                    Ok(Message {
                        role: string(message, "role").map_err(within)?,
                        content: content(message).map_err(within)?,
                    })
                };
                conversation(messages.iter().enumerate().map(message))
            }
            Self::ShareGpt(column) => {
                let turns = array(row, column)?;
                let message = |(i, turn): (usize, &Value)| {
                    let turn =
                        turn.as_object().ok_or_else(|| format!("turn {} is no object", i + 1))?;
                    let within = |error| format!("turn {}: {error}", i + 1);
                    let from = string(turn, "from").map_err(within)?;
                    let role = match from.as_str() {
                        "human" | "user" => "user",
                        "gpt" | "assistant" | "model" | "chatgpt" | "bot" => "assistant",
                        "system" => "system",
                        other => return Err(within(format!("nobody is known as `{other}`"))),
                    };
                    let content = string(turn, "value").map_err(within)?;
                    Ok(Message { role: role.to_owned(), content })
                };
                conversation(turns.iter().enumerate().map(message))
            }
        }
    }
}

fn is_sharegpt(value: Option<&Value>) -> bool {
    value.and_then(|turns| turns.get(0)).is_some_and(|turn| turn.get("from").is_some())
}

fn conversation(
    messages: impl Iterator<Item = Result<Message, String>>,
) -> Result<Example, String> {
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err("the conversation has no messages".into());
    }
    Ok(Example::Messages(messages))
}

fn string(row: &Map<String, Value>, column: &str) -> Result<String, String> {
    match row.get(column) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(Value::Bool(value)) => Ok(value.to_string()),
        Some(Value::Null) => Err(format!("`{column}` is null")),
        Some(_) => Err(format!("`{column}` is no text")),
        None => Err(format!("there is no `{column}`")),
    }
}

/// What a message says: a text, or a list of parts that are texts.
fn content(message: &Map<String, Value>) -> Result<String, String> {
    let Some(Value::Array(parts)) = message.get("content") else {
        return string(message, "content");
    };
    let text = |(i, part): (usize, &Value)| match part {
        Value::String(text) => Ok(text.clone()),
        _ => part.get("text").and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
            format!("part {} of `content` is no text; only texts can be trained on", i + 1)
        }),
    };
    parts.iter().enumerate().map(text).collect()
}

fn array<'a>(row: &'a Map<String, Value>, column: &str) -> Result<&'a Vec<Value>, String> {
    match row.get(column) {
        Some(Value::Array(values)) => Ok(values),
        Some(_) => Err(format!("`{column}` is no list")),
        None => Err(format!("there is no `{column}`")),
    }
}

/// Turns rows into examples; the first row whose columns are known decides the format.
struct Reader<'a> {
    path: &'a Path,
    mapping: &'a ColumnMapping,
    on_progress: OnProgress<'a>,
    /// What was read when progress was told last.
    n_told: u64,
    on_example: OnExample<'a>,
    columns: Option<Columns>,
    unknown: Option<String>,
    n_examples: usize,
    malformed: MalformedLines,
}

impl<'a> Reader<'a> {
    fn new(
        path: &'a Path,
        mapping: &'a ColumnMapping,
        on_progress: OnProgress<'a>,
        on_example: OnExample<'a>,
    ) -> Self {
        Self {
            path,
            mapping,
            on_progress,
            n_told: 0,
            on_example,
            columns: None,
            unknown: None,
            n_examples: 0,
            malformed: MalformedLines::default(),
        }
    }

    /// Takes the row at `line`, `n_read` bytes into the file.
    fn row(
        &mut self,
        line: usize,
        row: Result<Value, String>,
        n_read: u64,
    ) -> Result<(), DataError> {
        let example = row.and_then(|row| match row {
            Value::Object(row) => {
                if self.columns.is_none() {
                    self.columns = Columns::recognise(self.mapping, &row);
                }
                match &self.columns {
                    Some(columns) => columns.example(&row).map_err(|error| {
                        // The columns that are there tell a name that is spelled otherwise.
                        let names = names(&row);
                        match error.starts_with("there is no") && !names.is_empty() {
                            true => format!("{error} among its columns {names}"),
                            false => error,
                        }
                    }),
                    None => {
                        let names = names(&row);
                        self.unknown.get_or_insert_with(|| names.clone());
                        Err(format!("the columns {names} are not known"))
                    }
                }
            }
            _ => Err("it is no JSON object".into()),
        });
        self.take(line, example, n_read)
    }

    fn take(
        &mut self,
        line: usize,
        example: Result<Example, String>,
        n_read: u64,
    ) -> Result<(), DataError> {
        /// Bytes between two tellings.
        const OFTEN: u64 = 1 << 20;
        match example {
            Ok(example) => {
                self.n_examples += 1;
                (self.on_example)(line, example)?;
            }
            Err(error) => self.malformed.push(line, error),
        }
        if n_read - self.n_told >= OFTEN {
            self.n_told = n_read;
            if (self.on_progress)(n_read).is_break() {
                return Err(DataError::Cancelled);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Dataset, DataError> {
        let path = self.path.to_owned();
        match (self.columns, self.unknown) {
            (None, Some(found)) => Err(DataError::UnknownColumns { path, found }),
            (None, None) if self.malformed.is_empty() => Err(DataError::Empty { path }),
            (columns, _) => {
                let Self { n_examples, malformed, .. } = self;
                // A few bad lines are left out; where most are bad, the file is not what it was
                // taken for.
                match malformed.first().first() {
                    Some(first) if malformed.len() > n_examples => {
                        return Err(DataError::MostlyMalformed {
                            path,
                            n_malformed: malformed.len(),
                            n_lines: n_examples + malformed.len(),
                            line: first.line,
                            reason: first.error.clone(),
                        });
                    }
                    _ => {}
                }
                let Some(columns) = columns else { return Err(DataError::Empty { path }) };
                Ok(Dataset { format: columns.format(), n_examples, malformed })
            }
        }
    }
}

/// The columns of a row, as they are named in messages.
fn names(row: &Map<String, Value>) -> String {
    let names: Vec<_> = row.keys().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// One line of JSON. The parser counts lines from that line on, which would only confuse.
fn parse_line(line: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        format!("it is no JSON: {what} (column {})", error.column())
    })
}

impl Dataset {
    /// Reads a JSON-lines file (an object a line), a JSON file (a list of objects, or an object
    /// that holds one), or a plain text file (one text a paragraph between empty lines), one example
    /// in memory at a time, but for an object that holds a list, which is read whole.
    ///
    /// # Errors
    /// When the file cannot be read, its columns are not known, or most examples are malformed; what
    /// `on_example` says; [`DataError::Cancelled`] when `on_progress` breaks it off.
    pub fn read(
        path: &Path,
        mapping: &ColumnMapping,
        on_progress: OnProgress<'_>,
        on_example: OnExample<'_>,
    ) -> Result<Self, DataError> {
        let failed = |source| DataError::Read { path: path.to_owned(), source };
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
        if let Some(encoding) = wide_encoding(file.fill_buf().map_err(failed)?) {
            return Err(DataError::Encoding { path: path.to_owned(), encoding });
        }
        let reader = Reader::new(path, mapping, on_progress, on_example);
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        if ending == "txt" || ending == "md" {
            if *mapping != ColumnMapping::default() {
                return Err(DataError::NoColumns { path: path.to_owned() });
            }
            return read_text(reader, file);
        }
        match first_byte(&mut file).map_err(failed)? {
            Some(b'[') => read_list(reader, file),
            Some(b'{') if ending == "json" => read_object(reader, file),
            _ => read_lines(reader, file),
        }
    }
}

fn read_lines(mut reader: Reader<'_>, mut file: impl BufRead) -> Result<Dataset, DataError> {
    let path = reader.path;
    let mut line = Vec::new();
    let mut n_read = 0;
    for number in 1.. {
        line.clear();
        let n = file
            .read_until(b'\n', &mut line)
            .map_err(|source| DataError::Read { path: path.to_owned(), source })?;
        n_read += n as u64;
        if n == 0 {
            break;
        }
        let text = line.trim_ascii();
        if !text.is_empty() {
            reader.row(number, parse_line(text), n_read)?;
        }
    }
    reader.finish()
}

/// A list of objects, each read when it comes.
fn read_list(mut reader: Reader<'_>, file: impl BufRead) -> Result<Dataset, DataError> {
    struct Rows<'r, 'a> {
        reader: &'r mut Reader<'a>,
        n_read: &'r Cell<u64>,
        failure: &'r mut Option<DataError>,
    }

    impl<'de> Visitor<'de> for Rows<'_, '_> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of objects")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
            let mut number = 0;
            while let Some(row) = rows.next_element::<Value>()? {
                number += 1;
                if let Err(error) = self.reader.row(number, Ok(row), self.n_read.get()) {
                    *self.failure = Some(error);
                    return Err(A::Error::custom("the row was refused"));
                }
            }
            Ok(())
        }
    }

    let path = reader.path.to_owned();
    let n_read = Cell::new(0);
    let mut failure = None;
    let mut parser = serde_json::Deserializer::from_reader(Counted { file, n_read: &n_read });
    let rows = Rows { reader: &mut reader, n_read: &n_read, failure: &mut failure };
    let read = parser.deserialize_seq(rows).and_then(|()| parser.end());
    match (failure, read) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(match error.is_io() {
            true => DataError::Read { path, source: error.into() },
            false => DataError::Json { path, reason: error.to_string() },
        }),
        _ => reader.finish(),
    }
}

/// An object that holds the list under any one name; else the only example itself, or the first of
/// many, for many a JSON-lines file is called .json.
fn read_object(mut reader: Reader<'_>, mut file: impl BufRead) -> Result<Dataset, DataError> {
    let failed = |source| DataError::Read { path: reader.path.to_owned(), source };
    let mut first = Vec::new();
    file.read_until(b'\n', &mut first).map_err(failed)?;
    if serde_json::from_slice::<Value>(&first).is_ok()
        && first_byte(&mut file).map_err(failed)?.is_some()
    {
        return read_lines(reader, Cursor::new(first).chain(file));
    }
    let mut bytes = first;
    file.read_to_end(&mut bytes).map_err(failed)?;
    let n_bytes = bytes.len() as u64;
    let mut fields = match serde_json::from_slice(&bytes) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return reader.finish(),
        Err(error) => {
            let path = reader.path.to_owned();
            return read_lines(reader, Cursor::new(bytes)).map_err(|failure| match failure {
                // Neither as a whole nor line by line: what is wrong with the whole says more.
                DataError::MostlyMalformed { .. } => {
                    DataError::Json { path, reason: error.to_string() }
                }
                other => other,
            });
        }
    };
    let is_list = |value: &Value| {
        value.as_array().is_some_and(|list| list.first().is_some_and(Value::is_object))
    };
    let mut lists = fields.iter().filter(|(_, value)| is_list(value)).map(|(name, _)| name);
    let only_list = lists.next().filter(|_| lists.next().is_none()).cloned();
    let is_known = Columns::recognise(reader.mapping, &fields).is_some();
    let rows = match only_list.filter(|_| !is_known).map(|name| fields[&name].take()) {
        Some(Value::Array(rows)) => rows,
        _ => vec![Value::Object(fields)],
    };
    for (i, row) in rows.into_iter().enumerate() {
        reader.row(i + 1, Ok(row), n_bytes)?;
    }
    reader.finish()
}

fn read_text(mut reader: Reader<'_>, file: impl BufRead) -> Result<Dataset, DataError> {
    let path = reader.path.to_owned();
    reader.columns = Some(Columns::Text(String::new()));
    let mut paragraph = (0, String::new());
    let mut n_read = 0;
    for (i, line) in file.split(b'\n').enumerate() {
        let line = line.map_err(|source| DataError::Read { path: path.clone(), source })?;
        n_read += line.len() as u64 + 1;
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line);
        match std::str::from_utf8(line) {
            Ok(text) if !text.trim().is_empty() => {
                let (first, words) = &mut paragraph;
                if words.is_empty() {
                    *first = i + 1;
                } else {
                    words.push('\n');
                }
                words.push_str(text.trim_end());
            }
            Ok(_) if paragraph.1.is_empty() => {}
            Ok(_) => {
                let (first, words) = std::mem::take(&mut paragraph);
                reader.take(first, Ok(Example::Text(words)), n_read)?;
            }
            Err(error) => reader.take(i + 1, Err(error.to_string()), n_read)?,
        }
    }
    let (first, words) = paragraph;
    if !words.is_empty() {
        reader.take(first, Ok(Example::Text(words)), n_read)?;
    }
    if reader.n_examples == 0 && reader.malformed.is_empty() {
        return Err(DataError::Empty { path });
    }
    reader.finish()
}

/// Counts the bytes that are read through it.
struct Counted<'a, R> {
    file: R,
    n_read: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.n_read.set(self.n_read.get() + n as u64);
        Ok(n)
    }
}

/// What a file in an encoding of two or four bytes a character begins with.
fn wide_encoding(start: &[u8]) -> Option<&'static str> {
    let marks: [(&[u8], &str); 4] = [
        (b"\xff\xfe\0\0", "UTF-32"),
        (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
    ];
    marks.into_iter().find(|(mark, _)| start.starts_with(mark)).map(|(_, name)| name)
}

/// Passes over a byte-order mark and white space; the first byte of the content, still unread.
fn first_byte(file: &mut impl BufRead) -> std::io::Result<Option<u8>> {
    if file.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        file.consume(3);
    }
    let buffer = file.fill_buf()?;
    // Line numbers count from the file's beginning, so that white space is looked past, not read.
    Ok(buffer.iter().copied().find(|byte| !byte.is_ascii_whitespace()))
}
