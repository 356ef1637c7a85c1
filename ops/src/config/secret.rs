//! A value that is never printed.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What stands for a secret that is set.
pub(super) const REDACTED: &str = "[secret]";

/// A string that shows itself only through [`Secret::expose`]: `Debug` and `Serialize` give
/// `[secret]`, or nothing when it is not set.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself. Not for logs, errors or answers.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is not set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A key of 32 bytes from 64 hex digits.
    ///
    /// # Errors
    /// Says what is wrong without showing the value.
    pub fn key(&self) -> Result<[u8; 32], &'static str> {
        if self.is_empty() {
            return Err("is not set");
        }
        let bytes = hex::decode(self.0.trim()).map_err(|_| "is not hexadecimal")?;
        bytes.try_into().map_err(|_| "is not 32 bytes (64 hex digits)")
    }

    fn shown(&self) -> &'static str {
        if self.is_empty() { "" } else { REDACTED }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "[not set]" } else { REDACTED })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}
