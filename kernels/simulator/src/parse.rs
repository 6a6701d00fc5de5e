//! A module's text: its constants, and the kernels with their parameters, shared memory and statements.

use std::{collections::HashMap, sync::Arc};

use crate::{
    decode::{Names, decode},
    instruction::{Instruction, Operation, Type},
    memory::CONSTANT_BASE,
};

/// Why a text is no module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the PTX: {what}")]
pub struct ParseError {
    /// From 1.
    pub line: u32,
    /// What is wrong.
    pub what: String,
}

/// A kernel, ready to run.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) n_registers: usize,
    pub(crate) parameter_bytes: usize,
    /// Shared memory that it declares itself.
    pub(crate) shared_bytes: usize,
    pub(crate) local_bytes: usize,
    pub(crate) max_threads: Option<u32>,
    /// What the module's constants hold; read only.
    pub(crate) constants: Arc<[u8]>,
    pub(crate) lines: Arc<[String]>,
}

impl Kernel {
    /// Bytes of shared memory that it declares itself.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// Bytes of its arguments.
    pub fn parameter_bytes(&self) -> usize {
        self.parameter_bytes
    }
}

/// The kernels of one text.
#[derive(Debug)]
pub struct Module {
    kernels: HashMap<String, Arc<Kernel>>,
}

/// A statement or a brace, and where it stands.
struct Statement {
    line: u32,
    text: String,
}

impl Module {
    /// Reads a module.
    ///
    /// # Errors
    /// When the text is none. Instructions that are not understood are no error until they are met.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let lines: Arc<[String]> = text.lines().map(|line| line.trim().to_owned()).collect();
        let statements = statements(text);
        let mut constants = Vec::new();
        let mut symbols = HashMap::new();
        let mut kernels = Vec::new();
        let mut shared = Vec::new();
        let mut at = 0;
        while at < statements.len() {
            let Statement { line, text } = &statements[at];
            let error = |what: &str| ParseError { line: *line, what: what.to_owned() };
            at += 1;
            if text.contains(".entry") || text.contains(".func") {
                let is_kernel = text.contains(".entry");
                // A declaration alone has no body.
                if statements.get(at).is_none_or(|next| next.text != "{") {
                    continue;
                }
                let end =
                    end_of_body(&statements, at).ok_or_else(|| error("a body without an end"))?;
                if is_kernel {
                    kernels.push(kernel(text, *line, (&shared, &statements[at..=end]), &symbols)?);
                }
                at = end + 1;
            } else if text.starts_with(".extern .shared") {
                // Behind what each kernel declares, and so placed by it.
                let (name, _, align) =
                    variable(text).ok_or_else(|| error("shared memory without a name"))?;
                symbols.insert(name, Symbol::DynamicShared { align });
            } else if text.starts_with(".shared") {
                // One that several functions have: every kernel gets it.
                shared.push(Statement { line: *line, text: text.clone() });
            } else if text.starts_with(".const") || text.starts_with(".global") {
                let (name, n_bytes, align) = variable(text).ok_or_else(|| error("no variable"))?;
                constants.resize(constants.len().next_multiple_of(align), 0);
                symbols.insert(name, Symbol::At(CONSTANT_BASE + constants.len() as u64));
                constants
                    .extend(initial(text, n_bytes).ok_or_else(|| error("no such initial value"))?);
            }
        }
        let constants: Arc<[u8]> = constants.into();
        let finish = |mut kernel: Kernel| {
            kernel.constants = Arc::clone(&constants);
            kernel.lines = Arc::clone(&lines);
            (kernel.name.clone(), Arc::new(kernel))
        };
        Ok(Self { kernels: kernels.into_iter().map(finish).collect() })
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<Arc<Kernel>> {
        self.kernels.get(name).cloned()
    }

    /// The names of all kernels.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.kernels.keys().map(String::as_str)
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub enum Symbol {
    At(u64),
    /// Where a kernel's own shared memory ends, aligned.
    DynamicShared {
        align: usize,
    },
}

/// The text without comments, cut at semicolons, braces of bodies, and labels.
fn statements(text: &str) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut current = String::new();
    let mut start = 0;
    // Braces inside a statement are operands or initial values.
    let mut depth = 0_usize;
    for (number, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        let header =
            [".version", ".target", ".address_size", ".maxntid", ".minnctapersm", ".reqntid"];
        for c in line.chars() {
            if current.trim().is_empty() {
                start = number as u32 + 1;
            }
            let is_empty = current.trim().is_empty();
            let is_entry = current.contains(".entry") || current.contains(".func");
            match c {
                ';' if depth == 0 => {
                    statements.push(Statement { line: start, text: current.trim().to_owned() });
                    current.clear();
                }
                '{' if depth == 0 && (is_empty || is_entry) => {
                    if !is_empty {
                        statements.push(Statement { line: start, text: current.trim().to_owned() });
                        current.clear();
                    }
                    statements.push(Statement { line: number as u32 + 1, text: "{".into() });
                }
                '}' if depth == 0 => {
                    statements.push(Statement { line: number as u32 + 1, text: "}".into() });
                    current.clear();
                }
                ':' if depth == 0
                    && !is_empty
                    && !current.trim().contains([' ', '\t', '.', '[']) =>
                {
                    let text = format!("{}:", current.trim());
                    statements.push(Statement { line: start, text });
                    current.clear();
                }
                _ => {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    current.push(c);
                }
            }
        }
        current.push(' ');
        // Directives that end with their line.
        if depth == 0 && header.iter().any(|word| current.trim().starts_with(word)) {
            current.clear();
        }
    }
    statements
}

fn end_of_body(statements: &[Statement], start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, statement) in statements.iter().enumerate().skip(start) {
        match statement.text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Name, size and alignment of a declared variable or parameter.
fn variable(text: &str) -> Option<(String, usize, usize)> {
    let declared = text.split('=').next()?.trim();
    let mut words = declared.split_whitespace().peekable();
    let (mut align, mut ty, mut name) = (None, None, None);
    while let Some(word) = words.next() {
        if word == ".align" {
            align = words.next()?.parse().ok();
        } else if let Some(found) = word.strip_prefix('.').and_then(Type::parse) {
            ty = Some(found);
        } else if !word.starts_with('.') {
            name = Some(word);
        }
    }
    let (name, ty) = (name?, ty?);
    let (name, n) = match name.split_once('[') {
        Some((name, rest)) => {
            let count = rest.trim_end_matches(']');
            (name, if count.is_empty() { 0 } else { count.parse().ok()? })
        }
        None => (name, 1),
    };
    Some((name.to_owned(), ty.n_bytes() * n, align.unwrap_or(ty.n_bytes())))
}

/// The bytes that a variable begins with.
fn initial(text: &str, n_bytes: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(n_bytes);
    if let Some((declared, values)) = text.split_once('=') {
        let ty =
            declared.split_whitespace().find_map(|word| Type::parse(word.strip_prefix('.')?))?;
        for value in values.trim().trim_matches(['{', '}']).split(',') {
            let number = crate::decode::literal(value.trim())?;
            bytes.extend(&number.to_le_bytes()[..ty.n_bytes()]);
        }
    }
    (bytes.len() <= n_bytes).then(|| {
        bytes.resize(n_bytes, 0);
        bytes
    })
}

fn kernel(
    header: &str,
    line: u32,
    (shared, body): (&[Statement], &[Statement]),
    symbols: &HashMap<String, Symbol>,
) -> Result<Kernel, ParseError> {
    let error = |line: u32, what: String| ParseError { line, what };
    let after = header.split(".entry").nth(1).unwrap_or_default();
    let (name, rest) = after.split_once('(').unwrap_or((after, ""));
    let (parameters, directives) = rest.split_once(')').unwrap_or((rest, ""));
    let mut names = Names::default();
    let mut parameter_bytes: usize = 0;
    for parameter in parameters.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let (name, n_bytes, align) =
            variable(parameter).ok_or_else(|| error(line, format!("no parameter: {parameter}")))?;
        parameter_bytes = parameter_bytes.next_multiple_of(align);
        names.symbols.insert(name, parameter_bytes as u64);
        parameter_bytes += n_bytes;
    }
    let (mut shared_bytes, mut local_bytes) = (0_usize, 0_usize);
    for statement in shared.iter().chain(body) {
        let text = &statement.text;
        // Addresses are those within the space.
        let total = if text.starts_with(".shared") {
            &mut shared_bytes
        } else if text.starts_with(".local") {
            &mut local_bytes
        } else {
            continue;
        };
        let (name, n_bytes, align) =
            variable(text).ok_or_else(|| error(statement.line, format!("no variable: {text}")))?;
        *total = total.next_multiple_of(align);
        names.symbols.insert(name, *total as u64);
        *total += n_bytes;
    }
    shared_bytes = shared_bytes.next_multiple_of(16);
    if shared_bytes > 0 {
        // Nothing tells which kernel uses it.
        let aligns = symbols.values().filter_map(|symbol| match symbol {
            Symbol::At(_) => None,
            Symbol::DynamicShared { align } => Some(*align),
        });
        shared_bytes = shared_bytes.next_multiple_of(aligns.max().unwrap_or(1));
    }
    for (name, symbol) in symbols {
        let address = match symbol {
            Symbol::At(address) => *address,
            Symbol::DynamicShared { .. } => shared_bytes as u64,
        };
        names.symbols.entry(name.clone()).or_insert(address);
    }
    let mut instructions = Vec::new();
    // Labels first: a branch may go forward.
    let mut next = 0;
    for statement in body {
        match statement.text.strip_suffix(':') {
            Some(label) => {
                names.labels.insert(label.to_owned(), next);
            }
            None if is_instruction(&statement.text) => next += 1,
            None => {}
        }
    }
    for statement in body.iter().filter(|statement| !statement.text.ends_with(':')) {
        if is_instruction(&statement.text) {
            instructions.push(decode(&statement.text, statement.line, &mut names));
        } else {
            names.declare(&statement.text);
        }
    }
    // A body may end without saying so.
    instructions.push(Instruction { operation: Operation::Return, guard: None, line });
    let max_threads = directives
        .split(".maxntid")
        .nth(1)
        .and_then(|rest| rest.split(',').next()?.trim().parse().ok());
    Ok(Kernel {
        name: name.trim().to_owned(),
        instructions,
        n_registers: names.n_registers(),
        parameter_bytes,
        shared_bytes,
        local_bytes,
        max_threads,
        constants: Arc::new([]),
        lines: Arc::new([]),
    })
}

fn is_instruction(text: &str) -> bool {
    !(text.is_empty() || text == "{" || text == "}" || text.starts_with('.'))
}
