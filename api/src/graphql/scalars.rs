//! Scalars, ids and enums of the schema.

use async_graphql::{ID, InputValueError, InputValueResult, Scalar, ScalarType, Value};
use botledger_domain::Position;
use uuid::Uuid;

use super::error::{ApiError, ApiResult};

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_i64(),
        _ => None,
    }
}

/// `Position` of the schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At(pub(crate) Position);

/// A place in the ledger, from 1, without gaps; 0 is before the first event. A decimal number as a
/// string.
#[Scalar(name = "Position")]
impl ScalarType for At {
    fn parse(value: Value) -> InputValueResult<Self> {
        match whole(&value) {
            Some(position) if position >= 0 => Ok(Self(Position(position))),
            _ => Err(InputValueError::custom("a position is a whole number from 0, as a string")),
        }
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_string())
    }
}

impl From<i64> for At {
    fn from(position: i64) -> Self {
        Self(Position(position))
    }
}

impl From<Position> for At {
    fn from(position: Position) -> Self {
        Self(position)
    }
}

/// `BigInt` of the schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BigInt(pub(crate) i64);

/// A whole number of 64 bits as a decimal string.
#[Scalar(name = "BigInt")]
impl ScalarType for BigInt {
    fn parse(value: Value) -> InputValueResult<Self> {
        whole(&value)
            .map(Self)
            .ok_or_else(|| InputValueError::custom("a BigInt is a whole number, as a string"))
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_string())
    }
}

/// Things with a global id, `kind:uuid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Bot,
    Turn,
    Conversation,
    Person,
    Quota,
    Budget,
    Standing,
    Case,
    Operator,
    Workspace,
}

impl NodeKind {
    const ALL: [Self; 10] = [
        Self::Bot,
        Self::Turn,
        Self::Conversation,
        Self::Person,
        Self::Quota,
        Self::Budget,
        Self::Standing,
        Self::Case,
        Self::Operator,
        Self::Workspace,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bot => "bot",
            Self::Turn => "turn",
            Self::Conversation => "conversation",
            Self::Person => "person",
            Self::Quota => "quota",
            Self::Budget => "budget",
            Self::Standing => "standing",
            Self::Case => "case",
            Self::Operator => "operator",
            Self::Workspace => "workspace",
        }
    }

    pub(crate) fn id(self, uuid: Uuid) -> ID {
        ID(format!("{}:{}", self.name(), uuid.as_hyphenated()))
    }

    /// The UUID of an id of this kind.
    pub(crate) fn parse<T: From<Uuid>>(self, id: &ID) -> ApiResult<T> {
        match Self::split(id) {
            Some((kind, uuid)) if kind == self => Ok(T::from(uuid)),
            _ => Err(ApiError::bad_input(format!(
                "this is no id of a {0}; it looks like {0}:0190…",
                self.name()
            ))),
        }
    }

    /// What an id names.
    pub(crate) fn split(id: &ID) -> Option<(Self, Uuid)> {
        let (name, uuid) = id.as_str().split_once(':')?;
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name)?;
        Some((kind, Uuid::try_parse(uuid).ok()?))
    }
}

/// An enum of the schema whose wire names are those of the ledger in capitals.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $wire:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, async_graphql::Enum)]
        pub(crate) enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// As stored.
            #[allow(dead_code, reason = "not every enum is also an input")]
            pub(crate) fn wire(self) -> &'static str {
                match self {
                    $(Self::$variant => $wire,)+
                }
            }

            /// Reads what is stored.
            #[allow(dead_code, reason = "not every enum is also an output")]
            pub(crate) fn read(text: &str) -> crate::graphql::error::ApiResult<Self> {
                match text {
                    $($wire => Ok(Self::$variant),)+
                    _ => {
                        tracing::error!(value = text, "a stored value is not in the schema");
                        Err(crate::graphql::error::ApiError::internal())
                    }
                }
            }
        }
    };
}

pub(crate) use wire_enum;

wire_enum! {
    /// A language the bots speak.
    Language {
        /// English.
        En = "en",
        /// Russian.
        Ru = "ru",
    }
}

impl From<Language> for botledger_domain::Language {
    fn from(language: Language) -> Self {
        match language {
            Language::En => Self::En,
            Language::Ru => Self::Ru,
        }
    }
}

impl From<botledger_domain::Language> for Language {
    fn from(language: botledger_domain::Language) -> Self {
        match language {
            botledger_domain::Language::En => Self::En,
            botledger_domain::Language::Ru => Self::Ru,
        }
    }
}
