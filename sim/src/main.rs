//! The `fleetwave` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    fleetwave::cli::main()
}
