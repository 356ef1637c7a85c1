//! Intents and what is out of scope. Figures on shared data are printed with `--nocapture`; the asserted
//! ones lie a little below what was measured.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use botledger_scoring::Normalised;
use botledger_scoring::calibrate::{auroc, expected_calibration_error};
use botledger_scoring::intent::{
    Diversity, Example, IntentModel, IntentScore, OUT_OF_SCOPE, Options, TrainingError, diversity,
};
use botledger_scoring::model_file::Damage;
use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Clone, Deserialize)]
struct Row {
    id: String,
    text: String,
    intent: String,
}

fn shared(path: &str) -> Option<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/datasets");
    let text = std::fs::read_to_string(folder.join(path)).ok();
    if text.is_none() {
        eprintln!("skipped: the shared file {path} is not at hand");
    }
    text
}

fn rows(path: &str) -> Option<Vec<Row>> {
    Some(shared(path)?.lines().map(|line| serde_json::from_str(line).expect("a row")).collect())
}

fn example(intent: &str, text: &str) -> Example {
    Example { text: text.to_owned(), intent: intent.to_owned() }
}

fn trained(examples: &[Example]) -> IntentModel {
    IntentModel::train(examples, Options::default()).expect("sound examples")
}

fn predict(model: &IntentModel, text: &str) -> IntentScore {
    model.predict(&Normalised::of(text))
}

/// A bakery's bot in English and Russian, written for this test.
fn bakery() -> Vec<Example> {
    let mut examples = Vec::new();
    for (intent, texts) in [
        (
            "order_cake",
            &[
                "I'd like to order a birthday cake",
                "can you bake a cake for ten people by friday",
                "how do I order a wedding cake from you",
                "please make me a chocolate cake with a name on it",
                "хочу заказать торт на день рождения",
                "можно заказать свадебный торт?",
                "испеките, пожалуйста, торт на десять человек",
                "закажу шоколадный торт с надписью",
            ][..],
        ),
        (
            "opening_hours",
            &[
                "when do you open tomorrow",
                "are you open on sundays",
                "what are your opening hours",
                "until what time is the shop open",
                "во сколько вы открываетесь",
                "до скольки работает пекарня?",
                "вы работаете в воскресенье?",
                "какие у вас часы работы",
            ],
        ),
        (
            "delivery",
            &[
                "do you deliver to my street",
                "how much is delivery",
                "can somebody bring the bread to my office",
                "when does the courier arrive",
                "есть ли у вас доставка",
                "сколько стоит доставка на дом",
                "привезёте хлеб в офис?",
                "когда приедет курьер",
            ],
        ),
        (
            "allergens",
            &[
                "are there nuts in the rye bread",
                "which of your rolls are gluten free",
                "is there milk in the croissants",
                "I am allergic to eggs, what can I eat",
                "есть ли орехи в ржаном хлебе",
                "какие булочки без глютена",
                "в круассанах есть молоко?",
                "у меня аллергия на яйца, что мне можно",
            ],
        ),
    ] {
        examples.extend(texts.iter().map(|text| example(intent, text)));
    }
    examples
}

static BAKERY: LazyLock<IntentModel> = LazyLock::new(|| trained(&bakery()));

#[test]
fn other_words_for_the_same_wish_are_understood_in_two_languages() {
    for (text, intent) in [
        ("could I order a big chocolate birthday cake for saturday", "order_cake"),
        ("is the bakery open on monday morning?", "opening_hours"),
        ("how much does a delivery to the office cost", "delivery"),
        ("does the wheat bread have nuts or eggs in it", "allergens"),
        ("хотела бы заказать у вас торт на свадьбу", "order_cake"),
        ("а в субботу вы до скольки открыты?", "opening_hours"),
        ("сколько будет стоить доставить булочки домой", "delivery"),
        ("у ребёнка аллергия, есть ли в булочках молоко", "allergens"),
    ] {
        let score = predict(&BAKERY, text);
        assert_eq!(score.intent, intent, "{text}");
        assert!(!score.oos, "{text}: {score:?}");
    }
}

#[test]
fn what_a_bakery_is_not_there_for_is_out_of_scope() {
    for text in [
        "write a python function that sorts a list",
        "who won the football match yesterday",
        "tell me a story about dragons",
        "my laptop does not start any more",
        "напиши сочинение про Пушкина",
        "какая погода будет в Сочи",
        "посоветуй фильм на вечер",
        "реши уравнение x^2 = 4",
        "",
        "?!",
        "🙂",
        "ผมอยากกลับบ้าน",
        "xqzt vkwj bnmp",
    ] {
        let score = predict(&BAKERY, text);
        assert!(score.oos, "{text}: {score:?}");
        assert!(score.confidence < 0.5);
    }
}

#[test]
fn what_the_owner_ruled_out_is_out_of_scope() {
    let near = "do you sell flour to take home";
    let mut examples = bakery();
    assert!(predict(&BAKERY, near).oos_score < 0.999);
    for text in ["can I buy flour from you", "do you sell flour and yeast", "продаёте ли вы муку"]
    {
        examples.push(example(OUT_OF_SCOPE, text));
    }
    let model = trained(&examples);
    assert_eq!(model.intents().len(), 4, "ruling out is no intent");
    let (before, after) = (predict(&BAKERY, near), predict(&model, near));
    assert!(after.oos && after.oos_score > before.oos_score, "{before:?} {after:?}");
}

#[test]
fn the_order_of_examples_and_their_repetition_change_nothing() {
    let model = trained(&bakery());
    let mut examples = bakery();
    examples.reverse();
    examples.extend(bakery().into_iter().step_by(3));
    let again = trained(&examples);
    assert_eq!(again.version(), model.version());
    assert_eq!(again.to_bytes(), model.to_bytes());
    let fewer = trained(&bakery()[1..]);
    assert_ne!(fewer.version(), model.version());
    let stricter = Options { false_rejection_permille: 200, ..Options::default() };
    let stricter = IntentModel::train(&bakery(), stricter).expect("sound examples");
    assert_ne!(stricter.version(), model.version());
    let alone = Options { background: false, ..Options::default() };
    assert_ne!(IntentModel::train(&bakery(), alone).expect("sound examples").version(), model.version());
}

#[test]
fn a_model_is_the_same_after_a_file_and_a_damaged_file_is_none() {
    let mut file = BAKERY.to_bytes();
    let again = IntentModel::from_bytes(&file).expect("its own file");
    assert_eq!(&again, &*BAKERY);
    for text in ["a cake please", "сколько стоит доставка", ""] {
        assert_eq!(predict(&again, text), predict(&BAKERY, text));
    }
    for cut in [0, 7, 40, file.len() - 1] {
        assert!(IntentModel::from_bytes(&file[..cut]).is_err(), "{cut}");
    }
    let middle = file.len() / 2;
    file[middle] ^= 1;
    assert_eq!(IntentModel::from_bytes(&file).expect_err("a damaged file"), Damage::Checksum);
}

#[test]
fn examples_that_teach_nothing_are_named() {
    let refuse =
        |examples: &[Example]| IntentModel::train(examples, Options::default()).expect_err("unsound");
    assert_eq!(refuse(&[]), TrainingError::NoIntents);
    assert_eq!(refuse(&[example(OUT_OF_SCOPE, "hello")]), TrainingError::NoIntents);
    assert_eq!(
        refuse(&[example("a", "hello"), example("a", "?!")]),
        TrainingError::EmptyExample { number: 2 }
    );
    assert_eq!(refuse(&[example(" ", "hello")]), TrainingError::UnnamedIntent { number: 1 });
    let many: Vec<Example> = (0..1_001).map(|n| example(&format!("i{n}"), "hello")).collect();
    assert_eq!(refuse(&many), TrainingError::TooManyIntents { found: 1_001 });
}

#[test]
fn one_intent_with_one_example_is_a_model_too() {
    let model = trained(&[example("greet", "hello there")]);
    let score = predict(&model, "hello there");
    assert_eq!(score.intent, "greet");
    assert!(predict(&model, "как приготовить борщ").oos);
}

#[test]
fn examples_that_repeat_one_another_are_told_from_varied_ones() {
    let alike = (0..6).map(|n| example("alike", &format!("I would like to see my balance now {n}")));
    let mut examples = bakery();
    examples.extend(alike);
    let told: BTreeMap<String, Diversity> =
        diversity(&examples).into_iter().map(|told| (told.intent.clone(), told)).collect();
    assert!(told["alike"].permille < Diversity::LOW, "{told:?}");
    assert!(told["delivery"].permille > Diversity::LOW, "{told:?}");
    assert_eq!(told["delivery"].examples, 8);
}

fn order(text: &str) -> Vec<u8> {
    Sha256::digest(text).to_vec()
}

/// The first `count` rows of each intent, by a hash of the id.
fn few(train: &[Row], intents: &[String], count: usize) -> Vec<Example> {
    intents
        .iter()
        .flat_map(|intent| {
            let mut own: Vec<&Row> = train.iter().filter(|row| row.intent == *intent).collect();
            own.sort_by_cached_key(|row| order(&row.id));
            own.into_iter().take(count).map(|row| example(&row.intent, &row.text))
        })
        .collect()
}

/// Means over policies: right intent, false rejection, recall of all that is out of scope.
fn policies(train: &[Row], test: &[Row], draws: &[Vec<String>]) -> (f64, f64, f64) {
    let mut sums = (0.0, 0.0, 0.0);
    for intents in draws {
        let model = trained(&few(train, intents, 20));
        let (mut inside, mut right, mut rejected, mut outside, mut caught) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for row in test {
            let score = predict(&model, &row.text);
            let oos = f64::from(u8::from(score.oos));
            if intents.contains(&row.intent) {
                inside += 1.0;
                right += f64::from(u8::from(score.intent == row.intent));
                rejected += oos;
            } else {
                outside += 1.0;
                caught += oos;
            }
        }
        sums.0 += right / inside;
        sums.1 += rejected / inside;
        sums.2 += caught / outside;
    }
    let count = draws.len() as f64;
    (sums.0 / count, sums.1 / count, sums.2 / count)
}

/// Policies of fifteen intents with twenty examples each; everything else of the validation rows, and the rows
/// labelled "oos", are out of their scope.
#[test]
fn a_policy_of_fifteen_intents_finds_them_and_what_is_not_among_them() {
    let (Some(train), Some(mut test)) = (rows("clinc150/train.jsonl"), rows("clinc150/val.jsonl")) else {
        return;
    };
    test.extend(train.iter().filter(|row| row.intent == OUT_OF_SCOPE).cloned());
    let mut names: Vec<String> = train.iter().map(|row| row.intent.clone()).collect();
    names.sort();
    names.dedup();
    names.retain(|name| name != OUT_OF_SCOPE);
    let draws: Vec<Vec<String>> = (0..6)
        .map(|draw| {
            let mut drawn = names.clone();
            drawn.sort_by_cached_key(|name| order(&format!("{draw}:{name}")));
            drawn.truncate(15);
            drawn
        })
        .collect();
    let (right, rejected, caught) = policies(&train, &test, &draws);
    println!("drawn at random: right {right:.3}, rejected {rejected:.3}, out of scope caught {caught:.3}");
    assert!(right >= 0.93 && rejected <= 0.08 && caught >= 0.78);

    let domains = shared("clinc150/domains.json").expect("beside the rows");
    let domains: BTreeMap<String, Vec<String>> = serde_json::from_str(&domains).expect("names by domain");
    let draws: Vec<Vec<String>> = domains.into_values().collect();
    let (right, rejected, caught) = policies(&train, &test, &draws);
    println!("of one domain: right {right:.3}, rejected {rejected:.3}, out of scope caught {caught:.3}");
    assert!(right >= 0.88 && rejected <= 0.08 && caught >= 0.90);
}

/// A hundred and fifty intents, trained on the training rows without those labelled "oos".
#[test]
fn a_large_policy_tells_its_intents_apart_and_knows_what_is_none() {
    let (Some(train), Some(test)) = (rows("clinc150/train.jsonl"), rows("clinc150/val.jsonl")) else {
        return;
    };
    let examples: Vec<Example> = train
        .iter()
        .filter(|row| row.intent != OUT_OF_SCOPE)
        .map(|row| example(&row.intent, &row.text))
        .collect();
    let model = trained(&examples);
    let (mut inside, mut outside, mut right, mut sure) = (vec![], vec![], 0, vec![]);
    for row in &test {
        let score = predict(&model, &row.text);
        sure.push((score.confidence, score.intent == row.intent));
        if row.intent == OUT_OF_SCOPE {
            outside.push(score.oos_score);
        } else {
            inside.push(score.oos_score);
            right += u32::from(score.intent == row.intent);
        }
    }
    let right = f64::from(right) / inside.len() as f64;
    let separation = auroc(&inside, &outside).expect("both sides");
    let error = expected_calibration_error(&sure).expect("rows");
    println!("right {right:.3}, AUROC {separation:.3}, calibration error of confidence {error:.3}");
    assert!(right >= 0.92 && separation >= 0.955 && error <= 0.15);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_text_gets_an_intent_and_probabilities(text in any::<String>()) {
        sound(&text)?;
    }

    #[test]
    fn any_mixture_of_scripts_and_lengths_does(
        parts in prop::collection::vec(
            prop::sample::select(vec!["торт ", "cake", "汉字", "עברית ", "ไทย", "\u{200b}", "🎂", "0", "\n", "ﬃ", "I\u{307}"]),
            0..60,
        ),
        times in 1_usize..200,
    ) {
        sound(&parts.concat().repeat(times))?;
    }

    #[test]
    fn any_examples_make_a_model_or_a_reason(
        rows in prop::collection::vec(("[ab -~а-я]{0,12}", "[ab]{0,2}|oos"), 0..8),
    ) {
        let examples: Vec<Example> = rows.iter().map(|(text, intent)| example(intent, text)).collect();
        let options = Options { background: false, ..Options::default() };
        if let Ok(model) = IntentModel::train(&examples, options) {
            let score = predict(&model, "a b а б");
            prop_assert!(model.intents().contains(&score.intent));
            prop_assert_eq!(&IntentModel::from_bytes(&model.to_bytes()).expect("its own file"), &model);
        }
    }
}

fn sound(text: &str) -> Result<(), TestCaseError> {
    let score = predict(&BAKERY, text);
    prop_assert!(BAKERY.intents().contains(&score.intent));
    prop_assert!((0.0..=1.0).contains(&score.oos_score) && (0.0..=1.0).contains(&score.confidence));
    prop_assert_eq!(score.oos, score.oos_score > 0.5);
    prop_assert_eq!(score.oos_permille, (score.oos_score * 1000.0).round() as u16);
    prop_assert!(score.signals.score().is_finite());
    Ok(())
}
