//! Instructions as they are executed: registers by number, names resolved, one variant a kind.

/// What an instruction's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Predicate,
    Bits(u32),
    Unsigned(u32),
    Signed(u32),
    F16,
    Bf16,
    F32,
    F64,
}

impl Type {
    /// The type of a suffix such as `u32`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Predicate,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => {
                let (kind, bits) = name.split_at_checked(1)?;
                let bits = bits.parse().ok().filter(|bits| [8, 16, 32, 64].contains(bits))?;
                match kind {
                    "b" => Self::Bits(bits),
                    "u" => Self::Unsigned(bits),
                    "s" => Self::Signed(bits),
                    _ => return None,
                }
            }
        })
    }

    /// Bits of a number.
    pub fn bits(self) -> u32 {
        match self {
            Self::Predicate => 1,
            Self::Bits(bits) | Self::Unsigned(bits) | Self::Signed(bits) => bits,
            Self::F16 | Self::Bf16 => 16,
            Self::F32 => 32,
            Self::F64 => 64,
        }
    }

    /// Bytes of a number in memory.
    pub fn n_bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    pub fn is_signed(self) -> bool {
        matches!(self, Self::Signed(_))
    }
}

/// Numbers that every thread knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    Thread(usize),
    BlockSize(usize),
    Block(usize),
    GridSize(usize),
    Lane,
    Warp,
    Clock,
}

/// Where an operand comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Register(u32),
    Constant(u64),
    Special(Special),
}

/// A place in memory: a value and a distance from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub base: Value,
    pub offset: i64,
}

/// Which memory an address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Constant,
    Parameter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    Negate,
    Absolute,
    Not,
    Reciprocal,
    Root,
    InverseRoot,
    Exponential2,
    Logarithm2,
    Sine,
    Cosine,
    HyperbolicTangent,
    CountZeros,
    CountOnes,
    Reverse,
    FindHighest { as_shift: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    Add(Rounding),
    Subtract(Rounding),
    Multiply(Rounding),
    MultiplyHigh,
    MultiplyWide,
    Divide,
    Remainder,
    Minimum { keeps_nan: bool },
    Maximum { keeps_nan: bool },
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ternary {
    /// a · b + c, rounded once.
    Fused(Rounding),
    /// The lower half of a · b, and c.
    MultiplyAdd,
    MultiplyAddWide,
    /// Any function of three bits, by its table.
    Logic(u8),
    ExtractBits,
    Permute,
    FunnelLeft {
        wraps: bool,
    },
    FunnelRight {
        wraps: bool,
    },
}

/// How a result that lies between two numbers is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

/// Bits of `Comparison`: which of less, equal, greater and unordered count.
pub type Outcomes = u8;
pub const LESS: Outcomes = 1;
pub const EQUAL: Outcomes = 2;
pub const GREATER: Outcomes = 4;
pub const UNORDERED: Outcomes = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Index,
    Up,
    Down,
    Butterfly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Ballot,
}

/// What is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    Nothing,
    /// Copies, packs or unpacks: as many bits on both sides.
    Move {
        to: Box<[Option<u32>]>,
        from: Box<[Value]>,
        bits: u32,
    },
    Unary {
        what: Unary,
        ty: Type,
        to: u32,
        a: Value,
    },
    Binary {
        what: Binary,
        ty: Type,
        to: u32,
        a: Value,
        b: Value,
    },
    Ternary {
        what: Ternary,
        ty: Type,
        to: u32,
        a: Value,
        b: Value,
        c: Value,
    },
    InsertBits {
        ty: Type,
        to: u32,
        from: Value,
        into: Value,
        start: Value,
        len: Value,
    },
    Compare {
        outcomes: Outcomes,
        ty: Type,
        to: Option<u32>,
        opposite: Option<u32>,
        a: Value,
        b: Value,
        with: Option<(Binary, Value, bool)>,
    },
    Select {
        to: u32,
        a: Value,
        b: Value,
        condition: Value,
    },
    Convert {
        to_type: Type,
        from_type: Type,
        how: Convert,
        to: u32,
        a: Value,
    },
    /// Two numbers rounded into one word, `a` into the upper half.
    PackBf16 {
        to: u32,
        a: Value,
        b: Value,
    },
    Load {
        space: Space,
        ty: Type,
        to: Box<[Option<u32>]>,
        from: Place,
    },
    Store {
        space: Space,
        ty: Type,
        to: Place,
        from: Box<[Value]>,
    },
    /// From or to an address that says its space itself.
    Address {
        space: Space,
        to: u32,
        a: Value,
        to_generic: bool,
    },
    Branch {
        target: u32,
    },
    Return,
    Barrier,
    WarpBarrier,
    Shuffle {
        what: Shuffle,
        to: u32,
        found: Option<u32>,
        a: Value,
        by: Value,
        clamp: Value,
    },
    Vote {
        what: Vote,
        to: u32,
        a: Value,
        negated: bool,
    },
    ActiveLanes {
        to: u32,
    },
    LoadTiles {
        to: Box<[u32]>,
        from: Place,
        transposed: bool,
    },
    /// 16 × 8 × 16, bf16 or f16 in f32.
    MultiplyTiles {
        is_bf16: bool,
        d: [u32; 4],
        a: [Value; 4],
        b: [Value; 2],
        c: [Value; 4],
    },
    /// Lets products of groups read what the lanes have written to shared memory.
    ShowToGroupProducts,
    BeginGroupProducts,
    /// 64 × 16 by 16 × n, of four warps, with operands in shared memory; a warp has 16 of the rows.
    MultiplyByGroup {
        d: Box<[u32]>,
        a: Value,
        b: Value,
        adds: Value,
        /// Whether k lies across the rows of a, and of b.
        across: [bool; 2],
    },
    EndGroupProducts,
    WaitForGroupProducts {
        n_pending: usize,
    },
    CopyAsync {
        to: Place,
        from: Place,
        n_bytes: usize,
        n_read: Value,
    },
    EndCopyGroup,
    WaitForCopies {
        n_pending: usize,
        /// Also those of no group.
        of_all: bool,
    },
    /// Refused when it is met.
    Unknown,
}

/// The details of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convert {
    pub rounding: Rounding,
    /// Whether the result is a whole number, of whatever type.
    pub to_whole: bool,
    pub saturates: bool,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    pub operation: Operation,
    /// The predicate that must hold, or must not.
    pub guard: Option<(u32, bool)>,
    /// In the module's text, from 1.
    pub line: u32,
}
