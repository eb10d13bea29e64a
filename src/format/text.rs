//! `.vec`: one vector as text.

use std::str::FromStr;

use super::{Limits, shown};
use crate::{Error, Result};

/// Most bytes that a number and what separates it from the next may have on average. The longest decimal of an f64 has a
/// third of it.
const BYTES_OF_A_NUMBER: u64 = 1024;

/// Checks the length of a text before it is read: how long one vector's may be follows from the limit of its elements.
///
/// # Errors
///
/// [`Error::TooLarge`].
pub fn check_text_len(len_bytes: u64, limits: &Limits) -> Result<()> {
    let limit = u64::from(limits.max_dim) * BYTES_OF_A_NUMBER;
    if len_bytes > limit {
        return Err(Error::TooLarge { what: "text of bytes", got: len_bytes, limit });
    }
    Ok(())
}

/// Parses one vector of text numbers.
///
/// Numbers are decimal (`1`, `-1.5`, `1e-3`, `.5`) and separated by white space, by a comma, or both; square
/// brackets may surround them, and a byte order mark may come first. `nan`, `inf` and numbers beyond the range of f32 are parsed as what they are, for
/// [`check_vector`](super::check_vector) to refuse with their column.
///
/// # Errors
///
/// [`Error::Format`] naming the first text that is no number, a missing value, a bracket without its partner,
/// or an empty file. [`Error::TooLarge`] as [`check_text_len`], and at the first number above the limit, which is where
/// parsing ends.
pub fn parse_text(bytes: &[u8], limits: &Limits) -> Result<Vec<f32>> {
    parse_numbers(bytes, limits)
}

/// As [`parse_text`], with values of another type: f64 for those that f32 does not have.
///
/// # Errors
///
/// As [`parse_text`].
pub fn parse_numbers<T: FromStr>(bytes: &[u8], limits: &Limits) -> Result<Vec<T>> {
    check_text_len(bytes.len() as u64, limits)?;
    let trimmed = without_mark(bytes).trim_ascii();
    let list = match (trimmed.strip_prefix(b"["), trimmed.strip_suffix(b"]")) {
        (Some(open), Some(_)) => open.strip_suffix(b"]"),
        (None, None) => Some(trimmed),
        (Some(_), None) | (None, Some(_)) => None,
    };
    let Some(list) = list else {
        return Err(Error::Format("'[' and ']' do not surround the values".into()));
    };
    if list.trim_ascii().is_empty() {
        return Err(Error::Format("no values".into()));
    }

    let mut values = Vec::new();
    for field in list.split(|&byte| byte == b',') {
        let mut is_empty = true;
        for token in field.split(u8::is_ascii_whitespace).filter(|token| !token.is_empty()) {
            is_empty = false;
            let ordinal = values.len() as u64 + 1;
            if ordinal > u64::from(limits.max_dim) {
                let limit = limits.max_dim.into();
                return Err(Error::TooLarge { what: "dimension", got: ordinal, limit });
            }
            values.push(number(token).ok_or_else(|| {
                Error::Format(format!("value {ordinal}: '{}' is not a number", shown(token)))
            })?);
        }
        if is_empty {
            return Err(Error::Format(format!("value {}: nothing beside a comma", values.len() + 1)));
        }
    }
    Ok(values)
}

/// Text without the UTF-8 byte order mark that it may begin with.
#[must_use]
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

fn number<T: FromStr>(token: &[u8]) -> Option<T> {
    str::from_utf8(token).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<f32>> {
        parse_text(text.as_bytes(), &Limits::default())
    }

    #[test]
    fn numbers_are_separated_by_commas_or_white_space_or_both() {
        for text in [
            "1 -1.5 1e-3 .5",
            "1,-1.5,1e-3,.5",
            "1 , -1.5,\t1e-3\r\n.5\n",
            "[1, -1.5, 1e-3, 0.5]\n",
            " [ 1.\n -1.5 +1E-3 .5 ] ",
            "1\n-1.5\n0.001\n5e-1\n",
            "\u{feff}1 -1.5 1e-3 .5",
            "\u{feff}[1, -1.5, 1e-3, .5]",
        ] {
            assert_eq!(parsed(text).unwrap(), [1.0, -1.5, 0.001, 0.5], "{text:?}");
        }
        assert_eq!(parsed("7").unwrap(), [7.0]);
    }

    #[test]
    fn values_that_are_not_finite_are_left_to_validation() {
        let values = parsed("nan inf -inf 1e39 NaN Infinity").unwrap();
        assert!(values[0].is_nan() && values[4].is_nan());
        assert_eq!(values[1..4], [f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY]);
        assert_eq!(values[5], f32::INFINITY);
    }

    #[test]
    fn what_is_not_a_number_is_named_with_its_place() {
        for (text, message) in [
            ("", "no values"),
            (" \n\t", "no values"),
            ("[]", "no values"),
            ("[ ]\n", "no values"),
            ("1 2 x 4", "value 3: 'x' is not a number"),
            ("1;2", "value 1: '1;2' is not a number"),
            ("0x10", "value 1: '0x10' is not a number"),
            ("1_000", "value 1: '1_000' is not a number"),
            ("1 . 2", "value 2: '.' is not a number"),
            ("1 - 2", "value 2: '-' is not a number"),
            ("1 e5", "value 2: 'e5' is not a number"),
            ("\u{fffd}", "value 1: '\\xef\\xbf\\xbd' is not a number"),
            ("1\0", "value 1: '1\\x00' is not a number"),
            ("1,,2", "value 2: nothing beside a comma"),
            (",1", "value 1: nothing beside a comma"),
            ("1,2,\n", "value 3: nothing beside a comma"),
            (",", "value 1: nothing beside a comma"),
            ("[1,2", "'[' and ']' do not surround the values"),
            ("1,2]", "'[' and ']' do not surround the values"),
            ("[", "'[' and ']' do not surround the values"),
            ("]", "'[' and ']' do not surround the values"),
            ("[[1,2]]", "value 1: '[1' is not a number"),
            ("[1] [2]", "value 1: '1]' is not a number"),
        ] {
            assert_eq!(parsed(text).unwrap_err().to_string(), message, "{text:?}");
        }
        assert!(parse_text(&[0xff, b'1'], &Limits::default()).is_err());
    }

    #[test]
    fn a_long_token_is_shortened_in_the_message() {
        let error = parsed(&"z".repeat(1 << 20)).unwrap_err().to_string();
        assert_eq!(error, format!("value 1: '{}...' is not a number", "z".repeat(40)));
        assert!(parsed(&"z".repeat(40)).unwrap_err().to_string().contains("zz' is"));
    }

    #[test]
    fn a_text_that_is_longer_than_its_numbers_can_be_is_not_read() {
        let limits = Limits { max_dim: 2, ..Limits::default() };
        let padded = |len: usize| format!("{:len$}", "1 2");
        assert_eq!(parse_text(padded(2048).as_bytes(), &limits).unwrap(), [1.0, 2.0]);
        let error = parse_text(padded(2049).as_bytes(), &limits).unwrap_err();
        assert_eq!(error.to_string(), "text of bytes 2049, the limit is 2048");
        let longest = format!("{}", -f64::from_bits(1));
        assert!((longest.len() as u64) < BYTES_OF_A_NUMBER / 3 + 1, "{}", longest.len());
    }

    #[test]
    fn parsing_ends_at_the_limit() {
        let limits = Limits { max_dim: 3, ..Limits::default() };
        assert_eq!(parse_text(b"1 2 3", &limits).unwrap().len(), 3);
        let error = parse_text(b"1 2 3 4 x", &limits).unwrap_err();
        assert_eq!(error.to_string(), "dimension 4, the limit is 3");
    }
}
