//! A small native window that charts any run folder, live.
//!
//! It reads the folder and nothing else: it knows the run's format, but neither the engine nor the
//! studio, so that it can stay open when the studio's window gives its graphics memory back.
//!
//! One way only: [`reader`] (a thread) → [`history`] → [`charts`] and [`header`], put together by
//! [`app`]. [`theme`] alone knows colours, and takes them from the design tokens.

pub mod app;
pub mod charts;
pub mod decimate;
pub mod header;
pub mod history;
pub mod plan_bar;
pub mod reader;
pub mod theme;
pub mod ticks;
pub mod words;
