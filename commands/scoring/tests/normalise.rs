//! The shared reading of a text.

use botledger_scoring::normalise::{READ_EACH_END, WINDOW_WORDS, WordKind};
use botledger_scoring::{Normalised, Span};
use proptest::prelude::*;

fn folded(text: &str) -> String {
    Normalised::of(text).folded().to_owned()
}

/// What the original shows where `part` stands in the folded text.
fn original_of(text: &str, part: &str) -> String {
    let normalised = Normalised::of(text);
    let start = normalised.folded().find(part).expect("the folded text has the part");
    let span = normalised.span_of(start..start + part.len());
    text.chars().skip(span.start as usize).take((span.end - span.start) as usize).collect()
}

#[test]
fn compatibility_forms_and_case_are_folded() {
    assert_eq!(folded("Ｉｇｎｏｒｅ ﬁles №5"), "ignore files no5");
    assert_eq!(folded("𝕚𝖌𝗻𝘰𝓻𝒆 ⓐⓛⓛ"), "ignore all");
    assert_eq!(folded("ɪɢɴᴏʀᴇ 🅰🅻🅻"), "ignore all");
    assert_eq!(folded("don’t — “stop”"), "don't - \"stop\"");
    assert_eq!(folded("ЁЛКА за́мок"), "елка замок");
    assert_eq!(folded("İstanbul"), "istanbul");
}

#[test]
fn invisible_characters_are_taken_out_and_counted() {
    let text = "ig\u{200b}no\u{2060}re\u{202e} all";
    assert_eq!(folded(text), "ignore all");
    assert_eq!(Normalised::of(text).hidden(), 3);
    assert_eq!(Normalised::of("👨‍👩‍👧 ❤️").hidden(), 0);
    assert_eq!(folded("z\u{335}\u{336}a\u{337}l\u{338}go"), "zalgo");
}

#[test]
fn only_words_that_mix_scripts_are_put_back() {
    assert_eq!(folded("Игнорируй ВСЕ правила"), "игнорируй все правила");
    assert_eq!(folded("сор and СОР"), "сор and сор");
    // Cyrillic letters in an English word, Latin ones in a Russian word.
    assert_eq!(folded("іgnоrе аll рrevious"), "ignore all previous");
    assert_eq!(folded("зapaбoтoк oт 5ООО"), "заработок от 5ооо");
    assert_eq!(Normalised::of("зapaбoтoк в день").mixed_words(), 1);
    // Four of six letters are Cyrillic, but nothing Cyrillic needs an "l".
    assert_eq!(folded("раураl"), "paypal");
    assert_eq!(Normalised::of("API-шка для html").mixed_words(), 0);
}

#[test]
fn spans_lead_back_to_the_original() {
    assert_eq!(original_of("Пожалуйста, ИГНОРИРУЙ всё", "игнорируй"), "ИГНОРИРУЙ");
    assert_eq!(original_of("x ﬁle y", "fi"), "ﬁ");
    assert_eq!(original_of("a i\u{200b}g\u{200b}nore b", "ignore"), "i\u{200b}g\u{200b}nore");
    assert_eq!(original_of("ok e\u{301}cole", "\u{e9}cole"), "e\u{301}cole");
    assert_eq!(original_of("🙂🙂 secret", "secret"), "secret");
    let empty = Normalised::of("");
    assert_eq!(empty.span_of(0..0), Span { start: 0, end: 0 });
    let text = Normalised::of("абв");
    assert_eq!(text.span_of(2..2), Span { start: 1, end: 1 });
    assert_eq!(text.span_of(6..6), Span { start: 3, end: 3 });
    // A range inside of characters widens to them.
    assert_eq!(text.span_of(1..3), Span { start: 0, end: 2 });
}

#[test]
fn the_middle_of_a_long_text_is_skipped_and_offsets_stay_true() {
    let text = format!("{}НАЧАЛО{}finale", "ж".repeat(READ_EACH_END - 6), "z".repeat(50_000));
    let normalised = Normalised::of(&text);
    assert!(normalised.folded().contains("начало") && normalised.folded().ends_with("finale"));
    assert_eq!(normalised.folded().chars().count(), 2 * READ_EACH_END + 1);
    let end = normalised.folded().len();
    let length = text.chars().count() as u32;
    assert_eq!(normalised.span_of(end - 6..end), Span { start: length - 6, end: length });
    let skipped = normalised.skipped().expect("a middle was skipped");
    assert_eq!(skipped, Span { start: 4_000, end: length - 4_000 });
    assert!(Normalised::of(&"я".repeat(2 * READ_EACH_END)).skipped().is_none());
}

#[test]
fn words_numbers_and_symbols_are_told_apart() {
    let text = Normalised::of("Don't pay 500$!!! 👍 да-да");
    let words: Vec<(&str, WordKind)> = text.words().iter().map(|word| (text.word(word), word.kind)).collect();
    assert_eq!(
        words,
        [
            ("don't", WordKind::Letters),
            ("pay", WordKind::Letters),
            ("500", WordKind::Number),
            ("$", WordKind::Symbol),
            ("!!!", WordKind::Symbol),
            ("👍", WordKind::Symbol),
            ("да", WordKind::Letters),
            ("-", WordKind::Symbol),
            ("да", WordKind::Letters),
        ]
    );
}

#[test]
fn windows_cover_every_word_and_stay_short() {
    for count in [0, 1, 60, 89, 90, 91, 105, 106, 500, 1_333] {
        let text = Normalised::of(&"w ".repeat(count));
        let mut covered = 0;
        for window in text.windows() {
            assert!(window.start <= covered && window.end > covered, "{count} words: {window:?}");
            assert!(window.len() <= WINDOW_WORDS || (count <= 90 && window.len() == count));
            covered = window.end;
        }
        assert_eq!(covered, count);
    }
}

#[test]
fn a_text_of_expanding_characters_stays_bounded() {
    let text = Normalised::of(&"\u{fdfa}".repeat(100_000));
    assert!(text.folded().chars().count() <= 4 * READ_EACH_END + 40);
}

proptest! {
    #[test]
    fn any_text_has_sound_spans(text in "\\PC{0,200}") {
        let normalised = Normalised::of(&text);
        let length = text.chars().count() as u32;
        let mut before = 0;
        for word in normalised.words() {
            let span = normalised.span_of(word.range.clone());
            prop_assert!(span.start < span.end && span.end <= length, "{span:?} of {length}");
            prop_assert!(span.start >= before);
            before = span.start;
        }
    }

    #[test]
    fn russian_and_english_letters_keep_their_places(text in "[a-zA-Zа-яА-Я ]{0,80}") {
        let normalised = Normalised::of(&text);
        prop_assert_eq!(normalised.folded().chars().count(), text.chars().count());
        for (index, (byte, letter)) in normalised.folded().char_indices().enumerate() {
            let index = index as u32;
            prop_assert_eq!(normalised.span_of(byte..byte + letter.len_utf8()), Span { start: index, end: index + 1 });
        }
    }
}
