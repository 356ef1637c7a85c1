//! botledger-api
