use serde::{Deserialize, Serialize};

/// What a sealed body holds, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BodyContent {
    /// An update as it came.
    Update {
        /// Its text or caption, if any.
        text: Option<String>,
        /// The raw JSON.
        raw: String,
    },
    /// An answer.
    Reply {
        /// As the model wrote it, before any formatting.
        text: String,
    },
    /// The grounds of an appeal.
    Appeal {
        /// As the person wrote them.
        text: String,
    },
}

impl BodyContent {
    /// The text a person would see.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Update { text, .. } => text.as_deref(),
            Self::Reply { text } | Self::Appeal { text } => Some(text),
        }
    }
}
