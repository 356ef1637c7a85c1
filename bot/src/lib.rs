//! botledger-bot
