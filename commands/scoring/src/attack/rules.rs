//! What a prompt injection or a jailbreak is made of, as sequences of concepts.
//!
//! One rule holds in every language of `data/attack_concepts.txt`. A rule belongs to a family; two rules of
//! one family say the same thing twice and count once, two families say two things.

use std::sync::LazyLock;

use super::concepts;
use crate::lexicon::Pattern;

/// How much a rule says alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// Also said by honest people: only counts in company.
    Hint,
    /// Half of a suspicion: honest people rarely say it.
    Sign,
    /// Suspected alone.
    Strong,
    /// Nearly no honest text has it.
    Decisive,
}

impl Weight {
    /// Points; [`super::SUSPECTED_POINTS`] and [`super::CONFIDENT_POINTS`] are made for them.
    pub(super) fn points(self) -> f32 {
        match self {
            Self::Hint => 1.0,
            Self::Sign => 2.0,
            Self::Strong => 4.0,
            Self::Decisive => 7.0,
        }
    }

    pub(super) fn less(self) -> Option<Self> {
        match self {
            Self::Hint => None,
            Self::Sign => Some(Self::Hint),
            Self::Strong => Some(Self::Sign),
            Self::Decisive => Some(Self::Strong),
        }
    }
}

/// What a rule finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    Override,
    Reveal,
    Unbound,
    NeverRefuse,
    TwoAnswers,
    NewOrders,
    Template,
    ForcedOutput,
    Authority,
    Threat,
    Fiction,
    Encoded,
    Persona,
    Reader,
    Secret,
    Sources,
    Shouted,
}

pub(super) struct Rule {
    pub(super) id: &'static str,
    pub(super) family: Family,
    pub(super) weight: Weight,
    pub(super) pattern: &'static str,
}

const fn rule(id: &'static str, family: Family, weight: Weight, pattern: &'static str) -> Rule {
    Rule { id, family, weight, pattern }
}

use Family::{
    Authority, Encoded, Fiction, ForcedOutput, NeverRefuse, NewOrders, Override, Persona, Reader, Reveal,
    Secret, Sources, Template, Threat, TwoAnswers, Unbound,
};
use Weight::{Decisive, Hint, Sign, Strong};

/// The rules, in the order they are reported. Ids are stored with decisions: never reuse one.
pub(super) const RULES: &[Rule] = &[
    rule("override_prior_orders", Override, Decisive, "override <3 all <3 prior <3 order"),
    rule("override_all_prior", Override, Decisive, "override <2 prior <3 order"),
    rule("override_orders_above", Override, Strong, "override <4 order <4 prior"),
    rule("override_all_orders", Override, Strong, "override <2 all <3 order"),
    rule("override_your_orders", Override, Strong, "override <2 your <2 order"),
    rule("override_prior_tasks", Override, Strong, "override <2 all <2 prior <2 order_weak"),
    rule("override_prior_task", Override, Strong, "override <1 prior <2 order_weak <8 say"),
    rule("override_tasks_above", Override, Strong, "override <2 all <2 order_weak <3 prior"),
    rule("override_all_tasks", Override, Sign, "override <1 all <2 order_weak"),
    rule("override_your_rules", Override, Strong, "override <2 your <2 order_weak"),
    rule("override_orders", Override, Sign, "override <2 order"),
    rule("prior_orders_override", Override, Strong, "all <2 prior <3 order <4 override|override_weak"),
    rule("orders_above_override", Override, Strong, "prior <2 order|order_weak <2 override"),
    rule("drop_your_orders", Override, Strong, "override_weak <2 your <2 order"),
    rule("drop_your_rules", Override, Sign, "override_weak <2 your <2 order_weak"),
    rule("drop_prior_orders", Override, Strong, "override_weak <3 prior <3 order"),
    rule("drop_all_orders", Override, Sign, "override_weak <2 all <2 order"),
    rule("forget_everything_then", Override, Strong, "forget <2 everything <6 say|only"),
    rule("forget_everything_before", Override, Strong, "forget <2 everything <4 prior"),
    rule("forget_everything_opens", Override, Sign, "^forget <1 everything"),
    rule("forget_prior_then", Override, Strong, "override <1 prior <4 say|only"),
    rule("override_prior_opens", Override, Sign, "^override <1 prior"),
    rule("despite_orders", Override, Strong, "despite"),
    rule("done_next_task", NewOrders, Strong, "done_with <<10 next_task"),
    rule("praise_done", NewOrders, Sign, "praise|done_with <<6 done_with <<6 say"),
    rule("praise_next_task", NewOrders, Sign, "praise <<12 next_task"),
    rule("against_sources", Sources, Strong, "against_sources"),
    rule("override_sources", Sources, Sign, "override <2 sources"),
    rule("reveal_own_text", Reveal, Strong, "reveal <6 own_text"),
    rule("reveal_own_text_after", Reveal, Strong, "own_text <6 reveal"),
    rule("reveal_rules", Reveal, Hint, "reveal <4 own_rules"),
    rule("reveal_rules_opens", Reveal, Sign, "^reveal <3 own_rules"),
    rule("own_text", Reveal, Hint, "own_text"),
    rule("reveal_your_orders", Reveal, Sign, "reveal <4 your <2 order"),
    rule("reveal_secret", Secret, Sign, "reveal <5 secret"),
    rule("unbound_name", Unbound, Strong, "unbound_name"),
    rule("persona_unbound_name", Unbound, Decisive, "persona|from_now_on <<12 unbound_name"),
    rule("persona_unbound", Unbound, Sign, "persona|from_now_on <<14 unbound"),
    rule("machine_unbound", Unbound, Sign, "machine <<14 unbound"),
    rule("unbound_machine", Unbound, Sign, "unbound <4 machine"),
    rule("unbound_norms", Unbound, Sign, "unbound <6 norms"),
    rule("unbound_orders", Unbound, Sign, "unbound <4 order|order_weak"),
    rule("unbound_twice", Unbound, Sign, "unbound <<12 unbound"),
    rule("norms_without", NeverRefuse, Sign, "norms <1 norms <2 norms"),
    rule("never_refuse", NeverRefuse, Sign, "never_refuse"),
    rule("never_refuse_norms", NeverRefuse, Strong, "never_refuse <<10 norms <6 norms"),
    rule("never_refuse_twice", NeverRefuse, Sign, "never_refuse <<25 never_refuse"),
    rule("persona_never_refuse", NeverRefuse, Sign, "persona|from_now_on <<20 never_refuse"),
    rule("two_answers", TwoAnswers, Sign, "two_answers"),
    rule("two_answers_twice", TwoAnswers, Sign, "two_answers <<30 two_answers"),
    rule("two_answers_unbound", TwoAnswers, Strong, "two_answers <<40 unbound|unbound_name"),
    rule("orders_void", Override, Strong, "prior <3 order|order_weak <8 void"),
    rule("your_orders_void", Override, Strong, "your <2 order <6 void"),
    rule("actors_in_character", Fiction, Strong, "actors <<14 in_character"),
    rule("crime_in_character", Fiction, Strong, "crime <<50 in_character"),
    rule("authority_forget", Authority, Strong, "authority <<20 forget|from_now_on"),
    rule("alter_ego", TwoAnswers, Hint, "alter_ego"),
    rule("alter_ego_unbound", TwoAnswers, Sign, "alter_ego <<40 unbound|unbound_name|never_refuse|norms"),
    rule("placeholder", Template, Sign, "placeholder"),
    rule("pretend_can", Persona, Strong, "pretend_can"),
    rule("where_you", Fiction, Sign, "where_you"),
    rule("fiction_where_you", Fiction, Strong, "fiction <2 where_you"),
    rule("where_you_unbound", Fiction, Strong, "where_you <<12 unbound|norms|crime"),
    rule("stop_then", NewOrders, Strong, "^stop <<1 say"),
    rule("attention_stop", NewOrders, Strong, "attention <<1 stop"),
    rule("claim_verdict", ForcedOutput, Strong, "claim <9 verdict"),
    rule("be_someone_view", Persona, Strong, "be_someone <<5 your_view"),
    rule("now_be_someone_view", Persona, Strong, "from_now_on <<12 your_view"),
    rule("binding_answer", Encoded, Strong, "binding <<30 then_answer"),
    rule("in_character", Persona, Hint, "in_character"),
    rule("in_character_crime", Fiction, Strong, "in_character <<60 crime"),
    rule("from_now_on_persona", Persona, Hint, "from_now_on <4 persona"),
    rule("from_now_on_only", Persona, Sign, "from_now_on <8 never_refuse|only"),
    rule("from_now_on", Persona, Hint, "from_now_on"),
    rule("new_orders_then", NewOrders, Strong, "new_orders <<10 say|reveal|only|persona"),
    rule("new_orders", NewOrders, Sign, "new_orders"),
    rule("praise_new_orders", NewOrders, Strong, "praise <<14 new_orders"),
    rule("template", Template, Strong, "template"),
    rule("template_weak", Template, Hint, "template_weak"),
    rule("template_weak_override", Template, Strong, "template_weak <<6 override|from_now_on"),
    rule("only_say", ForcedOutput, Hint, "only"),
    rule("override_only", ForcedOutput, Strong, "override|override_weak|forget <<12 only"),
    rule("refuse_question", ForcedOutput, Strong, "refuse_question"),
    rule("authority", Authority, Sign, "authority"),
    rule("authority_reveal", Authority, Strong, "authority <<20 own_text|own_rules|secret"),
    rule(
        "authority_override",
        Authority,
        Strong,
        "authority <<20 override|override_weak <4 order|order_weak",
    ),
    rule("authority_unbound", Authority, Strong, "authority <<16 unbound|never_refuse"),
    rule("forget_refusal", NeverRefuse, Strong, "override|override_weak|forget <8 refusal"),
    rule("even_against_policy", NeverRefuse, Strong, "say|carry_out <12 against_policy"),
    rule("threat", Threat, Strong, "threat"),
    rule("unbound_crime", Fiction, Sign, "unbound <<14 crime"),
    rule("fiction_crime", Fiction, Sign, "fiction <<25 crime"),
    rule("fiction_unbound", Fiction, Sign, "fiction <<25 unbound|never_refuse"),
    rule("persona_crime", Fiction, Hint, "persona <<14 crime"),
    rule("decode_carry_out", Encoded, Strong, "decode <<14 carry_out"),
    rule("override_prior_messages", Override, Strong, "override prior conversation"),
    rule("override_all_messages", Override, Strong, "override all <1 prior conversation"),
    rule("say_verdict", ForcedOutput, Strong, "^say_verdict"),
    rule("untrue_news", ForcedOutput, Strong, "say <6 untrue <1 news"),
    rule("boast", Authority, Strong, "boast"),
    rule("to_reader", Reader, Sign, "to_reader"),
    rule("to_reader_override", Reader, Decisive, "to_reader <<12 override|say|only|reveal"),
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
