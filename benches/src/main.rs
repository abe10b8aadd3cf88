//! ember-benches
fn main() {}
