//! `botledger sdl`

use botledger_local::progress::say;
use clap::Args;

#[derive(Clone, Debug, Args)]
pub struct Sdl {}

impl Sdl {
    /// Prints the GraphQL schema as it is committed in `api/schema.graphql`.
    #[must_use]
    pub fn run(self) -> u8 {
        say(botledger_api::Api::sdl().trim_end());
        0
    }
}
