//! The card that runs use: the first that can be computed with. What is free on it, what it says of
//! itself, and what its driver takes beside a plan.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{LazyLock, Mutex, PoisonError},
};

use nibble_kernels::{
    Capability, DeviceProfile,
    cuda::{self, Card, CardMeter, Readings, Unavailable},
};

use crate::weights::image::default_cache_folder;

/// Found once: cards do not come and go while a program runs.
static CARDS: LazyLock<Result<Vec<Card>, Unavailable>> = LazyLock::new(cuda::cards);

/// The cards that can be computed with.
pub(super) fn usable_cards() -> Result<Vec<Card>, Unavailable> {
    #[cfg(feature = "simulator")]
    if let Some(card) = simulated::card() {
        return Ok(vec![card]);
    }
    let mut cards = CARDS.clone()?;
    cards.retain(|card| card.capability >= Capability::OLDEST);
    Ok(cards)
}

/// The card that runs use.
///
/// # Errors
/// Why there is none, and what to do.
pub fn card() -> Result<Card, Unavailable> {
    let cards = usable_cards()?;
    cards.into_iter().next().ok_or(Unavailable::NoCard)
}

/// What the card of this number says now.
pub(super) fn readings(index: usize) -> Readings {
    /// Opened once: to open one takes longer than to read it, and every step reads.
    static METERS: Mutex<BTreeMap<usize, Option<CardMeter>>> = Mutex::new(BTreeMap::new());
    #[cfg(feature = "simulator")]
    if let Some(card) = simulated::card() {
        return Readings { free_bytes: Some(card.free_bytes), ..Readings::default() };
    }
    let mut meters = METERS.lock().unwrap_or_else(PoisonError::into_inner);
    let meter = meters.entry(index).or_insert_with(|| CardMeter::open(index));
    meter.as_ref().map(CardMeter::read).unwrap_or_default()
}

/// What a run may take of the card now.
pub(super) fn available_bytes() -> u64 {
    let Ok(card) = card() else { return 0 };
    let free_bytes = readings(card.index).free_bytes.unwrap_or(card.free_bytes);
    // Where a device is open in this process, its driver has taken it already.
    let coming = if cuda::n_open() == 0 { overhead_of(&card).unwrap_or(0) } else { 0 };
    free_bytes.saturating_sub(coming)
}

/// What the card's driver takes of its memory beside every plan, for its own state and the kernels'
/// code, as it was measured here before; `None`: it was not yet, or `profile` is of no card.
pub fn overhead_bytes(profile: &DeviceProfile) -> Option<u64> {
    if profile.is_cuda() { overhead_of(&card().ok()?) } else { None }
}

fn overhead_of(card: &Card) -> Option<u64> {
    #[cfg(feature = "simulator")]
    if simulated::card().is_some() {
        return Some(0);
    }
    measured().get(&key(card)).copied()
}

/// Calls `open` and remembers what it took of `card`, if that can be seen: other devices of this
/// process have taken it before. To that belongs what is free of the card afterwards but not for this process,
/// which may take as much as `allowed` says.
pub(super) fn measure_overhead<T, E>(
    card: &Card,
    open: impl FnOnce() -> Result<T, E>,
    allowed: impl FnOnce(&T) -> Option<usize>,
) -> Result<T, E> {
    let before = if cuda::n_open() == 0 { readings(card.index).free_bytes } else { None };
    let opened = open();
    if let Some(before) = before {
        let allowed = opened.as_ref().ok().and_then(allowed).map(|bytes| bytes as u64);
        let bytes = overhead(before, readings(card.index), allowed);
        if let Some(bytes) = bytes.filter(|&bytes| bytes > 0) {
            remember(card, bytes);
        }
    }
    opened
}

/// What a driver takes beside every plan, where `before` bytes were free and the process may now take `allowed`.
fn overhead(before: u64, after: Readings, allowed: Option<u64>) -> Option<u64> {
    // What this process has there is said exactly by some systems; by others what went meanwhile is
    // the nearest there is.
    let went = after.free_bytes.map(|free_bytes| before.saturating_sub(free_bytes));
    let taken = after.process_bytes.or(went)?;
    let withheld =
        after.free_bytes.zip(allowed).map(|(free, allowed)| free.saturating_sub(allowed));
    Some(taken + withheld.unwrap_or(0))
}

/// Names a card: another card's driver may take another size.
fn key(card: &Card) -> String {
    format!("{} ({})", card.name, card.capability)
}

/// Where it is kept for the next process.
fn file() -> Option<PathBuf> {
    Some(default_cache_folder().ok()?.join("cards.json"))
}

/// Bytes by card.
type Measured = BTreeMap<String, u64>;

/// What was measured on this machine, read once.
static MEASURED: LazyLock<Mutex<Measured>> = LazyLock::new(|| {
    let stored = file().and_then(|path| fs::read(path).ok());
    let measured = stored.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Mutex::new(measured.unwrap_or_default())
});

fn measured() -> Measured {
    MEASURED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn remember(card: &Card, bytes: u64) {
    let mut measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    if measured.insert(key(card), bytes) == Some(bytes) {
        return;
    }
    let store = || -> Option<()> {
        let path = file()?;
        fs::create_dir_all(path.parent()?).ok()?;
        let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&unfinished, serde_json::to_vec_pretty(&*measured).ok()?).ok()?;
        fs::rename(&unfinished, &path).ok()
    };
    // Where it cannot be kept, the next process measures again.
    let _ = store();
}

#[cfg(feature = "simulator")]
pub use simulated::simulate_card;

/// A card that is none, for tests of whole runs.
#[cfg(feature = "simulator")]
pub(super) mod simulated {
    use std::sync::atomic::{AtomicU64, Ordering};

    use nibble_kernels::{Capability, cuda::Card};

    /// Its memory; 0: there is none.
    static TOTAL_BYTES: AtomicU64 = AtomicU64::new(0);

    /// From now on the only card of this process is one in the simulator, with this much memory.
    pub fn simulate_card(total_bytes: u64) {
        TOTAL_BYTES.store(total_bytes, Ordering::Relaxed);
    }

    pub(in crate::devices) fn card() -> Option<Card> {
        let total_bytes = TOTAL_BYTES.load(Ordering::Relaxed);
        (total_bytes > 0).then(|| Card {
            index: 0,
            name: "Simulated card".into(),
            capability: Capability::OLDEST,
            total_bytes,
            free_bytes: total_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_takes_what_it_holds_and_what_its_process_may_not() {
        let after = |process_bytes, free_bytes| Readings {
            process_bytes,
            free_bytes,
            ..Readings::default()
        };
        for (readings, allowed, expected) in [
            // The process is known exactly: what others took meanwhile is not its.
            (after(Some(400), Some(7_000)), Some(7_000), Some(400)),
            // It is not: what went.
            (after(None, Some(9_500)), Some(9_500), Some(500)),
            // Free, but not for this process.
            (after(None, Some(9_500)), Some(9_000), Some(1_000)),
            (after(Some(400), Some(9_500)), Some(9_000), Some(900)),
            // Nobody says anything.
            (after(None, None), Some(9_000), None),
            (after(Some(400), None), None, Some(400)),
        ] {
            assert_eq!(overhead(10_000, readings, allowed), expected, "{readings:?} {allowed:?}");
        }
    }
}
