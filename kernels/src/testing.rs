//! Test devices.
