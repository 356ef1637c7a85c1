//! Features and the linear classifier.

use botledger_scoring::Normalised;
use botledger_scoring::features::{Counts, SparseVector, Symbols, Vocabulary};
use botledger_scoring::linear::{Linear, Training};
use botledger_scoring::model_file::{Damage, Kind, Reader, Writer};

fn counts(text: &str) -> Counts {
    Counts::of_text(&Normalised::of(text), Symbols::Ignored)
}

const EXAMPLES: [(&str, usize); 9] = [
    ("where is my parcel", 0),
    ("track the order i placed", 0),
    ("when will the courier come", 0),
    ("i want my money back", 1),
    ("refund this purchase please", 1),
    ("give me a refund", 1),
    ("what time do you open", 2),
    ("opening hours on sunday", 2),
    ("are you open now", 2),
];

fn trained(examples: &[(&str, usize)]) -> (Vocabulary, Linear) {
    let texts: Vec<Counts> = examples.iter().map(|(text, _)| counts(text)).collect();
    let vocabulary = Vocabulary::learn(&texts);
    let vectors: Vec<SparseVector> = texts.iter().map(|text| vocabulary.weigh(text)).collect();
    let labels: Vec<usize> = examples.iter().map(|(_, label)| *label).collect();
    let linear = Linear::train(&vectors, &labels, 3, vocabulary.columns(), Training::default());
    (vocabulary, linear)
}

fn file((vocabulary, linear): &(Vocabulary, Linear)) -> Vec<u8> {
    let mut writer = Writer::new(Kind::Spam);
    vocabulary.write(&mut writer);
    linear.write(&mut writer);
    writer.finish()
}

#[test]
fn similar_texts_fall_into_the_class_of_their_examples() {
    let (vocabulary, linear) = trained(&EXAMPLES);
    for (text, expected) in
        [("has the courier got my order", 0), ("refunds please", 1), ("do you open on sundays", 2)]
    {
        let margins = linear.margins(&vocabulary.weigh(&counts(text)));
        let best = (0..3).max_by(|a, b| margins[*a].total_cmp(&margins[*b])).expect("three classes");
        assert_eq!(best, expected, "{text}: {margins:?}");
    }
}

#[test]
fn the_order_of_examples_changes_no_byte() {
    let mut reversed = EXAMPLES;
    reversed.reverse();
    assert_eq!(file(&trained(&EXAMPLES)), file(&trained(&reversed)));
}

#[test]
fn vectors_have_length_one_and_unknown_words_are_counted() {
    let (vocabulary, _) = trained(&EXAMPLES);
    let text = counts("where is my zebra");
    let vector = vocabulary.weigh(&text);
    assert!((vector.dot(&vector) - 1.0).abs() < 1e-5);
    assert!(vector.columns.is_sorted_by(|a, b| a < b));
    assert!((vocabulary.unseen_share(&text) - 0.25).abs() < 1e-6);
    assert!((vocabulary.unseen_share(&counts("")) - 1.0).abs() < 1e-6);
}

#[test]
fn the_solution_is_the_optimum_of_the_primal() {
    // Two points on a line: minimise (w^2 + b^2) / 2 + (1 - w - b)^2 + (1 - w + b)^2, so b = 0, w = 4/5.
    let point = |value: f32| SparseVector { columns: vec![0], values: vec![value] };
    let exact = Training { tolerance: 1e-9, passes: 10_000, ..Training::default() };
    let linear = Linear::train_binary(&[point(1.0), point(-1.0)], &[true, false], 1, exact);
    let margin = linear.margins(&point(1.0))[0];
    assert!((margin - 0.8).abs() < 1e-5, "{margin}");
}

#[test]
fn a_stored_model_reads_back_equal() {
    let model = trained(&EXAMPLES);
    let file = file(&model);
    let mut reader = Reader::open_kind(&file, Kind::Spam).expect("a sound file");
    let vocabulary = Vocabulary::read(&mut reader).expect("a vocabulary");
    let linear = Linear::read(&mut reader, vocabulary.columns()).expect("weights");
    reader.finish().expect("nothing is left");
    assert_eq!((vocabulary, linear), model);
}

#[test]
fn a_damaged_file_is_refused_with_its_reason() {
    let file = file(&trained(&EXAMPLES));
    assert_eq!(
        Reader::open_kind(&file, Kind::Intent).err(),
        Some(Damage::OtherKind { found: Kind::Spam, wanted: Kind::Intent })
    );
    assert_eq!(Reader::open(b"{\"text\":").err(), Some(Damage::Foreign));
    assert_eq!(Reader::open(&file[..10]).err(), Some(Damage::Short));
    assert_eq!(Reader::open(&file[..file.len() - 1]).err(), Some(Damage::Checksum));
    let mut other = file.clone();
    other[8] = 99;
    assert_eq!(Reader::open(&other).err(), Some(Damage::OtherFormat { found: 99 }));
    for at in (12..file.len()).step_by(file.len() / 50) {
        let mut changed = file.clone();
        changed[at] ^= 1;
        assert_eq!(Reader::open(&changed).err(), Some(Damage::Checksum), "byte {at}");
    }
}

#[test]
fn a_length_beyond_the_file_reserves_nothing() {
    let mut writer = Writer::new(Kind::Attack);
    writer.u32(u32::MAX);
    let file = writer.finish();
    let mut reader = Reader::open(&file).expect("the frame is sound");
    assert_eq!(reader.f32s(), Err(Damage::Short));
}
