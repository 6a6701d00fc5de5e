//! AMX, the matrix registers of Intel's processors for servers and workstations since 2023: whether this
//! process may use them, and their shapes on a thread that does.

/// Rows of a register at most.
pub(crate) const ROWS: usize = 16;

/// Bytes of a row at most: 16 f32, or 32 bf16.
pub(crate) const ROW_BYTES: usize = 64;

/// Pairs of bf16 in a row.
pub(crate) const ROW_PAIRS: usize = ROW_BYTES / 4;

/// Whether the processor multiplies bf16 in these registers and the system lets this process use them, for
/// which it is asked once: it must then keep eight kilobytes more of a thread that is interrupted, and takes no
/// stacks for signals any more that are too small for them. Linux alone is asked.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_available() -> bool {
    #[cfg(target_os = "linux")]
    {
        static ALLOWED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *ALLOWED.get_or_init(ask)
    }
    #[cfg(not(target_os = "linux"))]
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask() -> bool {
    use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};

    /// Bits of leaf 7's EDX.
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    /// Linux's `asm/prctl.h`: asks for a part of the processor's state, by its number in XCR0.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    let (most, _) = __get_cpuid_max(0);
    let wanted = AMX_BF16 | AMX_TILE;
    if most < 7 || __cpuid_count(7, 0).edx & wanted != wanted {
        return false;
    }
    // SAFETY: the call takes two numbers and changes what this process's threads may use; it fails where the
    // system is too old, or a thread's signal stack too small.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// The registers in use on this thread, all of them [`ROWS`] of [`ROW_BYTES`]; their contents are zero at
/// first. With the last of a thread they are given back, so that it is interrupted as cheaply as before.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Tiles {
    /// Not for other threads.
    _of_thread: std::marker::PhantomData<*const ()>,
}

#[cfg(target_arch = "x86_64")]
impl Tiles {
    /// # Safety
    /// AMX must be available.
    pub unsafe fn configure() -> Self {
        if USERS.replace(USERS.get() + 1) == 0 {
            // SAFETY: the instruction reads the 64 bytes it is given; the caller vouches for it.
            unsafe {
                std::arch::asm!(
                    "ldtilecfg [{}]",
                    in(reg) &raw const SHAPES,
                    options(nostack, readonly, preserves_flags)
                );
            }
        }
        Self { _of_thread: std::marker::PhantomData }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Tiles {
    fn drop(&mut self) {
        if USERS.replace(USERS.get() - 1) == 1 {
            // SAFETY: they were configured on this thread, where nobody uses them any more.
            unsafe { std::arch::asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
thread_local! {
    /// How many [`Tiles`] there are.
    static USERS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// What `ldtilecfg` reads.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight registers alike.
#[cfg(target_arch = "x86_64")]
static SHAPES: Shapes = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut register = 0;
    while register < 8 {
        row_bytes[register] = ROW_BYTES as u16;
        rows[register] = ROWS as u8;
        register += 1;
    }
    Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};
