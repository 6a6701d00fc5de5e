//! The desktop app.

#![cfg_attr(not(debug_assertions), windows_subsystem = "windows")]

fn main() {
    #[cfg(target_os = "linux")]
    linux::spare_memory();
    nibble_studio::run();
}

#[cfg(target_os = "linux")]
mod linux {
    /// How the web view hands its pictures to the window: through plain memory. Through the graphics
    /// card's it takes memory that training could use, stays white with some of NVIDIA's drivers
    /// (<https://github.com/tauri-apps/tauri/issues/9304>), and without a card is a hundred megabytes
    /// and half a core of emulation.
    const PLAIN_PICTURES: &str = "WEBKIT_DISABLE_DMABUF_RENDERER";

    /// Before anything else runs: what the app takes, training lacks.
    #[expect(unsafe_code, reason = "the environment and the allocator are changed, alone")]
    pub fn spare_memory() {
        if std::env::var_os(PLAIN_PICTURES).is_none() {
            // SAFETY: no other thread runs yet.
            unsafe { std::env::set_var(PLAIN_PICTURES, "1") };
        }
        // One pool of freed memory for all threads, who would each keep their own.
        #[cfg(target_env = "gnu")]
        // SAFETY: no other thread runs yet, and the call takes plain numbers.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1)
        };
    }
}
