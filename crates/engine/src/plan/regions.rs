//! Regions of one arena: who needs how many bytes, when, and therefore where.
//!
//! A layout is a function that asks [`Regions`] for every region it will use. It runs twice: the
//! first pass records the sizes and lifetimes, [`Regions::place`] assigns the offsets, and the
//! second pass is given the handles. Planning is the first pass alone, so that what is planned and
//! what is allocated come from the same lines of code.
//!
//! Regions outside the device lie one behind the other in one store.

use nibble_kernels::{DeviceSlice, Element, MemoryId, memory::BLOCK_ALIGNMENT};
use nibble_run::{Category, Residence};

use super::moments::Moments;

/// Offsets are multiples of this many bytes: a cache line, and the widest vector.
pub const REGION_ALIGNMENT: usize = 64;

/// One stretch of memory and the moments of a training step in which its content matters.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// What it holds.
    pub name: String,
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
        let mut regions =
            Self { regions: Vec::new(), total_bytes: 0, outside_bytes: 0, handing_out: None };
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
        name: impl Into<String>,
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

    /// A region of `n_bytes` outside the device, in a file or in the host's memory. Equal calls in
    /// equal order on both passes.
    pub fn outside(
        &mut self,
        name: impl Into<String>,
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
        let mut placed: Vec<usize> = Vec::with_capacity(floating.len());
        for &index in &floating {
            let (n_bytes, moments) = (self.regions[index].n_bytes, self.regions[index].moments);
            let mut offset = floor;
            // `placed` is in the order of offsets: one sweep finds the first gap.
            for &other in &placed {
                let other = &self.regions[other];
                if !other.moments.meets(moments) {
                    continue;
                }
                if offset.saturating_add(n_bytes) <= other.offset {
                    break;
                }
                offset = offset.max(align(other.offset.saturating_add(other.n_bytes)));
            }
            self.regions[index].offset = offset;
            end = end.max(align(offset.saturating_add(n_bytes)));
            let at = placed.partition_point(|&other| self.regions[other].offset <= offset);
            placed.insert(at, index);
        }
        self.total_bytes = end;
    }
}

fn align(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(REGION_ALIGNMENT).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(regions: &mut Regions) -> [DeviceSlice<f32>; 4] {
        let mut ask = |name: &str, len, moments| {
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
    fn absurd_sizes_saturate_instead_of_overflowing() {
        let regions = Regions::plan(|regions| {
            for _ in 0..3 {
                regions.region::<f32>("huge", Category::Weights, usize::MAX / 2, Moments::ALWAYS);
            }
        });
        assert_eq!(regions.total_bytes(), usize::MAX);
    }
}
