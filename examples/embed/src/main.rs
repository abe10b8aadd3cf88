//! ember-embed
fn main() {}
