//! botledger-journal
