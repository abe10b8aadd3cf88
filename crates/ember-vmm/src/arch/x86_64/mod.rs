//! The x86_64 architecture.
