use cqrs_es::test::TestFramework;
use proptest::prelude::*;

use super::*;
use crate::test_support::{clock_at, id, later, noon, reason, sealed};

type Bots = TestFramework<Bot>;

fn register() -> BotCommand {
    BotCommand::Register {
        workspace: id(1),
        username: BotUsername::parse("@shop_bot").expect("valid"),
        telegram_id: 77,
        token: sealed(2),
        token_fingerprint: "f1".to_owned(),
        mode: UpdateMode::Polling,
        settings: BotSettings::default(),
    }
}

fn registered() -> BotEvent {
    Bot::default().decide(register(), noon()).expect("allowed").remove(0)
}

fn started() -> BotEvent {
    BotEvent::BotStarted { started_at: noon() }
}

fn leased(epoch: i64) -> BotEvent {
    BotEvent::BotLeaseAcquired { instance: id(9), epoch, acquired_at: noon() }
}

#[test]
fn a_registered_bot_does_not_run_yet() {
    let mut bot = Bot::default();
    bot.record(registered());
    assert_eq!(bot.status, BotStatus::Stopped);
}

#[test]
fn registering_the_same_id_twice_is_refused() {
    Bots::with(clock_at(noon()))
        .given(vec![registered()])
        .when(register())
        .then_expect_error(BotError::AlreadyRegistered);
}

#[test]
fn starting_twice_records_nothing_new() {
    Bots::with(clock_at(noon()))
        .given(vec![registered(), started()])
        .when(BotCommand::Start)
        .then_expect_events(vec![]);
}

#[test]
fn an_unknown_bot_cannot_start() {
    Bots::with(clock_at(noon()))
        .given_no_previous_events()
        .when(BotCommand::Start)
        .then_expect_error(BotError::NotRegistered);
}

#[test]
fn a_token_of_another_bot_is_refused() {
    let rotate =
        BotCommand::RotateToken { telegram_id: 78, token: sealed(2), token_fingerprint: "f2".to_owned() };
    Bots::with(clock_at(noon()))
        .given(vec![registered()])
        .when(rotate)
        .then_expect_error(BotError::OtherBotsToken);
}

#[test]
fn a_new_token_lets_a_faulted_bot_run_again() {
    let faulted = BotEvent::BotFaulted {
        code: "TOKEN_REVOKED".to_owned(),
        detail: "401".to_owned(),
        faulted_at: noon(),
    };
    let rotate =
        BotCommand::RotateToken { telegram_id: 77, token: sealed(2), token_fingerprint: "f2".to_owned() };
    Bots::with(clock_at(later(5)))
        .given(vec![registered(), started(), faulted])
        .when(rotate)
        .then_expect_events(vec![BotEvent::BotTokenRotated {
            token: sealed(2),
            token_fingerprint: "f2".to_owned(),
            status: BotStatus::Running,
            rotated_at: later(5),
        }]);
}

#[test]
fn a_lease_epoch_must_rise() {
    Bots::with(clock_at(noon()))
        .given(vec![registered(), started(), leased(3)])
        .when(BotCommand::AcquireLease { instance: id(8), epoch: 3 })
        .then_expect_error(BotError::StaleEpoch { offered: 3, current: 3 });
}

#[test]
fn a_stopped_bot_is_held_by_nobody() {
    Bots::with(clock_at(noon()))
        .given(vec![registered()])
        .when(BotCommand::AcquireLease { instance: id(8), epoch: 1 })
        .then_expect_error(BotError::NotRunning);
}

#[test]
fn the_end_of_an_old_lease_says_nothing_about_the_present_one() {
    Bots::with(clock_at(noon()))
        .given(vec![registered(), started(), leased(3), leased(4)])
        .when(BotCommand::LoseLease { epoch: 3, cause: LeaseEnd::Expired })
        .then_expect_events(vec![]);
}

#[test]
fn an_archived_bot_takes_no_more_commands() {
    let archived = BotEvent::BotArchived { reason: reason("replaced"), archived_at: noon() };
    Bots::with(clock_at(noon()))
        .given(vec![registered(), archived])
        .when(BotCommand::Start)
        .then_expect_error(BotError::Archived);
}

#[test]
fn settings_out_of_range_name_the_field() {
    let settings = BotSettings { max_answer_tokens: 4, ..BotSettings::default() };
    Bots::with(clock_at(noon()))
        .given(vec![registered()])
        .when(BotCommand::Configure { settings, mode: UpdateMode::Polling })
        .then_expect_error(BotError::InvalidSettings { field: "max_answer_tokens" });
}

#[test]
fn texts_that_no_database_takes_are_refused() {
    for (text, fits) in
        [("Hello,\n\tyou!\r\n", true), ("Hello\0", false), ("\u{1b}[2J", false), ("a\u{85}b", false)]
    {
        let welcome = BotSettings { welcome: Some(text.to_owned()), ..BotSettings::default() };
        let prompt = BotSettings { system_prompt: Some(text.to_owned()), ..BotSettings::default() };
        assert_eq!(welcome.check().is_ok(), fits, "{text:?}");
        assert_eq!(prompt.check().is_ok(), fits, "{text:?}");
    }
}

fn any_command() -> impl Strategy<Value = BotCommand> {
    prop_oneof![
        Just(register()),
        Just(BotCommand::Start),
        Just(BotCommand::Stop { reason: reason("pause") }),
        Just(BotCommand::Archive { reason: reason("gone") }),
        (70i64..80, "[a-c]").prop_map(|(telegram_id, token_fingerprint)| BotCommand::RotateToken {
            telegram_id,
            token: sealed(2),
            token_fingerprint
        }),
        (0u32..600, any::<bool>()).prop_map(|(max_answer_tokens, streaming)| BotCommand::Configure {
            settings: BotSettings { max_answer_tokens, streaming, ..BotSettings::default() },
            mode: UpdateMode::Webhook
        }),
        (0i64..6).prop_map(|epoch| BotCommand::AcquireLease { instance: id(9), epoch }),
        (0i64..6).prop_map(|epoch| BotCommand::LoseLease { epoch, cause: LeaseEnd::Expired }),
        Just(BotCommand::Fault { code: "X".to_owned(), detail: "y".to_owned() }),
    ]
}

proptest! {
    #[test]
    fn any_history_keeps_epochs_rising_and_repeats_add_nothing(commands in prop::collection::vec(any_command(), 1..40)) {
        crate::laws::hold::<Bot>(commands, |before, after| {
            assert!(after.lease_epoch >= before.lease_epoch);
            assert!(after.status != BotStatus::Running || after.workspace.is_some());
        }, |command| matches!(command, BotCommand::Start | BotCommand::Stop { .. } | BotCommand::Archive { .. }
            | BotCommand::Configure { .. } | BotCommand::LoseLease { .. } | BotCommand::Fault { .. }));
    }
}
