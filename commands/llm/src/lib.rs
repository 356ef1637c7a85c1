//! botledger-llm
