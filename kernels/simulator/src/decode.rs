//! One statement's text to an instruction.

use std::collections::HashMap;

use crate::instruction::{
    Binary, Convert, EQUAL, GREATER, Instruction, LESS, Operation, Outcomes, Place, Rounding,
    Shuffle, Space, Special, Ternary, Type, UNORDERED, Unary, Value, Vote,
};

/// What names stand for in a kernel.
#[derive(Debug, Default)]
pub struct Names {
    registers: HashMap<String, u32>,
    /// Names that were declared without a percent sign.
    declared: Vec<String>,
    /// Variables and parameters: their addresses.
    pub symbols: HashMap<String, u64>,
    /// Labels: the instruction behind each.
    pub labels: HashMap<String, u32>,
}

impl Names {
    pub fn n_registers(&self) -> usize {
        self.registers.len()
    }

    /// Takes note of `.reg` declarations of single registers, as inline code has them.
    pub fn declare(&mut self, text: &str) {
        if let Some(rest) = text.strip_prefix(".reg") {
            let names = rest.trim().split_once([' ', '\t']).map_or("", |(_, names)| names);
            let names = names.split(',').map(|name| name.trim().to_owned());
            self.declared.extend(names.filter(|name| !name.contains('<')));
        }
    }

    fn register(&mut self, name: &str) -> Option<u32> {
        if !(name.starts_with('%') || self.declared.iter().any(|declared| declared == name)) {
            return None;
        }
        let next = self.registers.len() as u32;
        Some(*self.registers.entry(name.to_owned()).or_insert(next))
    }

    fn value(&mut self, text: &str) -> Option<Value> {
        let text = text.trim();
        if let Some(special) = special(text) {
            return Some(Value::Special(special));
        }
        if let Some(&address) = self.symbols.get(text) {
            return Some(Value::Constant(address));
        }
        self.register(text).map(Value::Register).or_else(|| literal(text).map(Value::Constant))
    }

    /// `[base + offset]`.
    fn place(&mut self, text: &str) -> Option<Place> {
        let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?;
        let (base, offset) = match inner.split_once('+') {
            Some((base, offset)) => (base, literal(offset.trim())? as i64),
            None => (inner, 0),
        };
        Some(Place { base: self.value(base)?, offset })
    }

    /// The registers that are written: one, or several in braces, `_` for none.
    fn targets(&mut self, text: &str) -> Option<Box<[Option<u32>]>> {
        parts(text)
            .map(|name| if name == "_" { Some(None) } else { self.register(name).map(Some) })
            .collect()
    }

    fn values(&mut self, text: &str) -> Option<Box<[Value]>> {
        parts(text).map(|name| self.value(name)).collect()
    }
}

/// The members of an operand in braces, or the operand.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim();
    text.strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
        .unwrap_or(text)
        .split(',')
        .map(str::trim)
}

fn special(text: &str) -> Option<Special> {
    let axis = |name: &str| ["x", "y", "z"].iter().position(|axis| *axis == name);
    Some(match text.strip_prefix('%')? {
        "laneid" => Special::Lane,
        "warpid" => Special::Warp,
        "clock" | "clock64" => Special::Clock,
        name => {
            let (name, of) = name.split_once('.')?;
            let of = axis(of)?;
            match name {
                "tid" => Special::Thread(of),
                "ntid" => Special::BlockSize(of),
                "ctaid" => Special::Block(of),
                "nctaid" => Special::GridSize(of),
                _ => return None,
            }
        }
    })
}

/// A number as it stands in the text; floats by their bits.
pub fn literal(text: &str) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let digits = digits.strip_suffix('U').unwrap_or(digits);
    let hexadecimal = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let number = if let Some(bits) = digits.strip_prefix("0f").or_else(|| digits.strip_prefix("0F"))
    {
        return hexadecimal(bits);
    } else if let Some(bits) = digits.strip_prefix("0d").or_else(|| digits.strip_prefix("0D")) {
        return hexadecimal(bits);
    } else if let Some(bits) = digits.strip_prefix("0x") {
        hexadecimal(bits)?
    } else {
        digits.parse().ok()?
    };
    Some(if negative { number.wrapping_neg() } else { number })
}

/// Operands, cut at commas outside of braces and brackets.
fn operands(text: &str) -> Vec<&str> {
    let (mut depth, mut start) = (0_i32, 0);
    let mut operands = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                operands.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        operands.push(last);
    }
    operands
}

/// The instruction that `text` says; one that is not understood is found out when it is met.
pub fn decode(text: &str, line: u32, names: &mut Names) -> Instruction {
    let mut text = text.trim();
    let mut guard = None;
    if let Some(rest) = text.strip_prefix('@') {
        let (condition, rest) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
        let (name, negated) = match condition.strip_prefix('!') {
            Some(name) => (name, true),
            None => (condition, false),
        };
        guard = names.register(name).map(|register| (register, negated));
        text = rest.trim();
    }
    let (mnemonic, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    let words: Vec<&str> = mnemonic.split('.').collect();
    let operands = operands(rest);
    let operation = Decoder { words: &words[1..], operands: &operands, names }
        .operation(words[0])
        .unwrap_or(Operation::Unknown);
    Instruction { operation, guard, line }
}

struct Decoder<'a> {
    /// What follows the instruction's name.
    words: &'a [&'a str],
    operands: &'a [&'a str],
    names: &'a mut Names,
}

impl Decoder<'_> {
    fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    /// The last of the types that the name ends with.
    fn ty(&self) -> Option<Type> {
        self.words.iter().rev().find_map(|word| Type::parse(word))
    }

    fn rounding(&self) -> Rounding {
        match () {
            () if self.has("rz") || self.has("rzi") => Rounding::Zero,
            () if self.has("rm") || self.has("rmi") => Rounding::Down,
            () if self.has("rp") || self.has("rpi") => Rounding::Up,
            () => Rounding::Nearest,
        }
    }

    fn to(&mut self) -> Option<u32> {
        self.names.register(self.operands.first()?)
    }

    fn value(&mut self, at: usize) -> Option<Value> {
        self.names.value(self.operands.get(at)?)
    }

    fn space(&self) -> Space {
        let spaces = [
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("local", Space::Local),
            ("const", Space::Constant),
            ("param", Space::Parameter),
        ];
        let is =
            |word: &&(&str, Space)| self.words.iter().any(|w| w.split("::").next() == Some(word.0));
        spaces.iter().find(is).map_or(Space::Generic, |(_, space)| *space)
    }

    fn unary(&mut self, what: Unary) -> Option<Operation> {
        Some(Operation::Unary { what, ty: self.ty()?, to: self.to()?, a: self.value(1)? })
    }

    fn binary(&mut self, what: Binary) -> Option<Operation> {
        let (to, a, b) = (self.to()?, self.value(1)?, self.value(2)?);
        Some(Operation::Binary { what, ty: self.ty()?, to, a, b })
    }

    fn ternary(&mut self, what: Ternary) -> Option<Operation> {
        let (to, a, b, c) = (self.to()?, self.value(1)?, self.value(2)?, self.value(3)?);
        Some(Operation::Ternary { what, ty: self.ty()?, to, a, b, c })
    }

    fn operation(&mut self, name: &str) -> Option<Operation> {
        let rounding = self.rounding();
        match name {
            "mov" => {
                let bits = self.ty()?.bits();
                let to = self.names.targets(self.operands.first()?)?;
                let from = self.names.values(self.operands.get(1)?)?;
                Some(Operation::Move { to, from, bits })
            }
            // What carries into a further word, and packed or saturating sums, are not understood.
            "add" | "sub" | "mul" | "fma" | "mad"
                if self.has("cc") || self.has("sat") || self.has("bf16x2") || self.has("f16x2") =>
            {
                None
            }
            "add" => self.binary(Binary::Add(rounding)),
            "sub" => self.binary(Binary::Subtract(rounding)),
            "mul" if self.has("wide") => self.binary(Binary::MultiplyWide),
            "mul" if self.has("hi") => self.binary(Binary::MultiplyHigh),
            "mul" => self.binary(Binary::Multiply(rounding)),
            "div" => self.binary(Binary::Divide),
            "rem" => self.binary(Binary::Remainder),
            "min" => self.binary(Binary::Minimum { keeps_nan: self.has("NaN") }),
            "max" => self.binary(Binary::Maximum { keeps_nan: self.has("NaN") }),
            "and" => self.binary(Binary::And),
            "or" => self.binary(Binary::Or),
            "xor" => self.binary(Binary::Xor),
            "shl" => self.binary(Binary::ShiftLeft),
            "shr" => self.binary(Binary::ShiftRight),
            "neg" => self.unary(Unary::Negate),
            "abs" => self.unary(Unary::Absolute),
            "not" => self.unary(Unary::Not),
            "rcp" => self.unary(Unary::Reciprocal),
            "sqrt" => self.unary(Unary::Root),
            "rsqrt" => self.unary(Unary::InverseRoot),
            "ex2" => self.unary(Unary::Exponential2),
            "lg2" => self.unary(Unary::Logarithm2),
            "sin" => self.unary(Unary::Sine),
            "cos" => self.unary(Unary::Cosine),
            "tanh" => self.unary(Unary::HyperbolicTangent),
            "clz" => self.unary(Unary::CountZeros),
            "popc" => self.unary(Unary::CountOnes),
            "brev" => self.unary(Unary::Reverse),
            "bfind" => self.unary(Unary::FindHighest { as_shift: self.has("shiftamt") }),
            "fma" => self.ternary(Ternary::Fused(rounding)),
            "mad" if self.ty()?.is_float() => self.ternary(Ternary::Fused(rounding)),
            "mad" if self.has("wide") => self.ternary(Ternary::MultiplyAddWide),
            "mad" if self.has("lo") => self.ternary(Ternary::MultiplyAdd),
            "lop3" => match self.value(4)? {
                Value::Constant(table) => self.ternary(Ternary::Logic(table as u8)),
                _ => None,
            },
            "bfe" => self.ternary(Ternary::ExtractBits),
            "prmt" => self.ternary(Ternary::Permute),
            "shf" if self.has("l") => self.ternary(Ternary::FunnelLeft { wraps: self.has("wrap") }),
            "shf" if self.has("r") => {
                self.ternary(Ternary::FunnelRight { wraps: self.has("wrap") })
            }
            "bfi" => Some(Operation::InsertBits {
                ty: self.ty()?,
                to: self.to()?,
                from: self.value(1)?,
                into: self.value(2)?,
                start: self.value(3)?,
                len: self.value(4)?,
            }),
            "setp" => self.compare(),
            "selp" => Some(Operation::Select {
                to: self.to()?,
                a: self.value(1)?,
                b: self.value(2)?,
                condition: self.value(3)?,
            }),
            "cvt" => self.convert(),
            "cvta" => {
                let to_generic = !self.has("to");
                let (to, a) = (self.to()?, self.value(1)?);
                Some(Operation::Address { space: self.space(), to, a, to_generic })
            }
            "ld" => {
                let to = self.names.targets(self.operands.first()?)?;
                let from = self.names.place(self.operands.get(1)?)?;
                Some(Operation::Load { space: self.space(), ty: self.ty()?, to, from })
            }
            "st" => {
                let to = self.names.place(self.operands.first()?)?;
                let from = self.names.values(self.operands.get(1)?)?;
                Some(Operation::Store { space: self.space(), ty: self.ty()?, to, from })
            }
            "bra" => {
                let target = *self.names.labels.get(*self.operands.first()?)?;
                Some(Operation::Branch { target })
            }
            "ret" | "exit" => Some(Operation::Return),
            "bar" | "barrier" if self.has("warp") => Some(Operation::WarpBarrier),
            "bar" | "barrier" if self.has("sync") && self.operands == ["0"] => {
                Some(Operation::Barrier)
            }
            "fence" if self.has("proxy") => (self.words == ["proxy", "async", "shared::cta"])
                .then_some(Operation::ShowToGroupProducts),
            "wgmma" if self.has("fence") => Some(Operation::BeginGroupProducts),
            "wgmma" if self.has("commit_group") => Some(Operation::EndGroupProducts),
            "wgmma" if self.has("wait_group") => {
                let n_pending = literal(self.operands.first()?)? as usize;
                Some(Operation::WaitForGroupProducts { n_pending })
            }
            "wgmma" if self.has("mma_async") => self.multiply_by_group(),
            "membar" | "fence" | "prefetch" | "nanosleep" => Some(Operation::Nothing),
            "shfl" => self.shuffle(),
            "vote" => {
                let (text, negated) = match self.operands.get(1)?.strip_prefix('!') {
                    Some(text) => (text, true),
                    None => (*self.operands.get(1)?, false),
                };
                let what = match () {
                    () if self.has("all") => Vote::All,
                    () if self.has("any") => Vote::Any,
                    () if self.has("ballot") => Vote::Ballot,
                    () => return None,
                };
                let a = self.names.value(text)?;
                Some(Operation::Vote { what, to: self.to()?, a, negated })
            }
            "activemask" => Some(Operation::ActiveLanes { to: self.to()? }),
            "ldmatrix" if self.has("m8n8") => {
                let targets = self.names.targets(self.operands.first()?)?;
                Some(Operation::LoadTiles {
                    to: targets.iter().copied().collect::<Option<_>>()?,
                    from: self.names.place(self.operands.get(1)?)?,
                    transposed: self.has("trans"),
                })
            }
            "mma" => self.multiply_tiles(),
            "cp" if self.has("commit_group") => Some(Operation::EndCopyGroup),
            "cp" if self.has("wait_all") => {
                Some(Operation::WaitForCopies { n_pending: 0, of_all: true })
            }
            "cp" if self.has("wait_group") => {
                let n_pending = literal(self.operands.first()?)? as usize;
                Some(Operation::WaitForCopies { n_pending, of_all: false })
            }
            "cp" if self.has("async") && !self.has("bulk") => {
                let n_bytes = literal(self.operands.get(2)?)?;
                Some(Operation::CopyAsync {
                    to: self.names.place(self.operands.first()?)?,
                    from: self.names.place(self.operands.get(1)?)?,
                    n_bytes: n_bytes as usize,
                    n_read: match self.operands.get(3) {
                        Some(n_read) => self.names.value(n_read)?,
                        None => Value::Constant(n_bytes),
                    },
                })
            }
            _ => None,
        }
    }

    fn compare(&mut self) -> Option<Operation> {
        let ty = self.ty()?;
        let outcomes: Outcomes = match *self.words.first()? {
            "eq" => EQUAL,
            "ne" => LESS | GREATER,
            "lt" | "lo" => LESS,
            "le" | "ls" => LESS | EQUAL,
            "gt" | "hi" => GREATER,
            "ge" | "hs" => GREATER | EQUAL,
            "equ" => EQUAL | UNORDERED,
            "neu" => LESS | GREATER | UNORDERED,
            "ltu" => LESS | UNORDERED,
            "leu" => LESS | EQUAL | UNORDERED,
            "gtu" => GREATER | UNORDERED,
            "geu" => GREATER | EQUAL | UNORDERED,
            "num" => LESS | EQUAL | GREATER,
            "nan" => UNORDERED,
            _ => return None,
        };
        let with = match self.operands.get(3) {
            Some(text) => {
                let (text, negated) = match text.strip_prefix('!') {
                    Some(text) => (text, true),
                    None => (*text, false),
                };
                let how = match () {
                    () if self.has("and") => Binary::And,
                    () if self.has("or") => Binary::Or,
                    () if self.has("xor") => Binary::Xor,
                    () => return None,
                };
                Some((how, self.names.value(text)?, negated))
            }
            None => None,
        };
        let mut targets = self.operands.first()?.split('|');
        let mut target = || match targets.next() {
            None | Some("_") => Some(None),
            Some(name) => self.names.register(name).map(Some),
        };
        let (to, opposite) = (target()?, target()?);
        let (a, b) = (self.value(1)?, self.value(2)?);
        Some(Operation::Compare { outcomes, ty, to, opposite, a, b, with })
    }

    fn convert(&mut self) -> Option<Operation> {
        let a = self.value(1)?;
        let to = self.to()?;
        if self.has("bf16x2") {
            let b = self.value(2)?;
            let is_plain = self.has("rn") && !self.has("relu") && self.has("f32");
            return is_plain.then_some(Operation::PackBf16 { to, a, b });
        }
        let mut types = self.words.iter().filter_map(|word| Type::parse(word));
        let (to_type, from_type) = (types.next()?, types.next()?);
        let how = Convert {
            rounding: self.rounding(),
            to_whole: ["rni", "rzi", "rmi", "rpi"].iter().any(|word| self.has(word)),
            saturates: self.has("sat"),
        };
        Some(Operation::Convert { to_type, from_type, how, to, a })
    }

    fn shuffle(&mut self) -> Option<Operation> {
        let what = match () {
            () if self.has("idx") => Shuffle::Index,
            () if self.has("up") => Shuffle::Up,
            () if self.has("down") => Shuffle::Down,
            () if self.has("bfly") => Shuffle::Butterfly,
            () => return None,
        };
        let (to, found) = match self.operands.first()?.split_once('|') {
            Some((to, found)) => (self.names.register(to)?, Some(self.names.register(found)?)),
            None => (self.to()?, None),
        };
        let (a, by, clamp) = (self.value(1)?, self.value(2)?, self.value(3)?);
        Some(Operation::Shuffle { what, to, found, a, by, clamp })
    }

    fn multiply_by_group(&mut self) -> Option<Operation> {
        let &["mma_async", "sync", "aligned", shape, "f32", "bf16", "bf16"] = self.words else {
            return None;
        };
        let n: usize = shape.strip_prefix("m64n")?.strip_suffix("k16")?.parse().ok()?;
        let d = self.names.targets(self.operands.first()?)?;
        let d: Box<[u32]> = d.iter().copied().collect::<Option<_>>()?;
        let (a, b, adds) = (self.value(1)?, self.value(2)?, self.value(3)?);
        let mut constants = [0; 4];
        for (at, constant) in constants.iter_mut().enumerate() {
            *constant = literal(self.operands.get(4 + at)?)?;
        }
        let [1, 1, a_across, b_across] = constants else { return None };
        let across = [a_across == 1, b_across == 1];
        (d.len() == n / 2).then_some(Operation::MultiplyByGroup { d, a, b, adds, across })
    }

    fn multiply_tiles(&mut self) -> Option<Operation> {
        let is_bf16 = self.has("bf16");
        let shape = ["sync", "aligned", "m16n8k16", "row", "col", "f32"];
        if !shape.iter().all(|word| self.has(word)) || !(is_bf16 || self.has("f16")) {
            return None;
        }
        let d = self.names.targets(self.operands.first()?)?;
        let d: Vec<u32> = d.iter().copied().collect::<Option<_>>()?;
        let mut values = |at: usize| self.names.values(self.operands.get(at)?);
        let (a, b, c) = (values(1)?, values(2)?, values(3)?);
        Some(Operation::MultiplyTiles {
            is_bf16,
            d: d.try_into().ok()?,
            a: (*a).try_into().ok()?,
            b: (*b).try_into().ok()?,
            c: (*c).try_into().ok()?,
        })
    }
}
