use cqrs_es::test::TestFramework;
use proptest::prelude::*;

use super::*;
use crate::test_support::{body, clock_at, id, later, noon, reason};

type Turns = TestFramework<Turn>;

fn message() -> Message {
    Message {
        workspace: id(1),
        bot: id(3),
        subject: id(5),
        conversation: id(4),
        update_id: 42,
        chat_kind: ChatKind::Private,
        ask: Ask::Text,
        lane: Lane::Normal,
        body: body(9),
        language: Language::En,
        sent_at: noon(),
    }
}

fn received() -> TurnEvent {
    TurnEvent::MessageReceived { message: message(), received_at: noon() }
}

fn admission() -> Admission {
    Admission {
        reservation: id(8),
        reserved_tokens: 700,
        price: Price {
            prompt_per_million: 1_000_000,
            completion_per_million: 3_000_000,
            version: "1".to_owned(),
        },
        reserved_money: 2_100,
        budgets: vec![],
        session: 1,
        context_epoch: 0,
        provider: "ollama".to_owned(),
        model: ModelName::parse("llama3.2:3b").expect("valid"),
        notices: vec![],
    }
}

fn admitted() -> TurnEvent {
    TurnEvent::TurnAdmitted { admission: admission(), admitted_at: noon() }
}

fn model_source() -> ReplySource {
    ReplySource::Model {
        provider: "ollama".to_owned(),
        model: ModelName::parse("llama3.2:3b").expect("valid"),
        prompt_tokens: 10,
        completion_tokens: 5,
        estimated: false,
        finish: "stop".to_owned(),
        attempts: 1,
    }
}

fn answer(source: ReplySource) -> TurnCommand {
    TurnCommand::Answer { source, body: body(10), latency_ms: 12 }
}

#[test]
fn the_same_update_again_is_told_apart() {
    Turns::with(clock_at(noon()))
        .given(vec![received()])
        .when(TurnCommand::Receive(message()))
        .then_expect_error(TurnError::AlreadyReceived);
}

#[test]
fn a_model_may_answer_only_what_was_admitted() {
    Turns::with(clock_at(noon()))
        .given(vec![received()])
        .when(answer(model_source()))
        .then_expect_error(TurnError::OutOfOrder { phase: "received", step: "be answered" });
    Turns::with(clock_at(later(1)))
        .given(vec![received(), admitted()])
        .when(answer(model_source()))
        .then_expect_events(vec![TurnEvent::ReplyGenerated {
            source: model_source(),
            body: body(10),
            latency_ms: 12,
            cost: 25,
            generated_at: later(1),
        }]);
}

#[test]
fn the_platform_answers_without_admission() {
    Turns::with(clock_at(noon()))
        .given(vec![received()])
        .when(answer(ReplySource::Platform))
        .then_expect_events(vec![TurnEvent::ReplyGenerated {
            source: ReplySource::Platform,
            body: body(10),
            latency_ms: 12,
            cost: 0,
            generated_at: noon(),
        }]);
}

#[test]
fn a_silent_refusal_ends_the_turn_and_a_told_one_waits_for_its_notice() {
    let reason = RefusalReason::Blocked { reason: reason("spam"), until: None };
    for (notify, phase) in [(false, TurnPhase::Refused), (true, TurnPhase::RefusalPending)] {
        let mut turn = Turn::default();
        turn.record(received());
        for event in turn
            .decide(TurnCommand::Refuse { reason: reason.clone(), notify, notices: vec![] }, noon())
            .expect("allowed")
        {
            turn.record(event);
        }
        assert_eq!(turn.phase, phase);
    }
}

#[test]
fn a_delivered_notice_leaves_the_turn_refused_or_failed() {
    let mut turn = Turn::default();
    for event in [
        received(),
        admitted(),
        TurnEvent::ReplyFailed {
            code: "LLM_UNAVAILABLE".to_owned(),
            detail: String::new(),
            failed_at: noon(),
        },
        TurnEvent::ReplyDelivered { message_ids: vec![1], delivered_at: noon() },
    ] {
        turn.record(event);
    }
    assert_eq!(turn.phase, TurnPhase::Failed);
}

#[test]
fn the_first_message_of_an_answer_is_remembered_once() {
    let started = TurnEvent::ReplyStarted { message_id: 1001, started_at: noon() };
    Turns::with(clock_at(noon()))
        .given(vec![received(), admitted(), started])
        .when(TurnCommand::StartDelivery { message_id: 1002 })
        .then_expect_events(vec![]);
}

fn any_command() -> impl Strategy<Value = TurnCommand> {
    prop_oneof![
        Just(TurnCommand::Receive(message())),
        Just(TurnCommand::Record {
            bot: id(3),
            subject: None,
            update_id: 42,
            update_kind: "poll".to_owned(),
            body: body(9)
        }),
        Just(TurnCommand::Admit(admission())),
        any::<bool>().prop_map(|notify| TurnCommand::Refuse {
            reason: RefusalReason::TooLong { tokens: 9, limit: 8 },
            notify,
            notices: vec![]
        }),
        Just(answer(model_source())),
        Just(answer(ReplySource::Platform)),
        Just(TurnCommand::Fail { code: "X".to_owned(), detail: String::new() }),
        (1i64..4).prop_map(|message_id| TurnCommand::StartDelivery { message_id }),
        Just(TurnCommand::Deliver { message_ids: vec![1] }),
        Just(TurnCommand::GiveUp {
            class: "recipient_gone".to_owned(),
            code: 403,
            description: String::new()
        }),
        Just(TurnCommand::LoseOutcome { detail: String::new() }),
    ]
}

proptest! {
    #[test]
    fn an_ended_turn_stays_ended(commands in prop::collection::vec(any_command(), 1..30)) {
        crate::laws::hold::<Turn>(commands, |before, after| {
            assert!(before.phase == TurnPhase::Unknown || before.phase.is_open(), "{before:?} moved on");
            assert_ne!(after.phase, TurnPhase::Unknown);
        }, |command| matches!(command, TurnCommand::StartDelivery { .. }));
    }
}
