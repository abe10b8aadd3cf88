//! Sandboxes: real Linux microVMs behind a value.
#![forbid(unsafe_code)]
