//! The Bot API methods the stand-in knows, with all their parameters. A test compares the table with
//! the published specification in both directions.

use serde_json::{Map, Value};

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Integer,
    /// A text.
    Text,
    /// True or false.
    Flag,
    /// A chat: number or `@username`.
    Chat,
    /// An object or a list.
    Structure,
}

/// A parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// As on the wire.
    pub name: &'static str,
    /// Whether the specification requires it.
    pub required: bool,
    /// What it may be.
    pub kind: Kind,
}

/// A method.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// As in the specification; on the wire the case does not matter.
    pub name: &'static str,
    /// All of its parameters.
    pub parameters: &'static [Parameter],
}

const fn required(name: &'static str, kind: Kind) -> Parameter {
    Parameter { name, required: true, kind }
}

const fn optional(name: &'static str, kind: Kind) -> Parameter {
    Parameter { name, required: false, kind }
}

use Kind::{Chat, Flag, Integer, Structure, Text};

/// Every method the stand-in answers.
pub const METHODS: &[Method] = &[
    Method { name: "getMe", parameters: &[] },
    Method {
        name: "getUpdates",
        parameters: &[
            optional("offset", Integer),
            optional("limit", Integer),
            optional("timeout", Integer),
            optional("allowed_updates", Structure),
        ],
    },
    Method {
        name: "setWebhook",
        parameters: &[
            required("url", Text),
            optional("certificate", Structure),
            optional("ip_address", Text),
            optional("max_connections", Integer),
            optional("allowed_updates", Structure),
            optional("drop_pending_updates", Flag),
            optional("secret_token", Text),
        ],
    },
    Method { name: "deleteWebhook", parameters: &[optional("drop_pending_updates", Flag)] },
    Method { name: "getWebhookInfo", parameters: &[] },
    Method {
        name: "setMyCommands",
        parameters: &[
            required("commands", Structure),
            optional("scope", Structure),
            optional("language_code", Text),
        ],
    },
    Method {
        name: "getMyCommands",
        parameters: &[optional("scope", Structure), optional("language_code", Text)],
    },
    Method {
        name: "sendMessage",
        parameters: &[
            optional("business_connection_id", Text),
            required("chat_id", Chat),
            optional("message_thread_id", Integer),
            optional("direct_messages_topic_id", Integer),
            optional("ephemeral_message_parameters", Structure),
            required("text", Text),
            optional("parse_mode", Text),
            optional("entities", Structure),
            optional("link_preview_options", Structure),
            optional("disable_notification", Flag),
            optional("protect_content", Flag),
            optional("allow_paid_broadcast", Flag),
            optional("message_effect_id", Text),
            optional("suggested_post_parameters", Structure),
            optional("reply_parameters", Structure),
            optional("reply_markup", Structure),
        ],
    },
    Method {
        name: "editMessageText",
        parameters: &[
            optional("business_connection_id", Text),
            optional("chat_id", Chat),
            optional("message_id", Integer),
            optional("inline_message_id", Text),
            optional("text", Text),
            optional("parse_mode", Text),
            optional("entities", Structure),
            optional("link_preview_options", Structure),
            optional("rich_message", Structure),
            optional("reply_markup", Structure),
        ],
    },
    Method {
        name: "deleteMessage",
        parameters: &[required("chat_id", Chat), required("message_id", Integer)],
    },
    Method {
        name: "sendChatAction",
        parameters: &[
            optional("business_connection_id", Text),
            required("chat_id", Chat),
            optional("message_thread_id", Integer),
            required("action", Text),
        ],
    },
    Method {
        name: "answerCallbackQuery",
        parameters: &[
            required("callback_query_id", Text),
            optional("text", Text),
            optional("show_alert", Flag),
            optional("url", Text),
            optional("cache_time", Integer),
        ],
    },
];

/// Finds a method whatever its case.
#[must_use]
pub fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name.eq_ignore_ascii_case(name))
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        // Everything may come as a text too: forms know nothing else.
        match self {
            Self::Integer => value.is_i64() || value.as_str().is_some_and(|text| text.parse::<i64>().is_ok()),
            Self::Text => value.is_string(),
            Self::Flag => value.is_boolean() || matches!(value.as_str(), Some("true" | "false")),
            Self::Chat => value.is_i64() || value.is_string(),
            Self::Structure => value.is_object() || value.is_array() || value.is_string(),
        }
    }
}

impl Method {
    /// Says what is wrong with parameters. Stricter than Telegram, which ignores what it does not
    /// know: a parameter with a misspelt name is a fault here.
    ///
    /// # Errors
    /// The description of a 400.
    pub fn check(&self, parameters: &Map<String, Value>) -> Result<(), String> {
        for parameter in self.parameters {
            match parameters.get(parameter.name) {
                None if parameter.required => {
                    return Err(format!("Bad Request: parameter \"{}\" is required", parameter.name));
                }
                Some(value) if !parameter.kind.fits(value) => {
                    return Err(format!(
                        "Bad Request: parameter \"{}\" is no {:?}",
                        parameter.name, parameter.kind
                    ));
                }
                _ => {}
            }
        }
        let unknown =
            parameters.keys().find(|name| !self.parameters.iter().any(|known| known.name == name.as_str()));
        match unknown {
            Some(name) => Err(format!("Bad Request: {} has no parameter \"{name}\"", self.name)),
            None => Ok(()),
        }
    }
}
