//! botledger-commands
