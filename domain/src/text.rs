use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString};

/// A text that does not fit its rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing but white space.
    #[error("{what} is empty")]
    Empty {
        /// Which value.
        what: &'static str,
    },
    /// Shorter than allowed.
    #[error("{what} has {actual} characters, at least {least} are needed")]
    TooShort {
        /// Which value.
        what: &'static str,
        /// Its length in code points.
        actual: usize,
        /// The least, in code points.
        least: usize,
    },
    /// Longer than allowed.
    #[error("{what} has {actual} characters, at most {limit} are allowed")]
    TooLong {
        /// Which value.
        what: &'static str,
        /// Its length in code points.
        actual: usize,
        /// The limit in code points.
        limit: usize,
    },
    /// A character outside the allowed set.
    #[error("{what} may hold only {allowed}")]
    Characters {
        /// Which value.
        what: &'static str,
        /// The allowed set, in words.
        allowed: &'static str,
    },
}

fn checked(what: &'static str, text: &str, limit: usize) -> Result<String, TextError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(TextError::Empty { what });
    }
    let actual = text.chars().count();
    if actual > limit {
        return Err(TextError::TooLong { what, actual, limit });
    }
    Ok(text.to_owned())
}

/// Whether people can have meant every character: a text of several lines, without the control
/// characters that databases and terminals do not take.
pub(crate) fn is_prose(text: &str) -> bool {
    text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t'))
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:literal, $allowed:expr, $allowed_words:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Trims and checks.
            ///
            /// # Errors
            /// When empty, too long or outside the allowed characters.
            pub fn parse(text: &str) -> Result<Self, TextError> {
                let text = checked($what, text, $limit)?;
                if !text.chars().all($allowed) {
                    return Err(TextError::Characters { what: $what, allowed: $allowed_words });
                }
                Ok(Self(text))
            }
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = TextError;
            fn try_from(text: String) -> Result<Self, TextError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> String {
                text.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text! {
    /// Why an operator did something: 1-500 characters, no personal data please.
    Reason, "the reason", 500, |c: char| !c.is_control() || c == '\n', "printable characters"
}
text! {
    /// A model as its provider names it, for example `llama3.2:3b`: 1-200 characters.
    ModelName, "the model name", 200, |c: char| c.is_ascii_graphic(), "printable ASCII without spaces"
}
text! {
    /// A quota plan's name in its workspace: 1-64 of `a-z 0-9 - _`.
    PlanName, "the plan name", 64, |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_', "a-z, 0-9, - and _"
}

/// The languages bots and dashboard speak.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, AsRefStr, EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// Russian.
    Ru,
}

impl Language {
    /// The language we speak that people with an IETF tag such as `ru-RU` understand, if there is one.
    #[must_use]
    pub fn nearest(tag: &str) -> Option<Self> {
        match tag.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "ru" | "be" | "uk" | "kk" => Some(Self::Ru),
            "en" => Some(Self::En),
            _ => None,
        }
    }
}
