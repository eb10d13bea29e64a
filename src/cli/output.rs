//! Writing to stdout and showing names to people.

use std::fmt::Write as _;
use std::io::{self, Write};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(shown("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(shown("naïve 文.npy"), "naïve 文.npy");
    }
}
