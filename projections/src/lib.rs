//! botledger-projections
