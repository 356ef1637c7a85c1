//! Advertising, recruiting and swindle.

use std::path::PathBuf;

use botledger_scoring::Normalised;
use botledger_scoring::attack::Level;
use botledger_scoring::spam::{LabelledText, SpamModel, SpamScore};
use proptest::prelude::*;

fn score(text: &str) -> SpamScore {
    SpamModel::shipped().score(&Normalised::of(text))
}

fn shared(set: &str) -> Option<Vec<(String, bool)>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/datasets")
        .join(set)
        .join("train.jsonl");
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("skipped: the shared data set {set} is not at hand");
        return None;
    };
    let row = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).expect("a row");
        (row["text"].as_str().expect("a text").to_owned(), row["label"] == 1)
    };
    Some(text.lines().map(row).collect())
}

fn shares<'a>(model: &SpamModel, rows: impl Iterator<Item = &'a (String, bool)> + Clone) -> (f64, f64) {
    let share = |spam: bool| {
        let of: Vec<_> = rows.clone().filter(|row| row.1 == spam).collect();
        of.iter().filter(|row| model.score(&Normalised::of(&row.0)).flagged).count() as f64 / of.len() as f64
    };
    (share(true), share(false))
}

#[test]
fn advertising_is_flagged_in_english_and_russian() {
    for text in [
        "Earn 300$ a day from home, no experience needed, dm me for details",
        "Congratulations, you have won a £1000 prize! Call 09061701461 to claim your reward",
        "Join our channel for VIP crypto signals https://t.me/+AbCdEf",
        "Ищу людей в команду, доход от 1000$ в месяц, пишите в лс",
        "Казино дарит бонус на депозит, переходи https://t.me/casino_bot",
        "Интимные фото и видео 18+ тут 👉 @girls_bot",
        "Удaлённый зapaбoтoк, дoxoд oт 100$ в дeнь, пишитe +",
    ] {
        assert!(score(text).flagged, "{text}: {:?}", score(text).evidence);
    }
}

#[test]
fn everyday_messages_with_the_same_words_are_not() {
    for text in [
        "Call me when you are home, I have won the chess game!",
        "My salary is 3000$ a month, is that good for Berlin?",
        "https://github.com/rust-lang/rust/pull/1",
        "How does bitcoin mining work?",
        "Is this casino advert legal?",
        "Какой сейчас доход у учителей?",
        "напиши мне в личку, скину конспект",
        "Где лучше курс доллара?",
        "Продаю коляску, самовывоз",
        "",
    ] {
        assert!(!score(text).flagged, "{text}: {:?}", score(text).evidence);
    }
}

#[test]
fn writing_a_word_with_letters_of_another_script_is_a_reason_in_itself() {
    let evidence = score("Стaбильный зapaбoтoк, пишитe в личкy").evidence;
    assert!(evidence.iter().any(|evidence| evidence.rule == "offer_disguised"), "{evidence:?}");
}

#[test]
fn without_training_ham_is_left_alone_and_after_training_most_spam_is_caught() {
    for (set, shipped_caught, trained_caught) in [("sms_spam", 0.6, 0.9), ("telegram_spam", 0.4, 0.82)] {
        let Some(rows) = shared(set) else { return };
        let (caught, bothered) = shares(SpamModel::shipped(), rows.iter());
        assert!(caught >= shipped_caught && bothered <= 0.01, "{set}: {caught:.3} {bothered:.4}");
        let train: Vec<LabelledText> = rows
            .iter()
            .enumerate()
            .filter(|(index, _)| index % 5 != 0)
            .map(|(_, (text, spam))| LabelledText { text: text.clone(), spam: *spam })
            .collect();
        let (caught, bothered) = shares(&SpamModel::train(&train), rows.iter().step_by(5));
        assert!(caught >= trained_caught && bothered <= 0.04, "{set}: {caught:.3} {bothered:.4}");
    }
}

#[test]
fn no_ordinary_message_is_confident_spam() {
    for set in ["sms_spam", "telegram_spam"] {
        let Some(rows) = shared(set) else { return };
        for (text, _) in rows.iter().filter(|row| !row.1) {
            assert_ne!(score(text).level, Some(Level::Confident), "{text}");
        }
    }
}

#[test]
fn a_model_is_the_same_in_any_order_and_after_a_file() {
    let row = |text: &str, spam| LabelledText { text: text.to_owned(), spam };
    let rows = vec![row("buy my soap", true), row("the soap is empty", false)];
    let turned: Vec<_> = rows.iter().rev().cloned().collect();
    let model = SpamModel::train(&rows);
    assert_eq!(model.to_bytes(), SpamModel::train(&turned).to_bytes());
    let again = SpamModel::from_bytes(&model.to_bytes()).expect("its own file");
    assert_eq!(again.version(), model.version());
    let text = Normalised::of("buy my soap now");
    assert_eq!(again.score(&text), model.score(&text));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_text_has_a_score_with_spans_inside(text in "[a-zа-я0-9@#$%!./:+ \u{200b}😀💰€]{0,80}|\\PC{0,60}") {
        let score = score(&text);
        prop_assert_eq!(score.flagged, score.score >= 0.5);
        let length = u32::try_from(text.chars().count()).expect("short");
        for evidence in score.evidence {
            prop_assert!(evidence.span.start <= evidence.span.end && evidence.span.end <= length);
        }
    }
}
