//! What a person sees while a command works: one line per step on stderr, results on stdout.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Prints steps with the seconds since the command began.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    began: Instant,
    quiet: bool,
}

impl Progress {
    /// Starts the clock.
    pub fn begin() -> Self {
        Self { began: Instant::now(), quiet: false }
    }

    /// Says nothing; for tests and `--json`.
    pub fn silent() -> Self {
        Self { began: Instant::now(), quiet: true }
    }

    /// One finished or beginning step.
    pub fn step(&self, text: impl AsRef<str>) {
        if !self.quiet {
            let seconds = self.began.elapsed().as_secs_f32();
            drop(writeln!(std::io::stderr(), "[{seconds:6.1} s] {}", text.as_ref()));
        }
    }

    /// Seconds since the command began.
    pub fn seconds(&self) -> f32 {
        self.began.elapsed().as_secs_f32()
    }
}

/// Writes a result line to stdout; a closed pipe is not an error.
pub fn say(text: impl AsRef<str>) {
    drop(writeln!(std::io::stdout(), "{}", text.as_ref()));
}

/// Asks a yes-or-no question on the terminal; `None` when there is no terminal to ask on.
pub fn ask(question: &str) -> Option<bool> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return None;
    }
    drop(write!(std::io::stderr(), "{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).ok()?;
    Some(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// A frame around labelled lines, as wide as the widest of them.
pub fn framed(title: &str, rows: &[(String, String)]) -> String {
    let label_width = rows.iter().map(|(label, _)| width(label)).max().unwrap_or(0);
    let lines: Vec<String> = rows
        .iter()
        .map(|(label, value)| {
            let padding = " ".repeat(label_width - width(label));
            format!("{label}{padding}  {value}")
        })
        .collect();
    let inner = lines.iter().map(|line| width(line)).chain([width(title) + 1]).max().unwrap_or(0);
    let mut text = format!("┌─ {title} {}┐\n", "─".repeat(inner - width(title) - 1));
    for line in &lines {
        text.push_str(&format!("│ {line}{} │\n", " ".repeat(inner - width(line))));
    }
    text.push_str(&format!("└{}┘", "─".repeat(inner + 2)));
    text
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_a_rectangle() {
        let rows = vec![("a".to_owned(), "1".to_owned()), ("longer".to_owned(), "some value".to_owned())];
        for title in ["t", "a title that is wider than every row of the box"] {
            let text = framed(title, &rows);
            let widths: Vec<usize> = text.lines().map(width).collect();
            assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        }
    }
}
