//! Guest kernels: what a file holds and how it is brought into guest memory.
