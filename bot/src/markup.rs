//! From a model's Markdown to Telegram text with entities, cut into messages.
//!
//! Entities need no escaping, so no answer can be lost to a stray character. Text length counts
//! Unicode code points, entity offsets count UTF-16 units (`facts/telegram.md` section 6).

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use teloxide::types::{MessageEntity, MessageEntityKind};

/// Code points of one message at most.
pub(crate) const MESSAGE_CHARS: usize = 4_096;
/// Entities of one message at most; Telegram ignores or refuses more.
const MESSAGE_ENTITIES: usize = 100;

/// A text with its entities, offsets in UTF-16 units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Formatted {
    pub(crate) text: String,
    pub(crate) entities: Vec<MessageEntity>,
}

impl Formatted {
    pub(crate) fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), entities: Vec::new() }
    }

    /// This text and another one as a paragraph of its own: no unclosed mark of the first reaches the
    /// second.
    pub(crate) fn then(mut self, other: Self) -> Self {
        self.text.push_str("\n\n");
        let units = self.text.encode_utf16().count();
        self.text.push_str(&other.text);
        self.entities.extend(other.entities.into_iter().map(|mut entity| {
            entity.offset += units;
            entity
        }));
        self
    }
}

struct Writer {
    text: String,
    /// Length of `text` in UTF-16 units.
    units: usize,
    entities: Vec<MessageEntity>,
    open: Vec<(MessageEntityKind, usize)>,
    lists: Vec<Option<u64>>,
}

impl Writer {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.units += text.encode_utf16().count();
    }

    fn begin(&mut self, kind: MessageEntityKind) {
        self.open.push((kind, self.units));
    }

    fn end(&mut self) {
        if let Some((kind, offset)) = self.open.pop()
            && self.units > offset
        {
            self.entities.push(MessageEntity::new(kind, offset, self.units - offset));
        }
    }

    /// Ends a block: exactly this many line breaks stand before what follows.
    fn lines(&mut self, breaks: usize) {
        if self.text.is_empty() {
            return;
        }
        let there = self.text.bytes().rev().take_while(|byte| *byte == b'\n').count();
        for _ in there..breaks {
            self.push("\n");
        }
    }
}

/// Formats Markdown. What Telegram has no entity for (tables, images, rules) stays readable text.
pub(crate) fn format(markdown: &str) -> Formatted {
    let mut writer =
        Writer { text: String::new(), units: 0, entities: Vec::new(), open: Vec::new(), lists: Vec::new() };
    for event in Parser::new_ext(markdown, Options::ENABLE_STRIKETHROUGH) {
        match event {
            Event::Start(tag) => start(&mut writer, tag),
            Event::End(tag) => end(&mut writer, tag),
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) => writer.push(&text),
            Event::Code(text) => {
                writer.begin(MessageEntityKind::Code);
                writer.push(&text);
                writer.end();
            }
            Event::SoftBreak | Event::HardBreak => writer.push("\n"),
            Event::Rule => {
                writer.lines(1);
                writer.push("———");
                writer.lines(2);
            }
            Event::InlineMath(text) | Event::DisplayMath(text) => writer.push(&text),
            Event::FootnoteReference(name) => writer.push(&format!("[{name}]")),
            Event::TaskListMarker(done) => writer.push(if done { "☑ " } else { "☐ " }),
        }
    }
    while !writer.open.is_empty() {
        writer.end();
    }
    let kept = writer.text.trim_end().len();
    writer.text.truncate(kept);
    let units = writer.text.encode_utf16().count();
    let entities = writer.entities.into_iter().filter_map(|entity| clip(&entity, 0, units)).collect();
    let mut formatted = Formatted { text: writer.text, entities };
    formatted.entities.sort_by_key(|entity| (entity.offset, usize::MAX - entity.length));
    formatted
}

fn start(writer: &mut Writer, tag: Tag<'_>) {
    match tag {
        Tag::Heading { level, .. } => {
            writer.lines(2);
            writer.begin(MessageEntityKind::Bold);
            if level == HeadingLevel::H1 {
                writer.begin(MessageEntityKind::Underline);
            }
        }
        Tag::Paragraph if writer.lists.is_empty() => writer.lines(2),
        Tag::BlockQuote(_) => {
            writer.lines(2);
            writer.begin(MessageEntityKind::Blockquote);
        }
        Tag::CodeBlock(kind) => {
            writer.lines(2);
            let language = match kind {
                CodeBlockKind::Fenced(name) if !name.is_empty() => Some(name.to_string()),
                _ => None,
            };
            writer.begin(MessageEntityKind::Pre { language });
        }
        Tag::List(first) => {
            writer.lines(if writer.lists.is_empty() { 2 } else { 1 });
            writer.lists.push(first);
        }
        Tag::Item => {
            writer.lines(1);
            let indent = "  ".repeat(writer.lists.len().saturating_sub(1));
            let mark = match writer.lists.last_mut() {
                Some(Some(number)) => {
                    *number += 1;
                    format!("{indent}{}. ", *number - 1)
                }
                _ => format!("{indent}• "),
            };
            writer.push(&mark);
        }
        Tag::Emphasis => writer.begin(MessageEntityKind::Italic),
        Tag::Strong => writer.begin(MessageEntityKind::Bold),
        Tag::Strikethrough => writer.begin(MessageEntityKind::Strikethrough),
        Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => {
            // Only addresses a person can open; others stay plain text.
            match dest_url.parse::<reqwest::Url>() {
                Ok(url) if matches!(url.scheme(), "http" | "https" | "mailto") => {
                    writer.begin(MessageEntityKind::TextLink { url });
                }
                _ => writer.begin(MessageEntityKind::Italic),
            }
        }
        _ => {}
    }
}

fn end(writer: &mut Writer, tag: TagEnd) {
    match tag {
        TagEnd::Heading(level) => {
            if level == HeadingLevel::H1 {
                writer.end();
            }
            writer.end();
        }
        TagEnd::BlockQuote(_) | TagEnd::CodeBlock => {
            // The line break that ends the block is not part of it.
            while writer.text.ends_with('\n') {
                writer.text.pop();
                writer.units -= 1;
            }
            writer.end();
        }
        TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough | TagEnd::Link | TagEnd::Image => {
            writer.end()
        }
        TagEnd::List(_) => {
            writer.lists.pop();
            if writer.lists.is_empty() {
                writer.lines(2);
            }
        }
        TagEnd::TableRow | TagEnd::TableHead => writer.lines(1),
        TagEnd::TableCell => writer.push(" | "),
        _ => {}
    }
}

/// The part of an entity inside a stretch of UTF-16 units, relative to its start.
fn clip(entity: &MessageEntity, from: usize, until: usize) -> Option<MessageEntity> {
    let start = entity.offset.max(from);
    let end = (entity.offset + entity.length).min(until);
    (start < end).then(|| MessageEntity::new(entity.kind.clone(), start - from, end - start))
}

/// Cuts into messages of at most 4,096 code points, at line ends or spaces where there are any, never
/// inside a character. Entities that reach over a cut go on in the next message.
pub(crate) fn split(formatted: &Formatted) -> Vec<Formatted> {
    let mut messages = Vec::new();
    let (mut rest, mut at_unit) = (formatted.text.as_str(), 0);
    while !rest.is_empty() {
        let cut = cut_of(rest);
        let (piece, after) = rest.split_at(cut);
        let units = piece.encode_utf16().count();
        let shown = piece.trim_end();
        if !shown.is_empty() {
            let shown_units = shown.encode_utf16().count();
            let mut entities: Vec<_> = formatted
                .entities
                .iter()
                .filter_map(|entity| clip(entity, at_unit, at_unit + shown_units))
                .collect();
            entities.truncate(MESSAGE_ENTITIES);
            messages.push(Formatted { text: shown.to_owned(), entities });
        }
        at_unit += units;
        rest = after;
    }
    messages
}

fn cut_of(text: &str) -> usize {
    let Some((limit, _)) = text.char_indices().nth(MESSAGE_CHARS) else { return text.len() };
    let window = &text[..limit];
    // A break in the last quarter is worth a shorter message.
    let earliest = limit / 4 * 3;
    for mark in ["\n\n", "\n", " "] {
        if let Some(place) = window.rfind(mark)
            && place >= earliest
        {
            return place + mark.len();
        }
    }
    limit
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(formatted: &Formatted) -> Vec<(String, String)> {
        let units: Vec<u16> = formatted.text.encode_utf16().collect();
        formatted
            .entities
            .iter()
            .map(|entity| {
                let part = &units[entity.offset..entity.offset + entity.length];
                let kind = serde_json::to_value(&entity.kind).expect("JSON")["type"]
                    .as_str()
                    .expect("a type")
                    .to_owned();
                (kind, String::from_utf16(part).expect("whole characters"))
            })
            .collect()
    }

    #[test]
    fn what_follows_is_not_caught_by_a_mark_that_was_left_open() {
        let both = format("🙂 **bold** and\n\n```rust\nfn main() {").then(format("mind **this**"));
        assert!(both.text.ends_with("\n\nmind this"), "{}", both.text);
        let marks = shown(&both);
        assert_eq!(marks.first().map(|(_, part)| part.as_str()), Some("bold"));
        assert_eq!(marks.last(), Some(&("bold".to_owned(), "this".to_owned())));
    }

    #[test]
    fn markdown_becomes_entities() {
        let formatted = format(
            "# Title\n\nSome **bold 🙂 and _both_** `x < y`\n\n```rust\nfn main() {}\n```\n\n- one\n- two",
        );
        assert_eq!(formatted.text, "Title\n\nSome bold 🙂 and both x < y\n\nfn main() {}\n\n• one\n• two");
        let entities = shown(&formatted);
        for (kind, text) in [
            ("bold", "Title"),
            ("bold", "bold 🙂 and both"),
            ("italic", "both"),
            ("code", "x < y"),
            ("pre", "fn main() {}"),
        ] {
            assert!(entities.contains(&(kind.to_owned(), text.to_owned())), "{kind} {text} in {entities:?}");
        }
    }

    #[test]
    fn dangerous_addresses_are_no_links() {
        let formatted = format("[a](javascript:alert(1)) [b](https://example.org)");
        let kinds: Vec<_> = shown(&formatted).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, ["italic", "text_link"]);
    }

    #[test]
    fn four_thousand_and_ninety_six_emoji_are_one_message() {
        assert_eq!(split(&Formatted::plain("🙂".repeat(4_096))).len(), 1);
        assert_eq!(split(&Formatted::plain("🙂".repeat(4_097))).len(), 2);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_by_formatting_plain_words(words in prop::collection::vec("[а-яa-z🙂]{1,12}", 1..60)) {
            let text = words.join(" ");
            prop_assert_eq!(format(&text).text, text);
        }

        #[test]
        fn every_piece_is_sendable(piece in "(\\PC|\n){0,300}", times in 1usize..40, bold in 0usize..4000) {
            let text = piece.repeat(times);
            let units = text.encode_utf16().count();
            let whole = Formatted {
                entities: if units > bold { vec![MessageEntity::bold(bold.min(units - 1), units - bold.min(units - 1))] } else { vec![] },
                text: text.clone(),
            };
            let pieces = split(&whole);
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            prop_assert_eq!(squeeze(&pieces.iter().map(|piece| piece.text.as_str()).collect::<String>()), squeeze(&text));
            for piece in pieces {
                prop_assert!(!piece.text.is_empty() && piece.text.chars().count() <= MESSAGE_CHARS);
                let units = piece.text.encode_utf16().count();
                prop_assert!(piece.entities.iter().all(|entity| entity.length > 0 && entity.offset + entity.length <= units));
            }
        }

        #[test]
        fn no_markdown_breaks_it(text in "[*_`~#>\\[\\]()a-z \n🙂|-]{0,300}") {
            let formatted = format(&text);
            let units = formatted.text.encode_utf16().count();
            for entity in &formatted.entities {
                prop_assert!(entity.length > 0 && entity.offset + entity.length <= units);
            }
        }
    }
}
