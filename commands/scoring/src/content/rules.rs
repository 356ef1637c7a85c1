//! What offends or harms, as sequences of concepts of `data/content_lexicon.txt`.

use std::sync::LazyLock;

use super::{Severity, concepts};
use crate::lexicon::Pattern;

pub(super) struct Rule {
    pub(super) id: &'static str,
    pub(super) category: &'static str,
    /// How bad it is when this rule alone decides.
    pub(super) severity: Severity,
    /// From [`super::FLAG_POINTS`] on it flags alone.
    pub(super) points: f32,
    pub(super) pattern: &'static str,
    /// A concept that, anywhere in the text, makes this rule say nothing.
    pub(super) unless: Option<&'static str>,
}

const fn rule(
    id: &'static str,
    category: &'static str,
    severity: Severity,
    points: f32,
    pattern: &'static str,
) -> Rule {
    Rule { id, category, severity, points, pattern, unless: None }
}

const fn unless(rule: Rule, concept: &'static str) -> Rule {
    Rule { unless: Some(concept), ..rule }
}

use Severity::{Low, Medium, Severe};

/// The rules, in the order they are reported. Ids are stored with decisions: never reuse one.
///
/// Severe ones block at once and call a human, so each asks for several concepts in one sentence and steps
/// back where somebody reports, judges, jokes or tells a story. Never severe: what only the model saw.
pub(super) const RULES: &[Rule] = &[
    rule("explicit", "S", Low, 2.0, "explicit"),
    rule("explicit_twice", "S", Medium, 3.0, "explicit <<20 explicit"),
    rule("explicit_intimate", "S", Low, 1.5, "explicit <<15 intimate"),
    rule("intimate_explicit", "S", Low, 1.5, "intimate <<15 explicit"),
    rule("intimate_twice", "S", Low, 1.0, "intimate <<8 intimate"),
    unless(rule("act_minor", "S3", Severe, 8.0, "explicit_act <5 minor"), "protective"),
    unless(rule("minor_act", "S3", Severe, 8.0, "minor <4 explicit_act"), "protective"),
    rule("explicit_minor", "S3", Medium, 2.0, "explicit <8 minor"),
    rule("slur", "H", Low, 2.5, "slur"),
    rule("slur_hate", "H", Medium, 3.0, "hate_verb <4 slur"),
    rule("slur_dehumanise", "H", Medium, 3.0, "slur <8 dehumanise"),
    rule("group_dehumanise", "H", Medium, 3.5, "group <6 dehumanise"),
    rule("dehumanise_group", "H", Low, 2.0, "dehumanise <4 group"),
    rule("hate_group", "H", Medium, 4.0, "hate_verb <2 group"),
    rule("kill_group", "H2", Medium, 5.0, "kill <3 group|slur"),
    rule("group_kill", "H2", Medium, 2.5, "group|slur <6 kill"),
    rule("kill", "V", Low, 1.0, "kill"),
    rule("kill_twice", "V", Low, 1.0, "kill <<15 kill"),
    unless(rule("threat", "V", Medium, 5.0, "i_will <2 kill_act <2 you_object"), "in_jest"),
    unless(rule("threat_turned", "V", Medium, 5.0, "i_will_you <2 kill_act"), "in_jest"),
    unless(
        rule("threat_in_earnest", "V", Severe, 8.0, "i_will <2 kill_act <2 you_object <<12 in_earnest"),
        "in_jest",
    ),
    unless(rule("earnest_threat", "V", Severe, 8.0, "in_earnest <<8 kill_act <2 you_object"), "in_jest"),
    unless(
        rule("earnest_threat_turned", "V", Severe, 8.0, "in_earnest <<8 i_will_you <2 kill_act"),
        "in_jest",
    ),
    unless(
        rule("threat_turned_in_earnest", "V", Severe, 8.0, "i_will_you <2 kill_act <<12 in_earnest"),
        "in_jest",
    ),
    rule("gore", "V2", Low, 1.0, "gore"),
    rule("gore_twice", "V2", Low, 2.0, "gore <<10 gore"),
    rule("gore_thrice", "V2", Medium, 2.0, "gore <<10 gore <<10 gore"),
    rule("you_insult", "HR", Low, 3.0, "you_are <3 insult"),
    rule("insult", "HR", Low, 1.0, "insult"),
    rule("insult_twice", "HR", Low, 1.5, "insult <<6 insult"),
    rule("fuck_you", "HR", Low, 4.0, "fuck_you"),
    unless(rule("kill_yourself", "HR", Medium, 5.0, "kill_yourself"), "self_harm_intent"),
    rule("self_harm", "SH", Low, 2.5, "self_harm"),
    rule("self_harm_twice", "SH", Low, 1.5, "self_harm <<20 self_harm"),
    rule("self_harm_intent", "SH", Low, 6.0, "self_harm_intent"),
    rule("how_to_illicit", "illicit", Medium, 3.5, "how_to <6 illicit"),
    rule("illicit_twice", "illicit", Low, 1.0, "illicit <<12 illicit"),
    rule("illicit", "illicit", Low, 0.5, "illicit"),
];

/// The rules' patterns, compiled once.
pub(super) static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    RULES
        .iter()
        .map(|rule| {
            Pattern::parse(rule.pattern, concepts()).expect("the shipped rules are compiled in a test")
        })
        .collect()
});
