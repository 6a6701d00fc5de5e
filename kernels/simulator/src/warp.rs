//! A warp: its lanes' registers and places, and what every instruction does to them.

use std::{collections::VecDeque, sync::Arc};

use half::bf16;

use crate::{
    Fault,
    execute::Block,
    instruction::{Binary, Instruction, Operation, Place, Shuffle, Space, Special, Value, Vote},
    matrix::{self, Operand},
    memory::{Allocation, CONSTANT_BASE, LOCAL_BASE, SHARED_BASE},
};

mod arithmetic;
mod numbers;

/// Lanes of a warp.
pub const LANES: usize = 32;

/// A register: 64 bits a lane, those beyond its size zero.
pub type Lanes = [u64; LANES];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    AtBarrier,
    Ended,
}

/// An asynchronous copy that has not come yet.
struct Copy {
    to: u64,
    from: u64,
    n_bytes: usize,
    n_read: usize,
}

/// A product of a group of warps: 64 rows of a, 16 for each warp, and columns of b.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupProduct {
    a: Operand,
    b: Operand,
    n_columns: usize,
    adds: bool,
}

impl GroupProduct {
    /// The first of a warp's rows, and how many; as [`Operand`] takes them.
    fn rows(warp: u32) -> (usize, usize) {
        (16 * (warp as usize % 4), 16)
    }

    fn columns(&self) -> (usize, usize) {
        (0, self.n_columns)
    }
}

/// A warp's part of one that is not done yet.
struct PendingProduct {
    product: GroupProduct,
    /// The sums' registers, and what was in them when it was begun; of one behind another on the same sums, when that
    /// is done.
    d: Box<[u32]>,
    before: Option<Vec<Lanes>>,
}

/// The registers and places of 32 threads.
pub struct Warp {
    number: u32,
    registers: Vec<Lanes>,
    /// Each lane's next instruction.
    places: [u32; LANES],
    /// Lanes that exist and have not ended.
    live: u32,
    state: State,
    local: Vec<u8>,
    threads: [[u32; 3]; LANES],
    copies: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
    /// Products of groups of warps. They are done when they are waited for and not before, so that who reads their
    /// sums too early reads what was there.
    products: Vec<PendingProduct>,
    product_groups: VecDeque<Vec<PendingProduct>>,
    n_group_products: usize,
    /// Whether such products may be begun.
    may_multiply: bool,
    /// Where the last access to global memory went.
    last: Option<Arc<Allocation>>,
    line: u32,
    n_instructions: u64,
    n_tile_products: u64,
}

/// The lanes whose bits are set.
fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask >> lane & 1 == 1)
}

impl Warp {
    pub fn new(block: &Block<'_>, number: u32, n_threads: u32) -> Self {
        let kernel = block.scene.kernel;
        let [x, y, _] = block.scene.launch.block;
        let first = number * LANES as u32;
        let n_live = (n_threads - first).min(LANES as u32);
        Self {
            number,
            registers: vec![[0; LANES]; kernel.n_registers],
            places: [0; LANES],
            live: u32::MAX >> (LANES as u32 - n_live),
            state: State::Running,
            local: vec![0; kernel.local_bytes * LANES],
            threads: std::array::from_fn(|lane| {
                let thread = first + lane as u32;
                [thread % x, thread / x % y, thread / x / y]
            }),
            copies: Vec::new(),
            groups: VecDeque::new(),
            products: Vec::new(),
            product_groups: VecDeque::new(),
            n_group_products: 0,
            may_multiply: false,
            last: None,
            line: 1,
            n_instructions: 0,
            n_tile_products: 0,
        }
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// The line of the instruction that was executed last.
    pub fn line(&self) -> u32 {
        self.line
    }

    pub fn n_instructions(&self) -> u64 {
        self.n_instructions
    }

    pub fn n_tile_products(&self) -> u64 {
        self.n_tile_products
    }

    pub fn n_group_products(&self) -> usize {
        self.n_group_products
    }

    pub fn pass_barrier(&mut self) {
        if self.state == State::AtBarrier {
            self.state = State::Running;
        }
    }

    /// Goes on to the next barrier or the end.
    pub fn run(&mut self, block: &mut Block<'_>, max_instructions: u64) -> Result<(), Fault> {
        let kernel = block.scene.kernel;
        while self.state == State::Running {
            if self.live == 0 {
                self.state = State::Ended;
                if !self.copies.is_empty() || self.groups.iter().any(|group| !group.is_empty()) {
                    return Err(Fault::new("copies that were never waited for"));
                }
                let mut groups = self.product_groups.iter();
                if !self.products.is_empty() || groups.any(|group| !group.is_empty()) {
                    return Err(Fault::new("products that were never waited for"));
                }
                break;
            }
            let next = lanes_of(self.live).map(|lane| self.places[lane]).min().unwrap_or(0);
            let mut active = 0;
            for lane in 0..LANES {
                active |= u32::from(self.places[lane] == next) << lane;
            }
            active &= self.live;
            let instruction = &kernel.instructions[next as usize];
            self.line = instruction.line;
            self.n_instructions += 1;
            if self.n_instructions > max_instructions {
                return Err(Fault::new("it does not end"));
            }
            for lane in 0..LANES {
                self.places[lane] += active >> lane & 1;
            }
            let mut mask = active;
            if let Some((register, negated)) = instruction.guard {
                let condition = &self.registers[register as usize];
                for (lane, &holds) in condition.iter().enumerate() {
                    mask &= !(u32::from((holds != 0) == negated) << lane);
                }
            }
            if mask != 0 {
                self.execute(block, instruction, mask)?;
            }
        }
        Ok(())
    }

    fn value(&self, block: &Block<'_>, value: Value) -> Lanes {
        match value {
            Value::Register(register) => self.registers[register as usize],
            Value::Constant(constant) => [constant; LANES],
            Value::Special(special) => {
                let launch = &block.scene.launch;
                std::array::from_fn(|lane| match special {
                    Special::Thread(axis) => self.threads[lane][axis].into(),
                    Special::BlockSize(axis) => launch.block[axis].into(),
                    Special::Block(axis) => block.index[axis].into(),
                    Special::GridSize(axis) => launch.grid[axis].into(),
                    Special::Lane => lane as u64,
                    Special::Warp => self.number.into(),
                    Special::Clock => self.n_instructions,
                })
            }
        }
    }

    fn set(&mut self, register: u32, mask: u32, value: &Lanes) {
        let register = &mut self.registers[register as usize];
        if mask == u32::MAX {
            *register = *value;
            return;
        }
        for lane in 0..LANES {
            register[lane] = if mask >> lane & 1 == 1 { value[lane] } else { register[lane] };
        }
    }

    fn addresses(&self, block: &Block<'_>, place: Place) -> Lanes {
        self.value(block, place.base).map(|base| base.wrapping_add_signed(place.offset))
    }

    fn execute(
        &mut self,
        block: &mut Block<'_>,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Fault> {
        match &instruction.operation {
            Operation::Nothing | Operation::WarpBarrier => {}
            Operation::Unknown => return Err(Fault::new("this instruction is not understood")),
            Operation::Move { to, from, bits } => self.shift_bits(block, mask, to, from, *bits),
            Operation::Unary { what, ty, to, a } => {
                let a = self.value(block, *a);
                let result = arithmetic::unary(*what, *ty, &a)?;
                self.set(*to, mask, &result);
            }
            Operation::Binary { what, ty, to, a, b } => {
                let (a, b) = (self.value(block, *a), self.value(block, *b));
                let result = arithmetic::binary(*what, *ty, &a, &b, mask)?;
                self.set(*to, mask, &result);
            }
            Operation::Ternary { what, ty, to, a, b, c } => {
                let [a, b, c] = [a, b, c].map(|value| self.value(block, *value));
                let result = arithmetic::ternary(*what, *ty, &a, &b, &c)?;
                self.set(*to, mask, &result);
            }
            Operation::InsertBits { ty, to, from, into, start, len } => {
                let [from, into, start, len] =
                    [from, into, start, len].map(|value| self.value(block, *value));
                let bits = ty.bits();
                let result = std::array::from_fn(|i| {
                    numbers::insert_bits(bits, from[i], into[i], start[i], len[i])
                });
                self.set(*to, mask, &result);
            }
            Operation::Compare { outcomes, ty, to, opposite, a, b, with } => {
                let (a, b) = (self.value(block, *a), self.value(block, *b));
                let holds = arithmetic::compare(*ty, &a, &b).map(|outcome| outcome & outcomes != 0);
                let other = with.map(|(how, value, negated)| {
                    (how, self.value(block, value).map(|value| (value != 0) != negated))
                });
                let combined = |holds: bool, lane: usize| match &other {
                    None => holds,
                    Some((Binary::And, other)) => holds & other[lane],
                    Some((Binary::Or, other)) => holds | other[lane],
                    Some((_, other)) => holds ^ other[lane],
                };
                if let Some(to) = to {
                    self.set(*to, mask, &std::array::from_fn(|i| combined(holds[i], i).into()));
                }
                if let Some(to) = opposite {
                    self.set(*to, mask, &std::array::from_fn(|i| combined(!holds[i], i).into()));
                }
            }
            Operation::Select { to, a, b, condition } => {
                let [a, b, condition] = [a, b, condition].map(|value| self.value(block, *value));
                let result = std::array::from_fn(|i| if condition[i] != 0 { a[i] } else { b[i] });
                self.set(*to, mask, &result);
            }
            Operation::Convert { to_type, from_type, how, to, a } => {
                let a = self.value(block, *a);
                let result = numbers::convert(*to_type, *from_type, *how, &a)
                    .ok_or_else(|| Fault::new("this conversion is not understood"))?;
                self.set(*to, mask, &result);
            }
            Operation::PackBf16 { to, a, b } => {
                let (a, b) = (self.value(block, *a), self.value(block, *b));
                let narrow =
                    |value: u64| u64::from(bf16::from_f32(f32::from_bits(value as u32)).to_bits());
                let result = std::array::from_fn(|i| narrow(a[i]) << 16 | narrow(b[i]));
                self.set(*to, mask, &result);
            }
            Operation::Load { space, ty, to, from } => {
                let addresses = self.addresses(block, *from);
                let n_bytes = ty.n_bytes();
                for lane in lanes_of(mask) {
                    self.check_alignment(addresses[lane], n_bytes * to.len())?;
                    for (i, register) in to.iter().enumerate() {
                        let address = addresses[lane] + (i * n_bytes) as u64;
                        let value = self.load(block, *space, lane, address, n_bytes)?;
                        let value = if ty.is_signed() {
                            numbers::sign_extend(value, ty.bits())
                        } else {
                            value
                        };
                        if let Some(register) = register {
                            self.registers[*register as usize][lane] = value;
                        }
                    }
                }
            }
            Operation::Store { space, ty, to, from } => {
                let addresses = self.addresses(block, *to);
                let n_bytes = ty.n_bytes();
                let values: Vec<Lanes> =
                    from.iter().map(|value| self.value(block, *value)).collect();
                if *space != Space::Local {
                    check_one_writer(mask, &addresses, &values)?;
                }
                for lane in lanes_of(mask) {
                    self.check_alignment(addresses[lane], n_bytes * from.len())?;
                    for (i, value) in values.iter().enumerate() {
                        let address = addresses[lane] + (i * n_bytes) as u64;
                        self.store(block, *space, lane, address, n_bytes, value[lane])?;
                    }
                }
            }
            Operation::Address { space, to, a, to_generic } => {
                let base = match space {
                    Space::Shared => SHARED_BASE,
                    Space::Local => LOCAL_BASE,
                    _ => 0,
                };
                let a = self.value(block, *a);
                let result = a
                    .map(|a| if *to_generic { a.wrapping_add(base) } else { a.wrapping_sub(base) });
                self.set(*to, mask, &result);
            }
            Operation::Branch { target } => {
                for lane in lanes_of(mask) {
                    self.places[lane] = *target;
                }
            }
            Operation::Return => self.live &= !mask,
            Operation::Barrier => {
                if mask != self.live {
                    return Err(Fault::new(
                        "not all lanes of the warp reach this barrier together",
                    ));
                }
                self.state = State::AtBarrier;
            }
            Operation::Shuffle { what, to, found, a, by, clamp } => {
                let [a, by, clamp] = [a, by, clamp].map(|value| self.value(block, *value));
                let mut result = a;
                let mut inside = [0; LANES];
                for lane in lanes_of(mask) {
                    let (from, is_inside) = source_lane(*what, lane, by[lane], clamp[lane]);
                    if is_inside && mask >> from & 1 == 0 {
                        return Err(Fault::new(format!(
                            "lane {lane} reads lane {from}, which is not here"
                        )));
                    }
                    result[lane] = a[if is_inside { from } else { lane }];
                    inside[lane] = is_inside.into();
                }
                self.set(*to, mask, &result);
                if let Some(found) = found {
                    self.set(*found, mask, &inside);
                }
            }
            Operation::Vote { what, to, a, negated } => {
                let a = self.value(block, *a);
                let votes = lanes_of(mask)
                    .filter(|&lane| (a[lane] != 0) != *negated)
                    .fold(0_u32, |votes, lane| votes | 1 << lane);
                let result = match what {
                    Vote::All => u64::from(votes == mask),
                    Vote::Any => u64::from(votes != 0),
                    Vote::Ballot => votes.into(),
                };
                self.set(*to, mask, &[result; LANES]);
            }
            Operation::ActiveLanes { to } => self.set(*to, mask, &[mask.into(); LANES]),
            Operation::LoadTiles { to, from, transposed } => {
                self.all_lanes(mask)?;
                let addresses = self.addresses(block, *from);
                for (tile, register) in to.iter().enumerate() {
                    let mut rows = [[0_u16; 8]; 8];
                    for (row, numbers) in rows.iter_mut().enumerate() {
                        let address = addresses[8 * tile + row];
                        self.check_alignment(address, 16)?;
                        for (i, pair) in numbers.chunks_exact_mut(4).enumerate() {
                            let address = address + 8 * i as u64;
                            let four = block.shared.load(address, 8, (self.number, self.line))?;
                            pair.copy_from_slice(
                                &[0, 16, 32, 48].map(|shift| (four >> shift) as u16),
                            );
                        }
                    }
                    self.registers[*register as usize] = std::array::from_fn(|lane| {
                        let (row, column) = (lane / 4, 2 * (lane % 4));
                        let (low, high) = if *transposed {
                            (rows[column][row], rows[column + 1][row])
                        } else {
                            (rows[row][column], rows[row][column + 1])
                        };
                        u64::from(low) | u64::from(high) << 16
                    });
                }
            }
            Operation::MultiplyTiles { is_bf16, d, a, b, c } => {
                self.all_lanes(mask)?;
                self.n_tile_products += 1;
                let a = a.map(|value| self.value(block, value));
                let b = b.map(|value| self.value(block, value));
                let c = c.map(|value| self.value(block, value));
                let result = matrix::multiply(*is_bf16, a, b, c);
                for (register, result) in d.iter().zip(&result) {
                    self.registers[*register as usize] = *result;
                }
            }
            Operation::ShowToGroupProducts => {
                if mask != self.live {
                    return Err(Fault::new("only some lanes show what they wrote"));
                }
                block.shared.show(self.number);
            }
            Operation::BeginGroupProducts => {
                self.all_lanes(mask)?;
                self.may_multiply = true;
            }
            Operation::MultiplyByGroup { d, a, b, adds, across } => {
                self.all_lanes(mask)?;
                if !self.may_multiply {
                    return Err(Fault::new(
                        "products whose sums may not have been written yet (wgmma.fence)",
                    ));
                }
                let [a, b, adds] = [a, b, adds].map(|value| self.value(block, *value));
                if [a, b, adds].iter().any(|value| value.iter().any(|lane| *lane != value[0])) {
                    return Err(Fault::new("operands that are not the same for all lanes"));
                }
                let a = Operand::new(a[0], across[0])?;
                let b = Operand::new(b[0], across[1])?;
                let product = GroupProduct { a, b, n_columns: 2 * d.len(), adds: adds[0] != 0 };
                block.multiply(self.number, self.n_group_products, product)?;
                self.n_group_products += 1;
                self.n_tile_products += d.len() as u64 / 4;
                let by = (self.number, self.line);
                let ((first, n), (first_column, n_columns)) =
                    (GroupProduct::rows(self.number), product.columns());
                for address in a.addresses(first, n).chain(b.addresses(first_column, n_columns)) {
                    block.shared.begin_multiplying(address, by)?;
                }
                let mut pending = self.product_groups.iter().flatten().chain(&self.products);
                let is_behind = pending.any(|other| other.d == *d);
                let before = (!is_behind).then(|| self.sums(d));
                self.products.push(PendingProduct { product, d: d.clone(), before });
            }
            Operation::EndGroupProducts => {
                self.all_lanes(mask)?;
                let group = std::mem::take(&mut self.products);
                self.product_groups.push_back(group);
            }
            Operation::WaitForGroupProducts { n_pending } => {
                self.all_lanes(mask)?;
                self.may_multiply = false;
                while self.product_groups.len() > *n_pending {
                    for pending in self.product_groups.pop_front().into_iter().flatten() {
                        self.finish(block, pending)?;
                    }
                }
            }
            Operation::CopyAsync { to, from, n_bytes, n_read } => {
                let (to, from) = (self.addresses(block, *to), self.addresses(block, *from));
                let n_read = self.value(block, *n_read);
                for lane in lanes_of(mask) {
                    let (to, from) = (to[lane], from[lane]);
                    self.check_alignment(to, *n_bytes)?;
                    self.check_alignment(from, *n_bytes)?;
                    let n_read = (n_read[lane] as u32 as usize).min(*n_bytes);
                    if n_read > 0 {
                        // It may come at once.
                        self.allocation(block, from, n_read)?;
                    }
                    // An address in shared memory is of 32 bits.
                    let to = u64::from(to as u32);
                    block.shared.expect(to, *n_bytes, (self.number, self.line))?;
                    self.copies.push(Copy { to, from, n_bytes: *n_bytes, n_read });
                }
            }
            Operation::EndCopyGroup => {
                let group = std::mem::take(&mut self.copies);
                self.groups.push_back(group);
            }
            Operation::WaitForCopies { n_pending, of_all } => {
                if *of_all {
                    let open = std::mem::take(&mut self.copies);
                    self.groups.push_back(open);
                }
                while self.groups.len() > *n_pending {
                    if let Some(group) = self.groups.pop_front() {
                        self.arrive(block, group)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn all_lanes(&self, mask: u32) -> Result<(), Fault> {
        if mask == u32::MAX {
            Ok(())
        } else {
            Err(Fault::new("not all lanes of the warp are here"))
        }
    }

    fn check_alignment(&self, address: u64, n_bytes: usize) -> Result<(), Fault> {
        if address.is_multiple_of(n_bytes as u64) {
            return Ok(());
        }
        Err(Fault::new(format!("{n_bytes} bytes at {address:#x} are not aligned")))
    }

    /// What is in these registers.
    fn sums(&self, d: &[u32]) -> Vec<Lanes> {
        d.iter().map(|&register| self.registers[register as usize]).collect()
    }

    /// Does a product of a group.
    fn finish(&mut self, block: &mut Block<'_>, pending: PendingProduct) -> Result<(), Fault> {
        let PendingProduct { product, d, before } = pending;
        let mut sums = self.sums(&d);
        if before.is_some_and(|before| before != sums) {
            return Err(Fault::new("sums were written while products were under way"));
        }
        let by = (self.number, self.line);
        let mut word = |address| block.shared.end_multiplying(address, by);
        let rows = product.a.numbers(GroupProduct::rows(self.number), &mut word)?;
        let columns = product.b.numbers(product.columns(), word)?;
        if !product.adds {
            sums.fill([0; LANES]);
        }
        matrix::add_product(&mut sums, &rows, &columns);
        for (&register, sum) in d.iter().zip(&sums) {
            self.registers[register as usize] = *sum;
        }
        // The next on these sums begins with them.
        let mut behind = self.product_groups.iter_mut().flatten().chain(&mut self.products);
        if let Some(next) = behind.find(|next| next.d == d) {
            next.before = Some(sums);
        }
        Ok(())
    }

    /// Lets copies come.
    fn arrive(&mut self, block: &mut Block<'_>, group: Vec<Copy>) -> Result<(), Fault> {
        for Copy { to, from, n_bytes, n_read } in group {
            for i in (0..n_bytes).step_by(4) {
                let value = if i + 4 <= n_read {
                    self.load(block, Space::Global, 0, from + i as u64, 4)?
                } else {
                    0
                };
                let by = (self.number, self.line);
                block.shared.arrive(to + i as u64, value as u32, by)?;
            }
        }
        Ok(())
    }

    fn allocation(
        &mut self,
        block: &Block<'_>,
        address: u64,
        n_bytes: usize,
    ) -> Result<&Arc<Allocation>, Fault> {
        let is_last =
            self.last.as_ref().is_some_and(|allocation| allocation.contains(address, n_bytes));
        if !is_last {
            let allocations = block.scene.allocations;
            let next = allocations.partition_point(|allocation| allocation.start <= address);
            let found = next.checked_sub(1).map(|at| &allocations[at]);
            self.last = found.filter(|found| found.contains(address, n_bytes)).cloned();
        }
        self.last.as_ref().ok_or_else(|| {
            Fault::new(format!("{n_bytes} bytes at {address:#x} were not allocated"))
        })
    }

    fn load(
        &mut self,
        block: &mut Block<'_>,
        space: Space,
        lane: usize,
        address: u64,
        n_bytes: usize,
    ) -> Result<u64, Fault> {
        let bytes = match (space, address) {
            (Space::Generic, SHARED_BASE..LOCAL_BASE) | (Space::Shared, _) => {
                let address = if space == Space::Generic { address - SHARED_BASE } else { address };
                // An address in shared memory is of 32 bits.
                let address = u64::from(address as u32);
                return block.shared.load(address, n_bytes, (self.number, self.line));
            }
            (Space::Generic, LOCAL_BASE..CONSTANT_BASE) | (Space::Local, _) => {
                let address = if space == Space::Generic { address - LOCAL_BASE } else { address };
                let at = self.local_place(block, lane, address, n_bytes)?;
                &self.local[at..at + n_bytes]
            }
            (Space::Parameter, _) => slice(block.scene.arguments, address, n_bytes)?,
            (Space::Constant, _) | (_, CONSTANT_BASE..0x1000_0000_0000) => {
                slice(&block.scene.kernel.constants, address.wrapping_sub(CONSTANT_BASE), n_bytes)?
            }
            _ => {
                let touch = block.touch;
                let allocation = self.allocation(block, address, n_bytes)?;
                if allocation.reads_from_another(address, n_bytes, touch) {
                    return Err(Fault::new(format!(
                        "{address:#x} was written by another block of this launch"
                    )));
                }
                return Ok(allocation.load(address, n_bytes));
            }
        };
        let mut number = [0; 8];
        number[..n_bytes].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(number))
    }

    fn store(
        &mut self,
        block: &mut Block<'_>,
        space: Space,
        lane: usize,
        address: u64,
        n_bytes: usize,
        value: u64,
    ) -> Result<(), Fault> {
        match (space, address) {
            (Space::Generic, SHARED_BASE..LOCAL_BASE) | (Space::Shared, _) => {
                let address = if space == Space::Generic { address - SHARED_BASE } else { address };
                let by = (self.number, self.line);
                block.shared.store(u64::from(address as u32), n_bytes, value, by)
            }
            (Space::Generic, LOCAL_BASE..CONSTANT_BASE) | (Space::Local, _) => {
                let address = if space == Space::Generic { address - LOCAL_BASE } else { address };
                let at = self.local_place(block, lane, address, n_bytes)?;
                self.local[at..at + n_bytes].copy_from_slice(&value.to_le_bytes()[..n_bytes]);
                Ok(())
            }
            (Space::Generic | Space::Global, _) => {
                let touch = block.touch;
                let allocation = self.allocation(block, address, n_bytes)?;
                if allocation.writes_over_another(address, n_bytes, touch) {
                    return Err(Fault::new(format!(
                        "{address:#x} was touched by another block of this launch"
                    )));
                }
                allocation.store(address, n_bytes, value);
                Ok(())
            }
            _ => Err(Fault::new("a write to memory that is only read")),
        }
    }

    fn local_place(
        &self,
        block: &Block<'_>,
        lane: usize,
        address: u64,
        n_bytes: usize,
    ) -> Result<usize, Fault> {
        let local_bytes = block.scene.kernel.local_bytes;
        let inside =
            address.checked_add(n_bytes as u64).is_some_and(|end| end <= local_bytes as u64);
        if inside {
            return Ok(lane * local_bytes + address as usize);
        }
        Err(Fault::new(format!(
            "{n_bytes} bytes at {address} of {local_bytes} bytes of local memory"
        )))
    }

    /// `mov` between whole registers and parts of them.
    fn shift_bits(
        &mut self,
        block: &Block<'_>,
        mask: u32,
        to: &[Option<u32>],
        from: &[Value],
        bits: u32,
    ) {
        let mut whole = [0_u64; LANES];
        let from_bits = bits / from.len() as u32;
        for (i, value) in from.iter().enumerate() {
            let part = self.value(block, *value);
            let shift = i as u32 * from_bits;
            for lane in 0..LANES {
                whole[lane] |= numbers::truncate(part[lane], from_bits.max(1)) << shift;
            }
        }
        let to_bits = bits / to.len() as u32;
        for (i, register) in to.iter().enumerate() {
            if let Some(register) = register {
                let shift = i as u32 * to_bits;
                let part = whole.map(|whole| numbers::truncate(whole >> shift, to_bits.max(1)));
                self.set(*register, mask, &part);
            }
        }
    }
}

/// Lanes of one instruction that write different numbers to one place: any of them may stay.
fn check_one_writer(mask: u32, addresses: &Lanes, values: &[Lanes]) -> Result<(), Fault> {
    let mut lanes: Vec<usize> = lanes_of(mask).collect();
    if lanes.is_sorted_by(|&a, &b| addresses[a] < addresses[b]) {
        return Ok(());
    }
    lanes.sort_by_key(|&lane| addresses[lane]);
    let differs = |pair: &&[usize]| {
        addresses[pair[0]] == addresses[pair[1]]
            && values.iter().any(|value| value[pair[0]] != value[pair[1]])
    };
    match lanes.windows(2).find(differs) {
        Some(pair) => Err(Fault::new(format!(
            "lanes {} and {} write different numbers to {:#x}",
            pair[0], pair[1], addresses[pair[0]]
        ))),
        None => Ok(()),
    }
}

fn slice(bytes: &[u8], start: u64, n_bytes: usize) -> Result<&[u8], Fault> {
    usize::try_from(start)
        .ok()
        .and_then(|start| bytes.get(start..start.checked_add(n_bytes)?))
        .ok_or_else(|| Fault::new(format!("{n_bytes} bytes at {start} of {} bytes", bytes.len())))
}

/// Which lane is read, and whether it is within the segment (PTX ISA, "shfl.sync").
fn source_lane(what: Shuffle, lane: usize, by: u64, clamp: u64) -> (usize, bool) {
    let (lane, by) = (lane as i64, (by & 31) as i64);
    let (clamp, segment) = ((clamp & 31) as i64, (clamp >> 8 & 31) as i64);
    let last = lane & segment | clamp & !segment;
    let first = lane & segment;
    let (from, inside) = match what {
        Shuffle::Up => (lane - by, lane - by >= last),
        Shuffle::Down => (lane + by, lane + by <= last),
        Shuffle::Butterfly => (lane ^ by, lane ^ by <= last),
        Shuffle::Index => (first | by & !segment, first | by & !segment <= last),
    };
    (from.clamp(0, 31) as usize, inside)
}
