//! The command line of Nibble.
fn main() {}
