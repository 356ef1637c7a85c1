//! The commands people can give, and the buttons under the answers.

use botledger_domain::Language;
use serde_json::{Value, json};

/// A command, in the order Telegram's menu shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Start,
    Help,
    New,
    Sessions,
    History,
    Search,
    Usage,
    Status,
    Settings,
    Stop,
    Appeal,
    Privacy,
}

impl Command {
    pub(crate) const ALL: [Self; 12] = [
        Self::Start,
        Self::Help,
        Self::New,
        Self::Sessions,
        Self::History,
        Self::Search,
        Self::Usage,
        Self::Status,
        Self::Settings,
        Self::Stop,
        Self::Appeal,
        Self::Privacy,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Help => "help",
            Self::New => "new",
            Self::Sessions => "sessions",
            Self::History => "history",
            Self::Search => "search",
            Self::Usage => "usage",
            Self::Status => "status",
            Self::Settings => "settings",
            Self::Stop => "stop",
            Self::Appeal => "appeal",
            Self::Privacy => "privacy",
        }
    }

    pub(crate) fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.name() == name)
    }

    /// Whether it is obeyed for people whose messages are not answered otherwise: what tells them where
    /// they stand and lets them do something about it.
    pub(crate) fn is_for_blocked_people(self) -> bool {
        matches!(self, Self::Help | Self::Status | Self::Settings | Self::Appeal | Self::Privacy)
    }

    /// The line in Telegram's menu and in `/help`.
    pub(crate) fn summary(self, language: Language) -> &'static str {
        let (en, ru) = match self {
            Self::Start => ("begin", "начать"),
            Self::Help => ("what I can do", "что я умею"),
            Self::New => ("a fresh session", "новая беседа"),
            Self::Sessions => ("go back to an earlier session", "вернуться к прежней беседе"),
            Self::History => ("the last messages", "последние сообщения"),
            Self::Search => ("search what was said", "искать в сказанном"),
            Self::Usage => ("what you have used", "сколько израсходовано"),
            Self::Status => ("how things stand", "как обстоят дела"),
            Self::Settings => ("language", "язык"),
            Self::Stop => ("stop the answer being written", "остановить ответ"),
            Self::Appeal => {
                ("ask a human to look at a warning or a block", "попросить человека пересмотреть блокировку")
            }
            Self::Privacy => ("what happens to your data", "что происходит с вашими данными"),
        };
        match language {
            Language::En => en,
            Language::Ru => ru,
        }
    }
}

/// Parameters of `setMyCommands` for one language.
pub(crate) fn menu(language: Language) -> Value {
    let commands: Vec<Value> = Command::ALL
        .into_iter()
        .map(|command| json!({"command": command.name(), "description": command.summary(language)}))
        .collect();
    match language {
        // The list without a language is for everybody who has none of their own.
        Language::En => json!({"commands": commands}),
        Language::Ru => json!({"commands": commands, "language_code": "ru"}),
    }
}

/// What a button asks for; its data, at most 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Button {
    Session(u32),
    Language(Language),
}

impl Button {
    pub(crate) fn data(self) -> String {
        match self {
            Self::Session(number) => format!("session:{number}"),
            Self::Language(language) => format!("language:{}", language.as_ref()),
        }
    }

    pub(crate) fn read(data: &str) -> Option<Self> {
        let (kind, value) = data.split_once(':')?;
        match kind {
            "session" => value.parse().ok().map(Self::Session),
            "language" => value.parse().ok().map(Self::Language),
            _ => None,
        }
    }
}

/// An inline keyboard with one button a row.
pub(crate) fn keyboard(buttons: &[(String, Button)]) -> Value {
    let rows: Vec<Value> = buttons
        .iter()
        .map(|(text, button)| json!([{"text": text, "callback_data": button.data()}]))
        .collect();
    json!({"inline_keyboard": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buttons_read_what_they_wrote_and_nothing_else() {
        for button in [Button::Session(17), Button::Language(Language::Ru)] {
            assert_eq!(Button::read(&button.data()), Some(button));
            assert!(button.data().len() <= 64);
        }
        for data in ["", "session:", "session:-1", "language:xx", "other:1"] {
            assert_eq!(Button::read(data), None, "{data}");
        }
    }

    #[test]
    fn menus_fit_what_telegram_takes() {
        for language in [Language::En, Language::Ru] {
            for command in menu(language)["commands"].as_array().expect("a list") {
                let description = command["description"].as_str().expect("a text");
                assert!((1..=256).contains(&description.chars().count()));
            }
        }
    }
}
