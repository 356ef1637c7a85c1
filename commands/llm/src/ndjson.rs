//! Ollama's stream, decoded from bytes: a line is parsed only when it is whole, so a letter split
//! between two packets arrives whole, and every metric may be absent (Ollama leaves out zeros).

use bytes::BytesMut;
use serde::Deserialize;

use crate::LlmError;

/// One line of `/api/chat`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Line {
    #[serde(default)]
    pub(crate) message: Option<LineMessage>,
    #[serde(default)]
    pub(crate) done: bool,
    #[serde(default)]
    pub(crate) done_reason: Option<String>,
    #[serde(default)]
    pub(crate) prompt_eval_count: Option<u64>,
    #[serde(default)]
    pub(crate) eval_count: Option<u64>,
    #[serde(default)]
    pub(crate) error: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct LineMessage {
    #[serde(default)]
    pub(crate) content: String,
}

/// Longest line taken; a longer one is no chat line.
const MAX_LINE: usize = 1 << 20;

/// Collects bytes into lines.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes a packet and gives the lines that became whole.
    pub(crate) fn push(&mut self, packet: &[u8]) -> Result<Vec<Line>, LlmError> {
        self.buffer.extend_from_slice(packet);
        let mut lines = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(end + 1);
            lines.extend(parse(&line)?);
        }
        if self.buffer.len() > MAX_LINE {
            return Err(LlmError::Malformed);
        }
        Ok(lines)
    }

    /// The last line, when the sender did not end it.
    pub(crate) fn finish(&mut self) -> Result<Option<Line>, LlmError> {
        parse(&self.buffer.split())
    }
}

fn parse(line: &[u8]) -> Result<Option<Line>, LlmError> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(line).map(Some).map_err(|_| LlmError::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(lines: Vec<Line>) -> Vec<String> {
        lines.into_iter().map(|line| line.message.unwrap_or_default().content).collect()
    }

    const STREAM: &str = "{\"message\":{\"role\":\"assistant\",\"content\":\"При\"},\"done\":false}\n\
        {\"message\":{\"role\":\"assistant\",\"content\":\"вет 👋\"},\"done\":false}\n\
        {\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"eval_count\":3}\n";

    proptest! {
        #[test]
        fn any_cutting_of_the_bytes_gives_the_same_lines(cuts in prop::collection::vec(0usize..STREAM.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut decoder = Decoder::default();
            let mut lines = Vec::new();
            for window in cuts.windows(2) {
                lines.extend(decoder.push(&STREAM.as_bytes()[window[0]..window[1]]).expect("valid"));
            }
            prop_assert!(decoder.finish().expect("nothing left").is_none());
            prop_assert_eq!(texts(lines), vec!["При", "вет 👋", ""]);
        }
    }

    #[test]
    fn a_last_line_without_end_is_read_and_noise_is_refused() {
        let mut decoder = Decoder::default();
        assert!(decoder.push(b"{\"done\":true}").expect("no line yet").is_empty());
        assert!(decoder.finish().expect("valid").expect("a line").done);
        assert_eq!(decoder.push(b"<html>\n").expect_err("no JSON"), LlmError::Malformed);
    }
}
