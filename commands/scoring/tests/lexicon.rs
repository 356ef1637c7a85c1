//! The blocked words of a policy.

use botledger_scoring::Normalised;
use botledger_scoring::lexicon::{
    BlockedWords, BlockedWordsError, Concepts, LONGEST_WORD, MOST_WORDS, Pattern,
};
use proptest::prelude::*;

fn found(words: &[&str], text: &str) -> Vec<String> {
    let list = BlockedWords::compile(words).expect("a list");
    list.find(&Normalised::of(text))
        .into_iter()
        .map(|hit| {
            text.chars()
                .skip(hit.span.start as usize)
                .take((hit.span.end - hit.span.start) as usize)
                .collect()
        })
        .collect()
}

#[test]
fn a_word_is_blocked_alone_and_open_ends_reach_into_longer_words() {
    assert_eq!(found(&["casino"], "My CASINO, casinos and minicasino"), ["CASINO"]);
    assert_eq!(found(&["casino*"], "My CASINO, casinos and minicasino"), ["CASINO", "casino"]);
    assert_eq!(found(&["*casino"], "My CASINO, casinos and minicasino"), ["CASINO", "casino"]);
    assert_eq!(found(&["*casino*"], "My CASINO, casinos and minicasino").len(), 3);
    assert_eq!(found(&["ставк*"], "Наши ставки и одна ставка, приставка"), ["ставк", "ставк"]);
    assert_eq!(found(&["ass"], "classic assassin"), [""; 0]);
}

#[test]
fn a_phrase_is_found_whatever_parts_its_words() {
    for text in ["free money", "FREE  money", "free - money", "free\nmoney", "free, money!"] {
        assert_eq!(found(&["free money"], text).len(), 1, "{text}");
    }
    assert_eq!(found(&["free money"], "free the money"), [""; 0]);
}

#[test]
fn disguised_words_are_found_with_the_place_of_the_disguise() {
    for (text, shown) in [
        ("play c a s i n o now", "c a s i n o"),
        ("play c.a.s.i.n.o now", "c.a.s.i.n.o"),
        ("play c4s1n0 now", "c4s1n0"),
        ("play ca$ino now", "ca$ino"),
        ("play ca\u{200b}sino now", "ca\u{200b}sino"),
        ("play cаsinо now", "cаsinо"),
        ("play ｃａｓｉｎｏ now", "ｃａｓｉｎｏ"),
    ] {
        assert_eq!(found(&["casino"], text), [shown], "{text}");
    }
    assert_eq!(found(&["казино"], "лучшее к а з и н о"), ["к а з и н о"]);
    assert_eq!(found(&["казино"], "лучшее кaзинo"), ["кaзинo"]);
}

#[test]
fn ordinary_texts_hide_no_words() {
    assert_eq!(found(&["casino", "ass", "bet"], "as soon as I can, see no bets at b4 5"), [""; 0]);
    assert_eq!(found(&["test"], "mail t.e@st.example or http://te-st.example"), [""; 0]);
}

#[test]
fn a_list_that_cannot_be_used_says_which_word_is_wrong() {
    let error = |words: &[&str]| BlockedWords::compile(words).expect_err("refused");
    assert_eq!(error(&["good", " ** "]), BlockedWordsError::Empty { position: 2 });
    assert_eq!(error(&["!!"]), BlockedWordsError::Empty { position: 1 });
    assert_eq!(error(&["a*b"]), BlockedWordsError::InnerWildcard { position: 1 });
    assert_eq!(error(&["good", "a*"]), BlockedWordsError::TooOpen { position: 2 });
    assert_eq!(error(&[&"x".repeat(LONGEST_WORD + 1)]), BlockedWordsError::TooLong { position: 1 });
    let many: Vec<String> = (0..=MOST_WORDS).map(|n| format!("w{n}")).collect();
    assert_eq!(
        BlockedWords::compile(&many).expect_err("refused"),
        BlockedWordsError::TooMany(MOST_WORDS + 1)
    );
    assert!(BlockedWords::compile::<&str>(&[]).expect("an empty list").is_empty());
}

#[test]
fn a_pattern_counts_words_and_stops_at_the_end_of_a_sentence() {
    let concepts = Concepts::parse("[verb]\nignore, забудь\n[thing]\nrule*, правил*\n[lead_in]\nplease")
        .expect("a lexicon");
    let holds = |pattern: &str, text: &str| {
        let pattern = Pattern::parse(pattern, &concepts).expect("a pattern");
        pattern.find(&concepts.find(&Normalised::of(text))).is_some()
    };
    assert!(holds("verb <2 thing", "ignore all those rules"));
    assert!(holds("verb <2 thing", "забудь про все правила"));
    assert!(!holds("verb <2 thing", "ignore each of those rules"));
    assert!(!holds("verb <2 thing", "ignore it. The rules are clear"));
    assert!(holds("verb <<3 thing", "ignore it. The rules are clear"));
    assert!(holds("^verb", "Well, hello. Please ignore this"));
    assert!(!holds("^verb", "They ignore this"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn spans_of_any_text_are_inside(text in "[a-c @$.\u{200b}éßаб0-9]{0,60}|\\PC{0,60}") {
        let list = BlockedWords::compile(&["abca", "*b*c", "a b", "б*", "aa*"][..1]).expect("a list");
        let open = BlockedWords::compile(&["ab*", "*bc", "a b", "бa*"]).expect("a list");
        let length = u32::try_from(text.chars().count()).expect("short");
        for hit in list.find(&Normalised::of(&text)).into_iter().chain(open.find(&Normalised::of(&text))) {
            prop_assert!(hit.span.start < hit.span.end && hit.span.end <= length);
        }
    }

    #[test]
    fn a_word_is_found_between_any_other_words(before in "[a-z]{0,8}", after in "[a-z]{0,8}") {
        let text = format!("{before} кактус {after}");
        prop_assert_eq!(found(&["кактус"], &text), ["кактус"]);
    }
}
