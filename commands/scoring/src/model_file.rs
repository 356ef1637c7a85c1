//! How trained models lie on disk: a magic word, the format's version, the kind, the content, a checksum.
//!
//! A file is only read whole and only when its checksum fits, so that a cut or damaged one is told from a
//! model before anything is made of it. Lengths are checked against the bytes that are left: no file makes
//! this process reserve more than a file's own size.

use sha2::{Digest, Sha256};

/// Version of the content of all kinds. Raise it when a feature, hash or field changes its meaning.
pub const FORMAT: u32 = 2;

/// Largest file that is read.
pub const LARGEST_FILE: usize = 512 << 20;

const MAGIC: &[u8; 8] = b"botlscor";

const CHECKSUM: usize = 32;

/// What a model tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Intent,
    Attack,
    Spam,
    Category,
    /// Models for several questions in one file: see [`bundle`].
    Several,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Intent, Self::Attack, Self::Spam, Self::Category, Self::Several];

    /// Its name on the command line and in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Attack => "attack",
            Self::Spam => "spam",
            Self::Category => "category",
            Self::Several => "several",
        }
    }
}

/// Why a file is no model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It begins with something else.
    #[error("this is not a model file")]
    Foreign,
    /// Written by a version of this program that stored models differently.
    #[error("the model file has format {found}, this program reads format {FORMAT}: train the model again")]
    OtherFormat { found: u32 },
    #[error("the model file is larger than any model")]
    TooLarge,
    /// Bytes are missing or changed.
    #[error("the model file is damaged: its checksum does not fit")]
    Checksum,
    /// It ends before its content does.
    #[error("the model file is cut short")]
    Short,
    /// Its checksum fits and its content does not: it was made by something else.
    #[error("the model file contradicts itself in {0}")]
    Inconsistent(&'static str),
    /// A sound file of several models, none of them for this question.
    #[error("the model file holds several models, none of kind {}", wanted.name())]
    Without { wanted: Kind },
    /// A sound model for another question.
    #[error("the model file holds a model of kind {}, not {}", found.name(), wanted.name())]
    OtherKind { found: Kind, wanted: Kind },
}

/// Puts a model's content together.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins a file of a kind.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        let mut writer = Self { bytes: MAGIC.to_vec() };
        writer.u32(FORMAT);
        writer.text(kind.name());
        writer
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub fn f32(&mut self, value: f32) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub fn f64(&mut self, value: f64) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// A length; more than `u32::MAX` of anything is more than [`LARGEST_FILE`].
    pub fn length(&mut self, length: usize) {
        self.u32(u32::try_from(length).expect("a model part has less than 2^32 entries"));
    }

    pub fn text(&mut self, text: &str) {
        self.length(text.len());
        self.bytes.extend(text.as_bytes());
    }

    pub fn u32s(&mut self, values: &[u32]) {
        self.length(values.len());
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub fn f32s(&mut self, values: &[f32]) {
        self.length(values.len());
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// The file's bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let checksum = Sha256::digest(&self.bytes);
        self.bytes.extend(checksum);
        self.bytes
    }
}

/// Takes a model's content apart.
#[derive(Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
    kind: Kind,
}

impl<'a> Reader<'a> {
    /// Checks a file's frame and gives its content.
    ///
    /// # Errors
    /// When it is no model file, of another format, too large or damaged.
    pub fn open(file: &'a [u8]) -> Result<Self, Damage> {
        if file.len() > LARGEST_FILE {
            return Err(Damage::TooLarge);
        }
        let after_magic = file.strip_prefix(MAGIC).ok_or(Damage::Foreign)?;
        let (format, _) = after_magic.split_first_chunk().ok_or(Damage::Short)?;
        let found = u32::from_le_bytes(*format);
        if found != FORMAT {
            return Err(Damage::OtherFormat { found });
        }
        let (content, checksum) = file.split_last_chunk::<CHECKSUM>().ok_or(Damage::Short)?;
        if Sha256::digest(content).as_slice() != checksum {
            return Err(Damage::Checksum);
        }
        let mut reader =
            Self { left: content.get(MAGIC.len() + 4..).ok_or(Damage::Short)?, kind: Kind::Intent };
        let name = reader.text()?;
        reader.kind =
            Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or(Damage::Inconsistent("its kind"))?;
        Ok(reader)
    }

    /// As [`Reader::open`], for one kind only.
    ///
    /// # Errors
    /// As [`Reader::open`], and when the model is of another kind.
    pub fn open_kind(file: &'a [u8], wanted: Kind) -> Result<Self, Damage> {
        let reader = Self::open(file)?;
        if reader.kind == wanted { Ok(reader) } else { Err(Damage::OtherKind { found: reader.kind, wanted }) }
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (taken, left) = self.left.split_first_chunk().ok_or(Damage::Short)?;
        self.left = left;
        Ok(*taken)
    }

    /// # Errors
    /// When the content ends here.
    pub fn u32(&mut self) -> Result<u32, Damage> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    /// A number; infinities and NaN are damage.
    ///
    /// # Errors
    /// When the content ends here or it is no number.
    pub fn f32(&mut self) -> Result<f32, Damage> {
        finite(f32::from_le_bytes(self.take()?))
    }

    /// As [`Reader::f32`].
    ///
    /// # Errors
    /// As [`Reader::f32`].
    pub fn f64(&mut self) -> Result<f64, Damage> {
        let value = f64::from_le_bytes(self.take()?);
        if value.is_finite() { Ok(value) } else { Err(Damage::Inconsistent("a number")) }
    }

    /// The number of parts that follow, each of at least `smallest` bytes (not zero).
    ///
    /// # Errors
    /// When fewer bytes are left than so many parts need.
    pub fn length(&mut self, smallest: usize) -> Result<usize, Damage> {
        let length = self.u32()? as usize;
        if length > self.left.len() / smallest.max(1) { Err(Damage::Short) } else { Ok(length) }
    }

    /// # Errors
    /// When the content ends before the text does or it is not UTF-8.
    pub fn text(&mut self) -> Result<String, Damage> {
        let length = self.length(1)?;
        let (text, left) = self.left.split_at(length);
        self.left = left;
        String::from_utf8(text.to_vec()).map_err(|_| Damage::Inconsistent("a text"))
    }

    /// # Errors
    /// When the content ends before the list does.
    pub fn u32s(&mut self) -> Result<Vec<u32>, Damage> {
        (0..self.length(4)?).map(|_| self.u32()).collect()
    }

    /// # Errors
    /// When the content ends before the list does or holds what is no number.
    pub fn f32s(&mut self) -> Result<Vec<f32>, Damage> {
        (0..self.length(4)?).map(|_| self.f32()).collect()
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// When something is.
    pub fn finish(self) -> Result<(), Damage> {
        if self.left.is_empty() { Ok(()) } else { Err(Damage::Inconsistent("its length")) }
    }
}

/// Several model files as one; [`part`] finds the one for a question.
#[must_use]
pub fn bundle(files: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = Writer::new(Kind::Several);
    writer.length(files.len());
    for file in files {
        writer.length(file.len());
        writer.bytes.extend(file);
    }
    writer.finish()
}

/// The model file for a question: `file` itself, or the part of a [`bundle`] that answers it.
///
/// # Errors
/// When the file is none, is damaged, or holds no such model.
pub fn part(file: &[u8], wanted: Kind) -> Result<&[u8], Damage> {
    let mut reader = Reader::open(file)?;
    if reader.kind() != Kind::Several {
        return if reader.kind() == wanted {
            Ok(file)
        } else {
            Err(Damage::OtherKind { found: reader.kind(), wanted })
        };
    }
    let mut found = None;
    for _ in 0..reader.length(4)? {
        let length = reader.length(1)?;
        let (inner, left) = reader.left.split_at(length);
        reader.left = left;
        if Reader::open(inner)?.kind() == wanted {
            found = Some(inner);
        }
    }
    reader.finish()?;
    found.ok_or(Damage::Without { wanted })
}

fn finite(value: f32) -> Result<f32, Damage> {
    if value.is_finite() { Ok(value) } else { Err(Damage::Inconsistent("a number")) }
}
