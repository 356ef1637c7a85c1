//! Check digits. Every function takes what the pattern has found already: digits as values 0 to 9, letters
//! in upper case; what has the wrong length is wrong.

use sha2::{Digest, Sha256};

/// Sum of products.
fn weighted(digits: &[u8], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(digit, weight)| u32::from(*digit) * weight).sum()
}

/// ISO/IEC 7812, payment cards.
pub(super) fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| match u32::from(*digit) * (1 + place as u32 % 2) {
            double if double > 9 => double - 9,
            single => single,
        })
        .sum();
    sum.is_multiple_of(10) && digits.iter().any(|digit| *digit != 0)
}

/// ISO 7064 mod 97-10 over an IBAN as written: country, check digits, the rest, no separators.
pub(super) fn mod_97(iban: &[u8]) -> bool {
    let (head, rest) = iban.split_at(4.min(iban.len()));
    let remainder = rest.iter().chain(head).fold(0u32, |remainder, byte| match byte {
        b'0'..=b'9' => (remainder * 10 + u32::from(byte - b'0')) % 97,
        letter => (remainder * 100 + u32::from(letter.to_ascii_uppercase() - b'A') + 10) % 97,
    });
    remainder == 1
}

/// Russia's taxpayer number: 10 digits for companies, 12 for persons.
pub(super) fn inn(digits: &[u8]) -> bool {
    let check = |weights: &[u32], place: usize| {
        weighted(&digits[..place], weights) % 11 % 10 == u32::from(digits[place])
    };
    match digits.len() {
        10 => check(&[2, 4, 10, 3, 5, 9, 4, 6, 8], 9),
        12 => check(&[7, 2, 4, 10, 3, 5, 9, 4, 6, 8], 10) && check(&[3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8], 11),
        _ => false,
    }
}

/// Russia's pension insurance number, 11 digits.
pub(super) fn snils(digits: &[u8]) -> bool {
    digits.len() == 11
        && weighted(digits, &[9, 8, 7, 6, 5, 4, 3, 2, 1]) % 101 % 100
            == u32::from(digits[9]) * 10 + u32::from(digits[10])
}

/// Russia's company register: 13 digits (mod 11), sole traders 15 (mod 13).
pub(super) fn ogrn(digits: &[u8]) -> bool {
    let modulus = match digits.len() {
        13 => 11,
        15 => 13,
        _ => return false,
    };
    let (number, check) = digits.split_at(digits.len() - 1);
    let number = number.iter().fold(0u64, |number, digit| number * 10 + u64::from(*digit));
    number % modulus % 10 == u64::from(check[0])
}

/// The United Kingdom's National Health Service number, 10 digits.
pub(super) fn nhs(digits: &[u8]) -> bool {
    digits.len() == 10
        && (11 - weighted(digits, &[10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11) % 11 == u32::from(digits[9])
}

/// Poland's population register, 11 digits that begin with a date of birth.
pub(super) fn pesel(digits: &[u8]) -> bool {
    digits.len() == 11
        && weighted(digits, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1]).is_multiple_of(10)
        // The century is folded into the month: 1900s as they are, 2000s + 20, …
        && (1..=12).contains(&((digits[2] * 10 + digits[3]) % 20))
        && (1..=31).contains(&(digits[4] * 10 + digits[5]))
}

/// Australian business number, 11 digits.
pub(super) fn abn(digits: &[u8]) -> bool {
    digits.len() == 11
        && digits[0] > 0
        && (weighted(digits, &[10, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19]) - 10).is_multiple_of(89)
}

/// Australian company number, 9 digits.
pub(super) fn acn(digits: &[u8]) -> bool {
    digits.len() == 9 && (10 - weighted(digits, &[8, 7, 6, 5, 4, 3, 2, 1]) % 10) % 10 == u32::from(digits[8])
}

/// Australian tax file number, 8 or 9 digits.
pub(super) fn tfn(digits: &[u8]) -> bool {
    match digits.len() {
        8 => weighted(digits, &[10, 7, 8, 4, 6, 3, 5, 1]).is_multiple_of(11),
        9 => weighted(digits, &[1, 4, 3, 7, 5, 8, 6, 9, 10]).is_multiple_of(11),
        _ => false,
    }
}

/// Australian Medicare card, 10 digits and perhaps the person's number on the card.
pub(super) fn medicare(digits: &[u8]) -> bool {
    matches!(digits.len(), 10 | 11)
        && (2..=6).contains(&digits[0])
        && weighted(&digits[..8], &[1, 3, 7, 9, 1, 3, 7, 9]) % 10 == u32::from(digits[8])
}

/// Brazil's taxpayer number of persons, 11 digits.
pub(super) fn cpf(digits: &[u8]) -> bool {
    let check = |from: u32, place: usize| {
        let weights: Vec<u32> = (2..=from).rev().collect();
        weighted(&digits[..place], &weights) * 10 % 11 % 10 == u32::from(digits[place])
    };
    digits.len() == 11 && digits.iter().any(|digit| *digit != digits[0]) && check(10, 9) && check(11, 10)
}

/// India's Aadhaar, 12 digits; the check digit is Verhoeff's.
pub(super) fn aadhaar(digits: &[u8]) -> bool {
    digits.len() == 12 && digits[0] > 1 && verhoeff(digits)
}

/// Verhoeff's check over the dihedral group D5.
fn verhoeff(digits: &[u8]) -> bool {
    /// What a digit becomes at a place: this permutation applied as often as the place says.
    const PERMUTATION: [u8; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    let product = |a: u8, b: u8| match (a < 5, b < 5) {
        (true, true) => (a + b) % 5,
        (true, false) => (a + b - 5) % 5 + 5,
        (false, true) => (a - 5 + 5 - b) % 5 + 5,
        (false, false) => (a + 5 - b) % 5,
    };
    let check = digits.iter().rev().enumerate().fold(0, |check, (place, digit)| {
        let permuted = (0..place % 8).fold(*digit, |digit, _| PERMUTATION[usize::from(digit)]);
        product(check, permuted)
    });
    check == 0
}

/// Spain's identity number: 8 digits and a letter; for foreigners X, Y or Z in place of the first digit.
pub(super) fn nif(number: &[u8]) -> bool {
    let [first, middle @ .., letter] = number else { return false };
    let first = match first {
        b'X' => 0,
        b'Y' => 1,
        b'Z' => 2,
        digit @ b'0'..=b'9' => u32::from(digit - b'0'),
        _ => return false,
    };
    if middle.len() != 7 || !middle.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let number = middle.iter().fold(first, |number, digit| number * 10 + u32::from(digit - b'0'));
    b"TRWAGMYFPDXBNJZSQVHLCKE"[number as usize % 23] == *letter
}

/// Italy's codice fiscale, 16 letters and digits.
pub(super) fn fiscal_code(code: &[u8]) -> bool {
    /// Values of 0 to 9 and A to J at odd places, and of K to Z.
    const ODD: [u32; 26] =
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23];
    let rank = |byte: u8| match byte {
        b'0'..=b'9' => usize::from(byte - b'0'),
        _ => usize::from(byte - b'A'),
    };
    let Some((check, code)) = code.split_last().filter(|(_, code)| code.len() == 15) else { return false };
    let sum: u32 = code
        .iter()
        .enumerate()
        .map(|(place, byte)| if place % 2 == 0 { ODD[rank(*byte)] } else { rank(*byte) as u32 })
        .sum();
    u32::from(check.wrapping_sub(b'A')) == sum % 26
}

/// The United States' DEA number of prescribers: two letters, seven digits. Takes the digits.
pub(super) fn dea(digits: &[u8]) -> bool {
    digits.len() == 7 && weighted(digits, &[1, 2, 1, 2, 1, 2]) % 10 == u32::from(digits[6])
}

/// Singapore's unique entity number: businesses, local companies, other entities.
pub(super) fn uen(number: &[u8]) -> bool {
    let digits = |bytes: &[u8]| bytes.iter().map(|byte| byte.wrapping_sub(b'0')).collect::<Vec<_>>();
    let Some((check, body)) = number.split_last() else { return false };
    if body.iter().all(u8::is_ascii_digit) {
        return match body.len() {
            8 => b"XMKECAWLJDB"[weighted(&digits(body), &[10, 4, 9, 3, 8, 2, 7, 1]) as usize % 11] == *check,
            9 => {
                b"ZKCMDNERGWH"[weighted(&digits(body), &[10, 8, 6, 4, 9, 7, 5, 3, 1]) as usize % 11] == *check
            }
            _ => false,
        };
    }
    let [b'R' | b'S' | b'T', a, b, kind_1, kind_2, rest @ ..] = body else { return false };
    if rest.len() != 4
        || !(a.is_ascii_digit() && b.is_ascii_digit() && rest.iter().all(u8::is_ascii_digit))
        || !(kind_1.is_ascii_uppercase() && kind_2.is_ascii_alphanumeric())
    {
        return false;
    }
    const LETTERS: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWX0123456789";
    let ranks: Option<Vec<u8>> = body
        .iter()
        .map(|byte| LETTERS.iter().position(|letter| letter == byte).map(|rank| rank as u8))
        .collect();
    ranks.is_some_and(|ranks| {
        let sum = weighted(&ranks, &[4, 3, 5, 3, 10, 2, 2, 5, 7]) as usize;
        // 11 is added before 5 is taken so that small sums stay positive.
        LETTERS[(sum + 11 - 5) % 11] == *check
    })
}

const BASE58: &[u8] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Base58Check of a version byte, 20 bytes and 4 of a double SHA-256: addresses of Bitcoin and its kin.
pub(super) fn base58_address(text: &[u8]) -> bool {
    let mut bytes = [0u8; 25];
    for letter in text {
        let Some(mut carry) = BASE58.iter().position(|known| known == letter) else { return false };
        for byte in bytes.iter_mut().rev() {
            carry += usize::from(*byte) * 58;
            *byte = carry as u8;
            carry >>= 8;
        }
        if carry != 0 {
            return false;
        }
    }
    // Each leading zero byte is written as one `1`.
    let ones = text.iter().take_while(|letter| **letter == b'1').count();
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let (payload, check) = bytes.split_at(21);
    ones == zeros && Sha256::digest(Sha256::digest(payload))[..4] == *check
}

/// BIP 173 and 350: a segwit address, in one case.
pub(super) fn bech32_address(text: &str) -> bool {
    const LETTERS: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    if text.bytes().any(|byte| byte.is_ascii_uppercase())
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
    {
        return false;
    }
    let text = text.to_ascii_lowercase();
    let Some((prefix, data)) = text.rsplit_once('1').filter(|(_, data)| data.len() >= 14 && text.len() <= 90)
    else {
        return false;
    };
    let Some(values) = data.chars().map(|letter| LETTERS.find(letter)).collect::<Option<Vec<_>>>() else {
        return false;
    };
    let expanded = prefix
        .bytes()
        .map(|byte| usize::from(byte >> 5))
        .chain([0])
        .chain(prefix.bytes().map(|byte| usize::from(byte & 31)))
        .chain(values.iter().copied());
    let check = expanded.fold(1usize, |check, value| {
        let top = check >> 25;
        let shifted = ((check & 0x1ff_ffff) << 5) ^ value;
        [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3]
            .iter()
            .enumerate()
            .filter(|(bit, _)| top >> bit & 1 == 1)
            .fold(shifted, |check, (_, generator)| check ^ generator)
    });
    // Version 0 is Bech32, the later ones are Bech32m.
    check == if values[0] == 0 { 1 } else { 0x2bc8_30a3 }
}

/// TON's user-friendly address: 36 bytes in base64, the last two a CRC-16/XMODEM.
pub(super) fn ton_address(bytes: &[u8]) -> bool {
    if bytes.len() != 36 {
        return false;
    }
    let (payload, check) = bytes.split_at(34);
    let crc =
        payload.iter().fold(0u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            })
        });
    crc.to_be_bytes() == *check
}

/// EIP-55: a hexadecimal address whose letters are capitals where the hash of the address says so. Takes the
/// 40 digits. One in a single case carries no check.
pub(super) fn ethereum_case(address: &[u8]) -> bool {
    let hash = keccak_256(&address.to_ascii_lowercase());
    address.iter().enumerate().all(|(place, letter)| {
        let nibble = hash[place / 2] >> (4 * (1 - place % 2)) & 15;
        !letter.is_ascii_alphabetic() || letter.is_ascii_uppercase() == (nibble >= 8)
    })
}

/// Keccak-256 as Ethereum took it, before the padding of SHA-3, of less than one block (136 bytes).
fn keccak_256(short: &[u8]) -> [u8; 32] {
    debug_assert!(short.len() < 136);
    let mut block = [0u8; 200];
    block[..short.len()].copy_from_slice(short);
    block[short.len()] = 1;
    block[135] |= 0x80;
    let mut lanes = [0u64; 25];
    for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(8)) {
        *lane = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    }
    // The rounds' constants come from the shift register of the specification.
    let mut register = 1u8;
    for _ in 0..24 {
        let columns: [u64; 5] = std::array::from_fn(|x| (0..5).fold(0, |sum, y| sum ^ lanes[x + 5 * y]));
        for (place, lane) in lanes.iter_mut().enumerate() {
            let x = place % 5;
            *lane ^= columns[(x + 4) % 5] ^ columns[(x + 1) % 5].rotate_left(1);
        }
        let (mut x, mut y, mut moved) = (1, 0, lanes[1]);
        for step in 0..24u32 {
            (x, y) = (y, (2 * x + 3 * y) % 5);
            let place = x + 5 * y;
            (moved, lanes[place]) = (lanes[place], moved.rotate_left((step + 1) * (step + 2) / 2 % 64));
        }
        for row in lanes.chunks_exact_mut(5) {
            let before: [u64; 5] = std::array::from_fn(|x| row[x]);
            for (x, lane) in row.iter_mut().enumerate() {
                *lane = before[x] ^ (!before[(x + 1) % 5] & before[(x + 2) % 5]);
            }
        }
        for bit in 0..7 {
            if register & 1 == 1 {
                lanes[0] ^= 1 << ((1u32 << bit) - 1);
            }
            register = register << 1 ^ if register & 0x80 == 0 { 0 } else { 0x71 };
        }
    }
    let mut hash = [0u8; 32];
    for (bytes, lane) in hash.chunks_exact_mut(8).zip(lanes) {
        bytes.copy_from_slice(&lane.to_le_bytes());
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits(text: &str) -> Vec<u8> {
        text.bytes().filter(u8::is_ascii_digit).map(|byte| byte - b'0').collect()
    }

    type Check = fn(&[u8]) -> bool;

    #[test]
    fn published_numbers_pass_and_each_changed_digit_fails() {
        let numbers: [(Check, &str); 13] = [
            (luhn, "4111 1111 1111 1111"),
            (inn, "7707083893"),
            (inn, "500100732259"),
            (snils, "112-233-445 95"),
            (ogrn, "1027700132195"),
            (ogrn, "304500116000157"),
            (nhs, "943 476 5919"),
            (pesel, "44051401359"),
            (abn, "51 824 753 556"),
            (acn, "004 085 616"),
            (tfn, "123 456 782"),
            (cpf, "529.982.247-25"),
            (aadhaar, "2341 2341 2346"),
        ];
        for (check, number) in numbers {
            let right = digits(number);
            assert!(check(&right), "{number}");
            for place in 0..right.len() {
                let mut wrong = right.clone();
                wrong[place] = (wrong[place] + 1) % 10;
                assert!(!check(&wrong), "{number} with digit {place} changed");
            }
            assert!(!check(&right[1..]), "{number} without its first digit");
        }
    }

    #[test]
    fn medicare_and_dea_numbers_are_checked() {
        assert!(medicare(&digits("2123 45670 1")));
        assert!(!medicare(&digits("2123 45671 1")));
        assert!(dea(&digits("1234563")));
        assert!(!dea(&digits("1234564")));
    }

    #[test]
    fn numbers_with_letters_are_checked() {
        for (check, right, wrong) in [
            (nif as Check, "12345678Z", "12345678A"),
            (nif, "X1234567L", "Y1234567L"),
            (fiscal_code, "RSSMRA85T10A562S", "RSSMRA85T10A562T"),
            (mod_97, "GB82WEST12345698765432", "GB83WEST12345698765432"),
            (mod_97, "DE89370400440532013000", "DE89370400440532013001"),
            (uen, "00192200M", "00192201M"),
            (uen, "197401143C", "197401143D"),
            (uen, "S16FC0121D", "S16FC0122D"),
        ] {
            assert!(check(right.as_bytes()), "{right}");
            assert!(!check(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn wallet_addresses_are_checked() {
        assert!(base58_address(b"1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"));
        assert!(!base58_address(b"1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb"));
        assert!(base58_address(b"3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy"));
        assert!(!base58_address(b"11111111111111111111111111"));
        // Examples of BIP 173 and 350.
        assert!(bech32_address("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"));
        assert!(bech32_address("BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4"));
        assert!(bech32_address("bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0"));
        assert!(!bech32_address("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5"));
        assert!(!bech32_address("bc1Qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"));
        // Examples of EIP-55.
        assert!(ethereum_case(b"5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"));
        assert!(ethereum_case(b"fB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"));
        assert!(!ethereum_case(b"5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD"));
    }
}
