use std::{fs, path::Path};

use proptest::prelude::*;
use strum::IntoEnumIterator;

use super::*;

/// A file of the shared folder, or none when this machine has no such folder.
fn shared(path: &str) -> Option<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    if !folder.is_dir() {
        eprintln!("skipped: there is no folder ../shared beside this checkout");
        return None;
    }
    Some(fs::read_to_string(folder.join(path)).expect("the shared folder holds the golden traces"))
}

#[derive(Deserialize)]
struct Trace {
    id: String,
    events: Vec<TraceEvent>,
    expected: Vec<(LadderState, u64)>,
}

#[test]
fn every_golden_trace_gives_the_same_integers() {
    let Some(text) = shared("datasets/deviation_golden/train.jsonl") else { return };
    let traces: Vec<Trace> =
        text.lines().map(|line| serde_json::from_str(line).expect("a trace a line")).collect();
    assert_eq!(traces.len(), 28);
    for trace in traces {
        assert_eq!(replay(&LadderConfig::default(), &trace.events), trace.expected, "{}", trace.id);
    }
}

#[test]
fn the_default_is_the_published_one() {
    let Some(readme) = shared("datasets/deviation_golden/README.md") else { return };
    let (_, json) = readme.split_once("Default configuration:").expect("the README ends with it");
    let published: LadderConfig = serde_json::from_str(json).expect("a configuration");
    assert_eq!(LadderConfig::default(), published);
}

#[test]
fn the_table_is_what_its_formula_says() {
    for (k, entry) in TABLE.iter().enumerate() {
        let exact = f64::exp2(32.0 - f64::from(u32::try_from(k).expect("below 64")) / 64.0);
        assert!((exact - *entry as f64).abs() <= 0.5, "entry {k} is {entry}, not {exact}");
    }
}

#[test]
fn wire_names_are_those_of_the_traces() {
    let names: Vec<&str> = OffenceKind::iter().map(Into::into).collect();
    assert_eq!(
        names,
        [
            "clean",
            "off_topic",
            "flood",
            "injection_suspected",
            "spam",
            "injection_confident",
            "category_low",
            "category_medium",
            "category_severe"
        ]
    );
    for kind in OffenceKind::iter() {
        assert_eq!(serde_json::to_value(kind).expect("a name"), kind.as_ref());
    }
    for (text, kind) in [
        (r#"{"t":1,"kind":"appeal_granted"}"#, TraceKind::AppealGranted),
        (r#"{"t":1,"kind":"spam"}"#, TraceKind::Message(OffenceKind::Spam)),
    ] {
        assert_eq!(serde_json::from_str::<TraceEvent>(text).expect("an event").kind, kind);
    }
    assert!(serde_json::from_str::<TraceEvent>(r#"{"t":1,"kind":"shouting"}"#).is_err());
}

#[test]
fn a_lane_halves_in_its_half_life_and_is_forgotten_after_forty() {
    let config = LadderConfig::default();
    let day = 86_400_000;
    assert_eq!(config.faded(Lane::Drift, 10_000, 0, day), 5_000);
    assert_eq!(config.faded(Lane::Violation, 10_000, 0, 3 * day), 5_000);
    assert!(config.faded(Lane::Drift, u64::MAX, 0, 40 * day - 1) > 0);
    assert_eq!(config.faded(Lane::Drift, u64::MAX, 0, 40 * day), 0);
    assert_eq!(config.faded(Lane::Drift, 10_000, day, 0), 10_000);
}

#[test]
fn three_floods_do_not_block_but_a_severe_message_does_at_once() {
    let config = LadderConfig::default();
    let mut ladder = Ladder::default();
    for _ in 0..3 {
        ladder.step(&config, 0, OffenceKind::Flood, None);
    }
    assert_eq!((ladder.state, ladder.score()), (LadderState::Ok, 15_000));
    ladder.step(&config, 0, OffenceKind::CategorySevere, None);
    assert_eq!(ladder.state, LadderState::Blocked);
    assert_eq!(ladder.step(&config, i64::MAX, OffenceKind::Clean, None), 0);
    assert_eq!(ladder.state, LadderState::Blocked, "only an appeal ends it");
    ladder.pardon(&config, i64::MAX);
    assert_eq!(ladder, Ladder { clock_ms: Some(i64::MAX), ..Ladder::default() });
}

/// Commits spam until a block stands, and says how long it lasts.
fn spam_until_blocked(ladder: &mut Ladder, config: &LadderConfig, t: i64) -> Option<i64> {
    while !ladder.is_blocked() {
        ladder.step(config, t, OffenceKind::Spam, None);
    }
    (ladder.state == LadderState::TempBlocked).then(|| ladder.until_ms.expect("an end") - t)
}

#[test]
fn each_block_is_four_times_as_long_and_the_fifth_has_no_end() {
    let config = LadderConfig::default();
    let mut ladder = Ladder::default();
    let mut t = 0;
    let mut lengths = Vec::new();
    while let Some(long) = spam_until_blocked(&mut ladder, &config, t) {
        lengths.push(long / 60_000);
        ladder.step(&config, t + long - 1, OffenceKind::Spam, None);
        assert_eq!(ladder.state, LadderState::TempBlocked);
        t += long;
        ladder.settle(&config, t);
        assert_eq!((ladder.state, ladder.drift), (LadderState::Throttled, 0));
        assert!(ladder.violation <= config.after_block);
    }
    assert_eq!(lengths, [15, 60, 240, 960]);
    assert_eq!(ladder.state, LadderState::Blocked);
}

#[test]
fn a_block_older_than_the_window_no_longer_counts() {
    let config = LadderConfig::default();
    let window = i64::try_from(config.ladder_window_ms).expect("a month");
    for (t, minutes) in [(window - 1, 60), (window, 15)] {
        let mut ladder = Ladder::default();
        spam_until_blocked(&mut ladder, &config, 0);
        assert_eq!(spam_until_blocked_after(&mut ladder, &config, t), Some(minutes * 60_000), "after {t} ms");
    }
}

fn spam_until_blocked_after(ladder: &mut Ladder, config: &LadderConfig, t: i64) -> Option<i64> {
    ladder.settle(config, t);
    spam_until_blocked(ladder, config, t)
}

#[test]
fn presets_move_the_thresholds_and_nothing_else() {
    let lenient = LadderConfig::preset(Preset::Lenient);
    let strict = LadderConfig::preset(Preset::Strict);
    assert_eq!((lenient.warn, lenient.throttle, lenient.temp_block), (45_000, 75_000, 120_000));
    assert_eq!((strict.warn, strict.throttle, strict.temp_block), (21_000, 35_000, 56_000));
    assert_eq!((strict.warn_exit, strict.throttle_exit, strict.after_block), (10_500, 24_500, 31_500));
    assert_eq!(LadderConfig::preset(Preset::Standard), LadderConfig::default());
    for preset in Preset::iter() {
        let scaled = LadderConfig::preset(preset);
        assert_eq!(scaled.check(), Ok(()));
        assert_eq!((scaled.points, scaled.credit_drift), (Points::default(), 1_000));
    }
}

#[test]
fn a_configuration_that_contradicts_itself_is_named() {
    let refused = |change: fn(&mut LadderConfig)| {
        let mut config = LadderConfig::default();
        change(&mut config);
        config.check().expect_err("a contradiction").to_string()
    };
    assert_eq!(refused(|c| c.warn = 60_000), "warn has to be below throttle");
    assert_eq!(refused(|c| c.warn_exit = 30_000), "warn_exit has to be below warn");
    assert_eq!(refused(|c| c.after_block = 80_000), "after_block has to be below temp_block");
    assert_eq!(
        refused(|c| c.base_block_ms = c.max_block_ms + 1),
        "base_block_ms may not exceed max_block_ms"
    );
    assert!(refused(|c| c.drift_half_life_ms = 0).starts_with("drift_half_life_ms is 0;"));
    assert!(refused(|c| c.points.off_topic_from_permille = 1_000).contains("off_topic_from_permille"));
    assert!(
        refused(|c| {
            c.violation_kinds.insert(OffenceKind::Clean);
        })
        .contains("clean is none")
    );
    assert!(serde_json::from_str::<LadderConfig>(r#"{"wrn": 1}"#).is_err(), "a misspelt field is no default");
}

fn any_kind() -> impl Strategy<Value = OffenceKind> {
    prop::sample::select(OffenceKind::iter().collect::<Vec<_>>())
}

/// Times of people, and times of nobody.
fn any_time() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => 1_750_000_000_000i64..1_752_000_000_000,
        1 => any::<i64>(),
        1 => prop::sample::select(vec![i64::MIN, -1, 0, 1, i64::MAX]),
    ]
}

/// Configurations from the sensible to what `check` would refuse: a step never panics.
fn any_config() -> impl Strategy<Value = LadderConfig> {
    let preset = prop::sample::select(Preset::iter().collect::<Vec<_>>()).prop_map(LadderConfig::preset);
    let wild = (any::<[u64; 8]>(), any::<[u32; 6]>(), any::<u16>()).prop_map(|(long, short, permille)| {
        LadderConfig {
            drift_half_life_ms: long[0],
            violation_half_life_ms: long[1],
            warn: long[2],
            after_block: long[3],
            base_block_ms: long[4],
            max_block_ms: long[5],
            ladder_window_ms: long[6],
            credit_drift: long[7],
            min_events: short[0],
            block_factor: short[1],
            ladder_to_block: short[2],
            points: Points {
                off_topic_max: short[3],
                off_topic_from_permille: permille,
                spam: short[4],
                flood: short[5],
                ..Points::default()
            },
            ..LadderConfig::default()
        }
    });
    prop_oneof![3 => preset, 1 => wild]
}

proptest! {
    #[test]
    fn no_event_at_any_time_overflows_or_turns_time_back(
        config in any_config(),
        events in prop::collection::vec((any_time(), any_kind(), any::<Option<u16>>(), any::<bool>()), 1..120),
    ) {
        let mut ladder = Ladder::default();
        let mut clock = i64::MIN;
        for (t, kind, oos, pardoned) in events {
            if pardoned && ladder.state == LadderState::Blocked {
                ladder.pardon(&config, t);
                prop_assert_eq!(ladder.score(), 0);
            } else {
                ladder.step(&config, t, kind, oos);
            }
            clock = clock.max(t);
            prop_assert_eq!(ladder.clock_ms, Some(clock));
        }
    }

    #[test]
    fn a_state_never_contradicts_its_thresholds(
        events in prop::collection::vec((0i64..90_000_000, any_kind(), 0u16..=1_000), 1..120),
    ) {
        let config = LadderConfig::default();
        let mut ladder = Ladder::default();
        let mut t = 1_750_000_000_000;
        for (gap, kind, oos) in events {
            t += gap;
            ladder.step(&config, t, kind, Some(oos));
            let score = ladder.score();
            match ladder.state {
                LadderState::Ok => prop_assert!(score < config.warn),
                LadderState::Warned => prop_assert!((config.warn_exit..config.throttle).contains(&score)),
                LadderState::Throttled => prop_assert!(score >= config.throttle_exit),
                LadderState::TempBlocked => prop_assert!(ladder.until_ms > Some(t - 1)),
                LadderState::Blocked => {}
            }
            prop_assert!(ladder.temp_blocks.len() < 20);
        }
    }

    #[test]
    fn a_clean_message_and_time_never_raise_anything(
        offences in prop::collection::vec((0i64..3_600_000, any_kind(), 0u16..=1_000), 0..40),
        later in 0i64..1_000_000_000,
    ) {
        let config = LadderConfig::default();
        let mut ladder = Ladder::default();
        let mut t = 1_750_000_000_000;
        for (gap, kind, oos) in offences {
            t += gap;
            ladder.step(&config, t, kind, Some(oos));
        }
        let before = ladder.clone();
        let mut waited = before.clone();
        waited.settle(&config, t + later);
        ladder.step(&config, t + later, OffenceKind::Clean, None);
        prop_assert!(ladder.drift <= waited.drift && waited.drift <= before.drift);
        prop_assert!(ladder.violation <= waited.violation && waited.violation <= before.violation);
        prop_assert!(ladder.state <= waited.state && waited.state <= before.state);
    }
}
