//! ember-cli
fn main() {}
