//! Ordinary messages that are no bot's task, English and Russian, written by this project.

use std::sync::LazyLock;

use crate::Normalised;

const ENGLISH: &str = include_str!("../../data/background_en.txt");
const RUSSIAN: &str = include_str!("../../data/background_ru.txt");

/// English lines.
pub static EN: LazyLock<Vec<&'static str>> = LazyLock::new(|| lines(ENGLISH));

/// Russian lines.
pub static RU: LazyLock<Vec<&'static str>> = LazyLock::new(|| lines(RUSSIAN));

fn lines(file: &'static str) -> Vec<&'static str> {
    file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// The lines that can be mistaken for one of `texts`: Russian ones where at least a twentieth of the texts
/// has Cyrillic letters, English ones likewise for Latin letters or where neither is the case.
#[must_use]
pub fn for_texts(texts: &[Normalised]) -> Vec<&'static str> {
    let with = |letters: fn(char) -> bool| {
        let count = texts.iter().filter(|text| text.folded().contains(letters)).count();
        count > 0 && count * 20 >= texts.len()
    };
    let cyrillic = with(|letter| ('\u{400}'..='\u{4ff}').contains(&letter));
    let latin = with(|letter| letter.is_ascii_alphabetic());
    let mut lines = Vec::new();
    if latin || !cyrillic {
        lines.extend_from_slice(&EN);
    }
    if cyrillic {
        lines.extend_from_slice(&RU);
    }
    lines
}
