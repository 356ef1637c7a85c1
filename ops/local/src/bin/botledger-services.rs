//! The `local` subcommands without the product: what tests and `ops/sqlx-prepare` stand on while the
//! product itself cannot be compiled yet. Everybody else uses `botledger local`.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "botledger-services", about = "Private PostgreSQL and Redis for working on botledger")]
struct Cli {
    #[command(subcommand)]
    command: botledger_local::LocalCommand,
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(botledger_local::run(Cli::parse().command)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "error: {error:#}"));
    ExitCode::FAILURE
}
