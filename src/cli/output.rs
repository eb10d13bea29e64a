//! Writing to stdout, showing names to people, and how far something has come.

use std::fmt::Write as _;
use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};

use super::exit::{Code, Failure};

/// Writes data to stdout. A reader that has seen enough, such as `head`, is no failure.
pub(super) fn put(data: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::FAILED, format!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// A name as a terminal may show it: a control character would act there instead.
pub(super) fn shown(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_control() {
            // Writing to a string does not fail.
            let _ = write!(plain, "{}", character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// A progress bar on stderr, which shows nothing where that is no terminal.
pub(super) fn bar(what: &'static str, steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>8} {wide_bar} {pos}/{len} {elapsed}")
        .expect("the template is a constant, and a test draws with it");
    ProgressBar::new(steps).with_style(style).with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(shown("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(shown("naïve 文.npy"), "naïve 文.npy");
    }

    #[test]
    fn the_bar_has_a_valid_template() {
        assert_eq!(bar("build", 7).length(), Some(7));
    }
}
