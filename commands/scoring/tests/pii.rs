//! Personal data: found exactly, masked, put back.

#![expect(clippy::print_stdout, reason = "figures for whoever runs it with --nocapture")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use botledger_scoring::pii::{self, MaskStyle, PiiKind, PiiKinds, PiiSpan, PseudonymKey, mask};
use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// A labelled text of the shared data.
#[derive(Deserialize)]
struct Row {
    id: String,
    text: String,
    spans: Vec<Label>,
}

#[derive(Deserialize)]
struct Label {
    start: u32,
    end: u32,
    #[serde(rename = "type")]
    kind: String,
}

/// The rows of a shared data set whose id hashes to the given half: one half is for looking at errors, the
/// other for reporting. Absent, with a word why, where the data is not at hand.
fn rows(set: &str, half: u8) -> Option<Vec<Row>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/datasets")
        .join(set)
        .join("train.jsonl");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: the shared data set {set} is not at hand");
        return None;
    };
    let rows = text.lines().map(|line| serde_json::from_str::<Row>(line).expect("a row"));
    Some(rows.filter(|row| Sha256::digest(row.id.as_bytes())[0] % 2 == half).collect())
}

/// Counts of one kind.
#[derive(Clone, Copy, Default)]
struct Tally {
    labelled: u32,
    reported: u32,
    exact: u32,
}

impl Tally {
    fn recall_permille(self) -> u32 {
        (self.exact * 1_000).checked_div(self.labelled).unwrap_or(1_000)
    }

    fn precision_permille(self) -> u32 {
        (self.exact * 1_000).checked_div(self.reported).unwrap_or(1_000)
    }
}

/// Exact comparison of place and kind, over these kinds of labels; whatever else is reported counts as wrong.
fn tallies(rows: &[Row], kinds: PiiKinds) -> BTreeMap<PiiKind, Tally> {
    let mut tallies: BTreeMap<PiiKind, Tally> = BTreeMap::new();
    for row in rows {
        let found: BTreeSet<_> =
            pii::find_kinds(&row.text, kinds).iter().map(|span| (span.start, span.end, span.kind)).collect();
        for label in &row.spans {
            let Some(kind) = PiiKind::parse(&label.kind).filter(|kind| kinds.contains(*kind)) else {
                continue;
            };
            let tally = tallies.entry(kind).or_default();
            tally.labelled += 1;
            tally.exact += u32::from(found.contains(&(label.start, label.end, kind)));
        }
        for (.., kind) in found {
            tallies.entry(kind).or_default().reported += 1;
        }
    }
    for (kind, tally) in &tallies {
        println!(
            "{kind:20} labelled {:4}  reported {:4}  recall {:4} permille  precision {:4} permille",
            tally.labelled,
            tally.reported,
            tally.recall_permille(),
            tally.precision_permille()
        );
    }
    tallies
}

#[test]
fn structured_data_is_found_exactly_and_nothing_else_is() {
    let Some(rows) = rows("pii_structured", 1) else { return };
    let total =
        tallies(&rows, PiiKinds::personal()).into_values().fold(Tally::default(), |sum, tally| Tally {
            labelled: sum.labelled + tally.labelled,
            reported: sum.reported + tally.reported,
            exact: sum.exact + tally.exact,
        });
    assert!(total.recall_permille() >= 970, "recall {} permille", total.recall_permille());
    assert!(total.precision_permille() >= 970, "precision {} permille", total.precision_permille());
}

#[test]
fn what_patterns_can_find_in_presidios_texts_is_found() {
    let Some(rows) = rows("pii_presidio", 1) else { return };
    let kinds = PiiKinds::ALL
        .without(PiiKind::Person)
        .without(PiiKind::Location)
        .without(PiiKind::Organization)
        .without(PiiKind::Nrp);
    for (kind, tally) in tallies(&rows, kinds) {
        assert!(tally.recall_permille() >= 900, "{kind}: recall {} permille", tally.recall_permille());
        // Their labels put a postal code after a town's name into the street address.
        if kind != PiiKind::ZipCode {
            assert!(
                tally.precision_permille() >= 900,
                "{kind}: precision {} permille",
                tally.precision_permille()
            );
        }
    }
}

/// `kind: value` of what is found.
fn seen(text: &str, kinds: PiiKinds) -> Vec<(PiiKind, String)> {
    let letters: Vec<char> = text.chars().collect();
    let value = |span: &PiiSpan| letters[span.start as usize..span.end as usize].iter().collect();
    pii::find_kinds(text, kinds).iter().map(|span| (span.kind, value(span))).collect()
}

#[track_caller]
fn assert_seen(text: &str, kind: PiiKind, value: &str) {
    assert_eq!(seen(text, PiiKinds::personal()), [(kind, value.to_owned())], "{text}");
}

#[track_caller]
fn assert_unseen(text: &str) {
    assert_eq!(seen(text, PiiKinds::personal()), [], "{text}");
}

#[test]
fn cards_are_found_as_people_write_them() {
    use PiiKind::CreditCard;
    for (text, value) in [
        ("pay with 4111111111111111 please", "4111111111111111"),
        ("pay with 4111-1111-1111-1111.", "4111-1111-1111-1111"),
        ("4111 1111 1111 1111 12/27 123", "4111 1111 1111 1111"),
        ("4111111111111111,12/27,123", "4111111111111111"),
        ("amex 3782 822463 10005", "3782 822463 10005"),
        ("карта мир 2200 0000 0000 0004", "2200 0000 0000 0004"),
        ("I order by card 4111111111111111", "4111111111111111"),
        ("my order is for 4111 1111 1111 1111", "4111 1111 1111 1111"),
        ("my card: 411111 1111111111", "411111 1111111111"),
    ] {
        assert_seen(text, CreditCard, value);
    }
    for text in [
        "pay with 4111111111111112 please",
        "заказ 4111111111111111 доставлен",
        "order 4111111111111111 has shipped",
        "card ending in 1111",
        "1700000000000 milliseconds",
        "pi is 3.14159265358979323846",
        "commit 4111111111111111a",
        "9111111111111111 is issued by nobody",
        "0000000000000000",
    ] {
        assert_unseen(text);
    }
}

#[test]
fn telephones_are_found_whole() {
    for (text, value) in [
        ("+7 (903) 326-24-58, доб. 12 спросить Машу", "+7 (903) 326-24-58, доб. 12"),
        ("8 903 326 24 58 звоните", "8 903 326 24 58"),
        ("89033262458", "89033262458"),
        ("(+44) 20 7946 0958 in London", "(+44) 20 7946 0958"),
        ("+44 (0)20 7946 0958 in London", "+44 (0)20 7946 0958"),
        ("(212) 555-1234", "(212) 555-1234"),
        ("try 212.555.1234 x77 or not", "212.555.1234 x77"),
        ("0049 155 7969 3854", "0049 155 7969 3854"),
        ("call me at 123-45-67 2 times", "123-45-67"),
        ("мой номер 123-45-67", "123-45-67"),
        ("Phone: 020 7946 0958", "020 7946 0958"),
        ("020 7946 0958 office", "020 7946 0958"),
        ("+998901234567", "+998901234567"),
    ] {
        assert!(
            seen(text, PiiKinds::personal()).contains(&(PiiKind::PhoneNumber, value.to_owned())),
            "{text}: {:?}",
            seen(text, PiiKinds::personal())
        );
    }
    for text in [
        "room 123-45-67",
        "order 2125551234",
        "call me on 2024-03-17",
        "phone 1996 10 09 22 23",
        "calling 127.0.0.1 and 0.0.0.0",
        "phone costs 125 000 rub",
        "телефон стоит 125000 рублей",
        "мобильный за $1234567",
        "call 10 people at 5",
        "it costs 12 345 678 roubles",
        "+1234",
        "The office is at 17031 2202 Main Street",
    ] {
        assert_unseen(text);
    }
}

#[test]
fn mailboxes_and_machines_end_where_the_sentence_goes_on() {
    use PiiKind as K;
    for (text, kind, value) in [
        ("Write <me@example.org>.", K::EmailAddress, "me@example.org"),
        ("mailto:me@example.org?subject=x", K::EmailAddress, "me@example.org"),
        ("'first.last+tag@sub.example.co.uk'", K::EmailAddress, "first.last+tag@sub.example.co.uk"),
        ("почта@пример.рф, пишите", K::EmailAddress, "почта@пример.рф"),
        ("заказ: ivan@example.ru", K::EmailAddress, "ivan@example.ru"),
        ("http://10.1.2.3:8080/x", K::IpAddress, "10.1.2.3"),
        ("10.1.2.0/24", K::IpAddress, "10.1.2.0"),
        ("[2001:db8::1]:443", K::IpAddress, "2001:db8::1"),
        ("fe80::1%eth0", K::IpAddress, "fe80::1"),
        ("::ffff:10.1.2.3", K::IpAddress, "::ffff:10.1.2.3"),
        ("mac 001A.2B3C.4D5E", K::MacAddress, "001A.2B3C.4D5E"),
        ("мак 11-22-33-44-55-66", K::MacAddress, "11-22-33-44-55-66"),
        ("see postgres://app:s3cr3t@db.example.com/app.", K::Url, "postgres://app:s3cr3t@db.example.com/app"),
    ] {
        assert_seen(text, kind, value);
    }
    for text in [
        "@username on telegram",
        "icon@2x.png",
        "git@github.com:team/code.git",
        "user@localhost",
        "v1.2.3.4 of it",
        "версия 1.2.3.4",
        "1.2.3.4.5",
        "256.1.1.1",
        "127.0.0.1 and ::1",
        "std::vec::Vec",
        "at 12:34:56",
        "https://example.com/a?b=c",
        "ff:ff:ff:ff:ff:ff",
        "part 11-22-33-44-55-66",
    ] {
        assert_unseen(text);
    }
}

#[test]
fn numbers_of_states_need_their_check_digits_and_their_word() {
    use PiiKind as K;
    for (text, kind, value) in [
        ("ИНН: 7707083893", K::RuInn, "7707083893"),
        ("для договора ИНН 500100732259", K::RuInn, "500100732259"),
        ("ОГРН 1027700132195", K::RuOgrn, "1027700132195"),
        ("112-233-445 95", K::RuSnils, "112-233-445 95"),
        ("СНИЛС 11223344595", K::RuSnils, "11223344595"),
        ("паспорт 4509 123456", K::RuPassport, "4509 123456"),
        ("паспорт серия 4509 № 123456", K::RuPassport, "4509 № 123456"),
        ("водительское удостоверение 99 12 345678", K::RuDriverLicense, "99 12 345678"),
        ("р/с 40817810099910004312", K::RuBankAccount, "40817810099910004312"),
        ("123-45-6789", K::UsSsn, "123-45-6789"),
        ("my SSN is 123456789", K::UsSsn, "123456789"),
        ("ITIN 912-70-1234", K::UsItin, "912-70-1234"),
        ("passport number A12345678", K::UsPassport, "A12345678"),
        ("my driver's license number is F162823540116", K::UsDriverLicense, "F162823540116"),
        ("account number 00012345678", K::UsBankNumber, "00012345678"),
        ("NHS 943 476 5919", K::UkNhs, "943 476 5919"),
        ("DNI 12345678Z", K::EsNif, "12345678Z"),
        ("NIE X1234567L", K::EsNie, "X1234567L"),
        ("RSSMRA85T10A562S", K::ItFiscalCode, "RSSMRA85T10A562S"),
        ("PESEL 44051401359", K::PlPesel, "44051401359"),
        ("ABN 51 824 753 556", K::AuAbn, "51 824 753 556"),
        ("ACN 004 085 616", K::AuAcn, "004 085 616"),
        ("TFN 123 456 782", K::AuTfn, "123 456 782"),
        ("medicare 2123 45670 1", K::AuMedicare, "2123 45670 1"),
        ("UEN 197401143C", K::SgUen, "197401143C"),
        ("Aadhaar 2341 2341 2346", K::InAadhaar, "2341 2341 2346"),
        ("390.533.447-05", K::BrCpf, "390.533.447-05"),
        ("DEA AB1234563", K::MedicalLicense, "AB1234563"),
        ("date of birth: 12/05/1990", K::DateOfBirth, "12/05/1990"),
        ("родился 5 мая 1990 года", K::DateOfBirth, "5 мая 1990"),
    ] {
        assert_seen(text, kind, value);
    }
    for text in [
        "7707083893",
        "ИНН 7707083894",
        "заказ №7707083893",
        "112-233-445 96",
        "4509 123456",
        "000-12-3456 666-12-3456 900-12-3456",
        "943 476 5919",
        "44051401359 units",
        "12345678A",
        "39053344705",
        "AB1234563",
        "invoice of 12/05/1990",
    ] {
        assert_unseen(text);
    }
}

#[test]
fn accounts_and_wallets_are_proven() {
    use PiiKind as K;
    for (text, kind, value) in [
        ("IBAN DE89 3704 0044 0532 0130 00 bitte", K::IbanCode, "DE89 3704 0044 0532 0130 00"),
        ("gb82west12345698765432", K::IbanCode, "gb82west12345698765432"),
        ("order: NO93 8601 1117 947.", K::IbanCode, "NO93 8601 1117 947"),
        ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", K::Crypto, "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
        (
            "на bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4 шли",
            K::Crypto,
            "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
        ),
        (
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            K::Crypto,
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        ),
        (
            "EQDtFpEwcFAEcRe5mLVh2N6C0x-_hJEM7W61_JLnSF74p4q2",
            K::Crypto,
            "EQDtFpEwcFAEcRe5mLVh2N6C0x-_hJEM7W61_JLnSF74p4q2",
        ),
    ] {
        assert_seen(text, kind, value);
    }
    for text in [
        "DE88 3704 0044 0532 0130 00",
        // Parts of a mistyped account are no cards, though this one ends with one.
        "iban DE88 4111 1111 1111 1111 12",
        "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb",
        "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5",
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD",
        "commit 5aaeb6053f3e94c9b9a09f33669435e7ef1beaed",
    ] {
        assert_unseen(text);
    }
}

#[test]
fn secrets_are_found_by_their_form_or_by_their_name() {
    use PiiKind as K;
    let token = format!("6216535303:{}", "AA8KDjlYp74nb6sXmK_PRnE27JAkhUVttU7");
    assert_seen(&format!("токен {token}"), K::TelegramBotToken, &token);
    assert_seen(&format!("https://api.telegram.org/bot{token}/getMe"), K::TelegramBotToken, &token);
    for (text, value) in [
        ("use sk-proj-abcDEF123456abcDEF123456 now", "sk-proj-abcDEF123456abcDEF123456"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
        ("Authorization: Bearer abcdef0123456789abcdef0123456789", "abcdef0123456789abcdef0123456789"),
        ("ключ 222185c71273711ce0ffebca352ebab8f4ee497a", "222185c71273711ce0ffebca352ebab8f4ee497a"),
        ("my password is hunter2!", "hunter2"),
        ("пароль: Qwerty123", "Qwerty123"),
        ("мой пароль qwerty123 подойдёт?", "qwerty123"),
        ("пароль от вайфая: котик2020", "котик2020"),
        ("{\"password\": \"s3cr3t-pa55\"}", "s3cr3t-pa55"),
        ("password = 'f(x)=42'", "f(x)=42"),
        ("api key: 61da021b-7b23-808e-ad92-bce90874dfed", "61da021b-7b23-808e-ad92-bce90874dfed"),
        ("https://example.com/docs?token=abc123def456ghi789", "abc123def456ghi789"),
    ] {
        assert_seen(text, K::Secret, value);
    }
    let key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabcd==\n-----END RSA PRIVATE KEY-----";
    assert_seen(&format!("here:\n{key}\nthanks"), K::Secret, key);
    let cut = "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nab";
    assert_seen(cut, K::Secret, cut);
    for text in [
        "password: required",
        "fn hash(&self, password: &str) -> Result",
        "let tokens = call.tokens.min(u64::from(MOST2)) * 10",
        "\"password\": os.environ[\"PASSWORD_2\"]",
        "postgres://app:…@db.example.org/app",
        "the keys of 61da021b-7b23-808e-ad92-bce90874dfed",
        "Password must be at least 8 characters",
        "forgot my password, please reset it",
        "my secret: I love you",
        "max_tokens: 4096",
        "sk-learn is a library",
        "id 783a1a79-312f-467e-a8df-83a9dddce108",
        "commit 222185c71273711ce0ffebca352ebab8f4ee497a fixes the token bug",
        "the token sale: https://t.me/5ef1f080b7f5d192aa",
        "the tokenizer splits 12345678abcdefgh",
    ] {
        assert_unseen(text);
    }
}

#[test]
fn disguises_are_seen_through_and_spans_are_of_the_text_as_given() {
    // Wide digits, Arabic ones, invisible characters and hard blanks.
    assert_seen(
        "карта ４１１１ １１１１ １１１１ １１１１!",
        PiiKind::CreditCard,
        "４１１１ １１１１ １１１１ １１１１",
    );
    assert_seen("٤١١١١١١١١١١١١١١١", PiiKind::CreditCard, "٤١١١١١١١١١١١١١١١");
    assert_seen(
        "4111\u{200B}1111\u{200B}1111\u{200B}1111",
        PiiKind::CreditCard,
        "4111\u{200B}1111\u{200B}1111\u{200B}1111",
    );
    assert_seen(
        "4111\u{A0}1111\u{A0}1111\u{A0}1111",
        PiiKind::CreditCard,
        "4111\u{A0}1111\u{A0}1111\u{A0}1111",
    );
    assert_seen("me＠example．org", PiiKind::EmailAddress, "me＠example．org");
    let spans = pii::find("👋🏽 é: me@example.org");
    assert_eq!((spans[0].start, spans[0].end), (6, 20));
}

#[test]
fn dates_sites_and_postal_codes_are_found_when_asked_for_only() {
    let text = "On 2007-01-17 23:08:55 see https://example.com/, zip 90210";
    assert_unseen(text);
    let all: Vec<_> = seen(text, PiiKinds::ALL);
    let expected = [
        (PiiKind::DateTime, "2007-01-17 23:08:55"),
        (PiiKind::DomainName, "https://example.com/"),
        (PiiKind::ZipCode, "90210"),
    ];
    assert_eq!(all, expected.map(|(kind, value)| (kind, value.to_owned())));
    let only: PiiKinds = [PiiKind::ZipCode].into_iter().collect();
    assert_eq!(seen(text, only), [(PiiKind::ZipCode, "90210".to_owned())]);
}

#[test]
fn kinds_have_the_names_of_the_labels() {
    for kind in PiiKind::ALL {
        assert_eq!(PiiKind::parse(kind.as_str()), Some(*kind));
        assert_eq!(serde_json::to_value(kind).expect("a name"), kind.as_str());
    }
    assert_eq!(PiiKind::UsSsn.as_str(), "US_SSN");
    assert_eq!(PiiKind::parse("us_ssn"), None);
}

const LETTER: &str = "mail a@example.org or b@example.org, again a@example.org, card 4111 1111 1111 1111";

#[test]
fn a_mask_names_the_kind_or_the_last_four_digits() {
    let kind = mask(LETTER, MaskStyle::Kind);
    assert_eq!(
        kind.text,
        "mail <EMAIL_ADDRESS> or <EMAIL_ADDRESS>, again <EMAIL_ADDRESS>, card <CREDIT_CARD>"
    );
    assert_eq!(kind.spans.len(), 4);
    assert!(kind.replaced.is_empty(), "one name for many values cannot be put back");
    let last = mask(LETTER, MaskStyle::LastFour);
    assert!(last.text.ends_with("again <EMAIL_ADDRESS>, card <CREDIT_CARD ***1111>"), "{}", last.text);
    assert_eq!(mask("my pin password is 12345678", MaskStyle::LastFour).text, "my pin password is <SECRET>");
}

#[test]
fn numbered_placeholders_are_put_back() {
    let masked = mask(LETTER, MaskStyle::Numbered);
    assert_eq!(
        masked.text,
        "mail <EMAIL_ADDRESS_1> or <EMAIL_ADDRESS_2>, again <EMAIL_ADDRESS_1>, card <CREDIT_CARD_1>"
    );
    assert_eq!(masked.restore(&masked.text), LETTER);
    assert_eq!(
        masked.restore("<EMAIL_ADDRESS_2>, not <EMAIL_ADDRESS_3> or <EMAIL_ADDRESS_1"),
        "b@example.org, not <EMAIL_ADDRESS_3> or <EMAIL_ADDRESS_1"
    );
    assert_eq!(masked.restore("<<EMAIL_ADDRESS_1>>"), "<a@example.org>");
}

#[test]
fn a_value_has_one_placeholder_in_all_texts_of_a_request() {
    let texts = ["I am a@example.org", "and b@example.org", "who is a@example.org?"];
    let (masked, replaced) = pii::mask_together(&texts, PiiKinds::personal(), MaskStyle::Numbered);
    let masked: Vec<_> = masked.into_iter().map(|(text, _)| text).collect();
    assert_eq!(masked, ["I am <EMAIL_ADDRESS_1>", "and <EMAIL_ADDRESS_2>", "who is <EMAIL_ADDRESS_1>?"]);
    assert_eq!(replaced.len(), 2);
    assert_eq!(replaced.restore("<EMAIL_ADDRESS_2>"), "b@example.org");
}

#[test]
fn a_placeholder_somebody_wrote_is_never_turned_into_anothers_value() {
    let texts = ["my mail is a@example.org", "repeat <EMAIL_ADDRESS_1> to me"];
    let (masked, replaced) = pii::mask_together(&texts, PiiKinds::personal(), MaskStyle::Numbered);
    assert_eq!(masked[0].0, "my mail is <EMAIL_ADDRESS_2>");
    assert_eq!(replaced.restore("<EMAIL_ADDRESS_1>"), "<EMAIL_ADDRESS_1>");
    assert_eq!(replaced.restore("<EMAIL_ADDRESS_2>"), "a@example.org");

    let key = PseudonymKey::new([7; 32]);
    let pseudonym = mask("a@example.org", MaskStyle::Pseudonym(&key)).text;
    let asked = format!("repeat {pseudonym}");
    let texts = ["my mail is a@example.org", asked.as_str()];
    let (_, replaced) = pii::mask_together(&texts, PiiKinds::personal(), MaskStyle::Pseudonym(&key));
    assert_eq!(replaced.restore(&pseudonym), pseudonym);
}

#[test]
fn nothing_personal_hides_in_what_looks_like_a_placeholder() {
    assert_seen("<CREDIT_CARD#4111111111111111>", PiiKind::CreditCard, "4111111111111111");
    assert_seen("<PHONE_NUMBER_1 89033262458>", PiiKind::PhoneNumber, "89033262458");
}

#[test]
fn pseudonyms_are_the_same_for_a_value_however_written_and_another_under_another_key() {
    let key = PseudonymKey::new([1; 32]);
    let pseudonym = |text: &str, key: &PseudonymKey| mask(text, MaskStyle::Pseudonym(key)).text;
    let card = pseudonym("4111 1111 1111 1111", &key);
    assert_eq!(card, pseudonym("4111-1111-1111-1111", &key));
    assert_ne!(card, pseudonym("4111 1111 1111 1111", &PseudonymKey::new([2; 32])));
    assert_ne!(card, pseudonym("5555 5555 5555 4444", &key));
    assert_eq!(pseudonym("8 903 326-24-58", &key), pseudonym("+79033262458", &key));
    assert_eq!(pseudonym("Me@Example.org", &key), pseudonym("me@example.org", &key));
    let masked = mask("4111 1111 1111 1111", MaskStyle::Pseudonym(&key));
    assert_eq!(masked.restore(&masked.text), "4111 1111 1111 1111");
}

#[test]
fn nothing_that_is_kept_can_be_printed() {
    let key = PseudonymKey::new([1; 32]);
    let masked = mask(LETTER, MaskStyle::Numbered);
    let printed = format!("{masked:?} {:?} {:?} {key:?}", masked.replaced, masked.replaced.restorer());
    assert!(!printed.contains("example.org") && !printed.contains("4111"), "{printed}");
}

#[test]
fn spans_of_a_model_for_names_are_masked_beside_ours() {
    let text = "Anna a@example.org";
    let mut spans = pii::find(text);
    spans.push(PiiSpan { start: 0, end: 4, kind: PiiKind::Person, confidence_permille: 700 });
    // Overlaps what is surer, and lies outside.
    spans.push(PiiSpan { start: 3, end: 9, kind: PiiKind::Location, confidence_permille: 650 });
    spans.push(PiiSpan { start: 90, end: 99, kind: PiiKind::Person, confidence_permille: 700 });
    let masked = pii::mask_spans(text, spans, MaskStyle::Numbered);
    assert_eq!(masked.text, "<PERSON_1> <EMAIL_ADDRESS_1>");
    assert_eq!(masked.restore(&masked.text), text);
}

/// Pieces of texts that bring recognisers close to one another.
fn piece() -> impl Strategy<Value = String> {
    let pieces = [
        "4111 1111 1111 1111",
        "4111111111111111",
        "+7 903 326-24-58",
        "123-45-6789",
        "7707083893",
        "ИНН ",
        "card ",
        "order ",
        "phone ",
        "password: ",
        "token=",
        "a1b2c3d4e5f6g7h8i9j0",
        "me@example.org",
        "DE89370400440532013000",
        "DE89 3704 0044 0532 0130 00",
        "10.1.2.3",
        "2001:db8::1",
        "00:1A:2B:3C:4D:5E",
        "<EMAIL_ADDRESS_1>",
        "<SECRET>",
        "<CREDIT_CARD ***1111>",
        "<CREDIT_CARD#abcdefghijklmnop>",
        "<",
        ">",
        "_1>",
        "https://a:b@c.org/",
        "eyJhbGciOiJI.",
        "-----BEGIN PRIVATE KEY-----",
        " ",
        "\n",
        "-",
        ".",
        ",",
        "(",
        ")",
        "+",
        "x12",
        "12",
        "1234567",
        "é",
        "\u{200B}",
        "１",
        "паспорт 4509 № 123456",
        "born 12/05/1990",
        "AKIAIOSFODNN7EXAMPLE",
        "6216535303:AA8KDjlYp74nb6sXmK_PRnE27JAkhUVttU7",
    ];
    prop_oneof![4 => prop::sample::select(pieces.map(str::to_owned).to_vec()), 1 => "\\PC{0,6}"]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::collection::vec(piece(), 0..14).prop_map(|pieces| pieces.concat()),
        "\\PC{0,80}",
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn spans_are_in_order_apart_and_inside(text in text()) {
        let points = text.chars().count() as u32;
        let mut end = 0;
        for span in pii::find_kinds(&text, PiiKinds::ALL) {
            prop_assert!(span.start >= end && span.end > span.start && span.end <= points, "{span:?}");
            prop_assert!((pii::REPORTED_FROM..=1_000).contains(&span.confidence_permille));
            end = span.end;
        }
    }

    #[test]
    fn nothing_is_found_in_a_masked_text(text in text()) {
        let key = PseudonymKey::new([3; 32]);
        for style in [MaskStyle::Kind, MaskStyle::LastFour, MaskStyle::Pseudonym(&key), MaskStyle::Numbered] {
            let masked = mask(&text, style);
            prop_assert_eq!(pii::find(&masked.text), vec![], "{}", masked.text);
            prop_assert_eq!(&mask(&masked.text, style).text, &masked.text);
        }
    }

    #[test]
    fn what_was_masked_comes_back(text in text()) {
        let masked = mask(&text, MaskStyle::Numbered);
        prop_assert_eq!(masked.restore(&masked.text), text);
    }

    #[test]
    fn an_answer_in_pieces_is_restored_like_a_whole_one(
        text in text(),
        answer in prop::collection::vec(prop_oneof![
            Just("<EMAIL_ADDRESS_1>".to_owned()), Just("<CREDIT_CARD_1>".to_owned()), Just("<PHONE_NUMBER_2>".to_owned()),
            Just("<EMAIL_".to_owned()), Just("<".to_owned()), Just(">".to_owned()), "\\PC{0,4}",
        ], 0..12).prop_map(|pieces| pieces.concat()),
        width in 1usize..6,
    ) {
        let text = format!("me@example.org 4111 1111 1111 1111 +7 903 326-24-58 89033262459 {text}");
        let masked = mask(&text, MaskStyle::Numbered);
        let whole = masked.restore(&answer);
        let letters: Vec<char> = answer.chars().collect();
        let mut restorer = masked.replaced.restorer();
        let mut restored = String::new();
        for piece in letters.chunks(width) {
            restored.push_str(&restorer.push(&piece.iter().collect::<String>()));
        }
        restored.push_str(&restorer.finish());
        prop_assert_eq!(restored, whole);
    }
}
