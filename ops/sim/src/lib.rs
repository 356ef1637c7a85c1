//! botledger-sim
