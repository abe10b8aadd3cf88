//! The program that has one VM. All of it is in the library, under `worker`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ember_worker::worker::main()
}
