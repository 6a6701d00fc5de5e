//! Regions of one arena: who needs how many bytes, when, and therefore where.
//!
//! A layout is a function that asks [`Regions`] for every region it will use. It runs twice: the
//! first pass records the sizes and lifetimes, [`Regions::place`] assigns the offsets, and the
//! second pass is given the handles. Planning is the first pass alone, so that what is planned and
//! what is allocated come from the same lines of code.
//!
//! Regions outside the device lie one behind the other in one store.

use std::fmt;

use half::bf16;
use nibble_kernels::{
    DeviceSlice, Element, FloatFormat, Floats, MemoryId, memory::BLOCK_ALIGNMENT,
};
use nibble_run::{Category, Residence};

use super::moments::Moments;

/// Offsets are multiples of this many bytes: a cache line, and the widest vector.
pub const REGION_ALIGNMENT: usize = 64;

/// About as many regions as a plan has, when layers share theirs.
const USUAL_REGIONS: usize = 64;

/// What a region is called: `scope.number` or `scope.part`, or the first alone. Nothing is written
/// out before somebody reads it, because most plans are made to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionName {
    scope: &'static str,
    number: Option<usize>,
    part: Option<&'static str>,
}

impl From<&'static str> for RegionName {
    fn from(scope: &'static str) -> Self {
        Self { scope, number: None, part: None }
    }
}

impl From<(&'static str, &'static str)> for RegionName {
    fn from((scope, part): (&'static str, &'static str)) -> Self {
        Self { scope, number: None, part: Some(part) }
    }
}

impl From<(&'static str, usize)> for RegionName {
    fn from((scope, number): (&'static str, usize)) -> Self {
        Self { scope, number: Some(number), part: None }
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scope)?;
        if let Some(number) = self.number {
            write!(f, ".{number}")?;
        }
        self.part.map_or(Ok(()), |part| write!(f, ".{part}"))
    }
}

/// One stretch of memory and the moments of a training step in which its content matters.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// What it holds.
    pub name: RegionName,
    /// What it is for.
    pub category: Category,
    /// Where it lives.
    pub residence: Residence,
    /// Size in bytes.
    pub n_bytes: usize,
    /// When its content matters.
    pub moments: Moments,
    /// Bytes from the start of the arena, or of the store.
    pub offset: usize,
}

/// A region outside the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideRegion {
    /// Bytes from the start of the store.
    pub offset: usize,
    /// Size in bytes.
    pub n_bytes: usize,
}

impl OutsideRegion {
    /// Its parts of `n_bytes`, one behind the other.
    pub fn parts(self, n_bytes: usize) -> impl Iterator<Item = Self> {
        let n = self.n_bytes.checked_div(n_bytes).unwrap_or(0);
        (0..n).map(move |i| Self { offset: self.offset.saturating_add(i * n_bytes), n_bytes })
    }
}

/// Collects regions, places them, and hands out their handles.
#[derive(Debug)]
pub struct Regions {
    regions: Vec<Region>,
    total_bytes: usize,
    outside_bytes: usize,
    handing_out: Option<HandingOut>,
}

#[derive(Debug)]
struct HandingOut {
    memory: MemoryId,
    next: usize,
}

impl Regions {
    /// Runs `layout` to learn its regions, and places them.
    pub fn plan<L>(mut layout: impl FnMut(&mut Self) -> L) -> Self {
        let mut regions = Self {
            regions: Vec::with_capacity(USUAL_REGIONS),
            total_bytes: 0,
            outside_bytes: 0,
            handing_out: None,
        };
        layout(&mut regions);
        regions.place();
        regions
    }

    /// Runs the same `layout` again, with every handle inside `memory`.
    ///
    /// # Panics
    /// When `layout` does not ask for the regions that it was planned with.
    pub fn resolve<L>(&mut self, memory: MemoryId, mut layout: impl FnMut(&mut Self) -> L) -> L {
        self.handing_out = Some(HandingOut { memory, next: 0 });
        let resolved = layout(self);
        let given = self.handing_out.take().map_or(0, |handing_out| handing_out.next);
        assert_eq!(given, self.regions.len(), "a layout asked for fewer regions than planned");
        resolved
    }

    /// A region of `len` elements. Equal calls in equal order on both passes.
    pub fn region<T: Element>(
        &mut self,
        name: impl Into<RegionName>,
        category: Category,
        len: usize,
        moments: Moments,
    ) -> DeviceSlice<T> {
        let n_bytes = len.saturating_mul(size_of::<T>());
        match &mut self.handing_out {
            None => {
                let (name, residence, offset) = (name.into(), Residence::Device, 0);
                self.regions.push(Region { name, category, residence, n_bytes, moments, offset });
                DeviceSlice::new(MemoryId(0), 0, len)
            }
            Some(handing_out) => {
                let region = &self.regions[handing_out.next];
                assert_eq!(region.n_bytes, n_bytes, "region {} changed its size", region.name);
                handing_out.next += 1;
                DeviceSlice::new(handing_out.memory, region.offset, len)
            }
        }
    }

    /// A region of so many numbers in a format. Equal calls in equal order on both passes.
    pub fn floats(
        &mut self,
        name: impl Into<RegionName>,
        category: Category,
        (len, format): (usize, FloatFormat),
        moments: Moments,
    ) -> Floats {
        match format {
            FloatFormat::F32 => self.region::<f32>(name, category, len, moments).into(),
            FloatFormat::Bf16 => self.region::<bf16>(name, category, len, moments).into(),
        }
    }

    /// One region of `n` parts of so many numbers in a format, and its parts. Equal calls in equal order
    /// on both passes.
    pub fn parts(
        &mut self,
        name: RegionName,
        category: Category,
        n: usize,
        (len, format): (usize, FloatFormat),
        moments: Moments,
    ) -> impl Iterator<Item = Floats> + use<> {
        let all = self.floats(name, category, (n.saturating_mul(len), format), moments);
        // Absurd sizes saturate, to be refused as a plan that does not fit.
        let at = move |n: usize| n.saturating_mul(len).min(all.len());
        (0..n).map(move |number| all.slice(at(number)..at(number + 1)))
    }

    /// A region of `n_bytes` outside the device, in a file or in the host's memory. Equal calls in
    /// equal order on both passes.
    pub fn outside(
        &mut self,
        name: impl Into<RegionName>,
        category: Category,
        n_bytes: usize,
        residence: Residence,
    ) -> OutsideRegion {
        match &mut self.handing_out {
            None => {
                let (name, moments, offset) = (name.into(), Moments::ALWAYS, self.outside_bytes);
                self.outside_bytes = offset
                    .saturating_add(n_bytes)
                    .checked_next_multiple_of(BLOCK_ALIGNMENT)
                    .unwrap_or(usize::MAX);
                self.regions.push(Region { name, category, residence, n_bytes, moments, offset });
                OutsideRegion { offset, n_bytes }
            }
            Some(handing_out) => {
                let region = &self.regions[handing_out.next];
                assert_eq!(region.n_bytes, n_bytes, "region {} changed its size", region.name);
                handing_out.next += 1;
                OutsideRegion { offset: region.offset, n_bytes }
            }
        }
    }

    /// Every region, in the order in which the layout asked.
    pub fn all(&self) -> &[Region] {
        &self.regions
    }

    /// Size of the arena that holds all that are on the device.
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// Size of the store that holds the others.
    pub fn outside_bytes(&self) -> usize {
        self.outside_bytes
    }

    /// Assigns offsets: regions that always live go first, one behind the other; the others, by
    /// falling size, each at the lowest place where it meets no region of a common moment.
    fn place(&mut self) {
        let mut end = 0;
        let (fixed, mut floating): (Vec<usize>, Vec<usize>) = (0..self.regions.len())
            .filter(|&i| self.regions[i].residence == Residence::Device)
            .partition(|&i| self.regions[i].moments == Moments::ALWAYS);
        for &index in &fixed {
            let region = &mut self.regions[index];
            region.offset = end;
            end = align(end.saturating_add(region.n_bytes));
        }
        let floor = end;
        floating.sort_by_key(|&i| std::cmp::Reverse(self.regions[i].n_bytes));
        let mut placed: Vec<Span> = Vec::with_capacity(USUAL_REGIONS);
        for &index in &floating {
            let (n_bytes, moments) = (self.regions[index].n_bytes, self.regions[index].moments);
            let mut offset = floor;
            // `placed` is in the order of offsets: one sweep finds the first gap.
            for span in placed.iter().filter(|span| span.moments.meets(moments)) {
                if offset.saturating_add(n_bytes) <= span.offset {
                    break;
                }
                offset = offset.max(span.end);
            }
            self.regions[index].offset = offset;
            let span = Span { offset, end: align(offset.saturating_add(n_bytes)), moments };
            end = end.max(span.end);
            // Layers' regions of the same moments lie one behind the other, and are one for every
            // later region: a sweep is short however many layers there are.
            let before = placed.iter_mut().find(|s| s.moments == moments && s.end == span.offset);
            match before {
                Some(before) => before.end = span.end,
                None => {
                    let at = placed.partition_point(|other| other.offset <= span.offset);
                    placed.insert(at, span);
                }
            }
        }
        self.total_bytes = end;
    }
}

/// Regions of the same moments, one behind the other.
struct Span {
    offset: usize,
    /// Where another may begin.
    end: usize,
    moments: Moments,
}

fn align(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(REGION_ALIGNMENT).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(regions: &mut Regions) -> [DeviceSlice<f32>; 4] {
        let mut ask = |name: &'static str, len, moments| {
            regions.region::<f32>(name, Category::Activations, len, moments)
        };
        [
            ask("always", 10, Moments::ALWAYS),
            ask("early", 100, Moments::range(0, 3)),
            ask("late", 50, Moments::range(4, 6)),
            ask("through", 20, Moments::range(2, 5)),
        ]
    }

    #[test]
    fn regions_that_share_a_moment_share_no_byte_and_others_share() {
        let mut regions = Regions::plan(layout);
        let slices = regions.resolve(MemoryId(7), layout);
        for (i, a) in regions.all().iter().enumerate() {
            for b in &regions.all()[i + 1..] {
                let disjoint = a.offset + a.n_bytes <= b.offset || b.offset + b.n_bytes <= a.offset;
                assert!(disjoint || !a.moments.meets(b.moments), "{a:?} {b:?}");
            }
        }
        assert_eq!(slices[1].offset(), slices[2].offset(), "early and late take turns");
        assert_eq!(regions.total_bytes(), 64 + 448 + 128);
        for (slice, region) in slices.iter().zip(regions.all()) {
            assert_eq!((slice.memory(), slice.offset()), (MemoryId(7), region.offset));
            assert_eq!(slice.n_bytes(), region.n_bytes);
        }
    }

    #[test]
    fn names_are_read_with_dots() {
        let names: [RegionName; 3] =
            ["adapter".into(), ("layer", "up").into(), ("window", 1).into()];
        let read = names.map(|name| name.to_string());
        assert_eq!(read, ["adapter", "layer.up", "window.1"]);
    }

    #[test]
    fn parts_lie_one_behind_the_other() {
        let layout = |regions: &mut Regions| {
            let part = (10, FloatFormat::Bf16);
            let parts =
                regions.parts("parts".into(), Category::Activations, 3, part, Moments::pass());
            parts.collect::<Vec<_>>()
        };
        let mut regions = Regions::plan(layout);
        let parts = regions.resolve(MemoryId(7), layout);
        let place = |part: &Floats| match part {
            Floats::F32(slice) => (slice.offset(), slice.n_bytes()),
            Floats::Bf16(slice) => (slice.offset(), slice.n_bytes()),
        };
        let places: Vec<_> = parts.iter().map(place).collect();
        assert_eq!(places, [(0, 20), (20, 20), (40, 20)]);
        assert_eq!(regions.all().len(), 1);
    }

    #[test]
    fn absurd_sizes_saturate_instead_of_overflowing() {
        let regions = Regions::plan(|regions| {
            for _ in 0..3 {
                regions.region::<f32>("huge", Category::Weights, usize::MAX / 2, Moments::ALWAYS);
                let (n, part) = (usize::MAX, (3, FloatFormat::F32));
                regions.parts("parts".into(), Category::Weights, n, part, Moments::pass()).nth(7);
            }
        });
        assert_eq!(regions.total_bytes(), usize::MAX);
    }
}
