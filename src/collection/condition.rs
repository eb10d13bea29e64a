//! Which files a search may return by their attributes: tests of single attributes, joined by and, or, not.
//!
//! A condition is its tests and joins one after the other, each join behind what it joins, so that nothing here
//! recurses: neither evaluating, nor comparing, nor dropping. The parser of the language is `search::condition`;
//! [`Display`](std::fmt::Display) writes what it reads.
//!
//! A test is true or false, never unknown: without the attribute every test is false.

use std::cmp::Ordering;
use std::fmt::{self, Write as _};

use super::attributes::{Attributes, VALUE_SEEN};

/// What a name may have in front and does not count.
const PREFIX: &[u8] = b"user.";

/// Most tests of one condition: a bit is kept for each.
pub const TESTS_MAX: usize = 64;

/// What a file must be like.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    steps: Box<[Step]>,
}

/// A part of a condition.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A test of one attribute.
    Test(Test),
    /// What came last does not hold.
    Not,
    /// The last two hold.
    And,
    /// One of the last two holds.
    Or,
}

/// A test of one attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// Name of the attribute, without `user.`.
    pub name: Box<[u8]>,
    /// What it must be.
    pub is: Is,
}

/// What an attribute must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Is {
    /// There.
    Present,
    /// The same.
    Equal(Literal),
    /// Less.
    Less(Literal),
    /// Less or the same.
    AtMost(Literal),
    /// More.
    More(Literal),
    /// More or the same.
    AtLeast(Literal),
    /// The same as one of several.
    OneOf(Set),
    /// Of this form.
    Like(Glob),
}

/// A value to compare with.
#[derive(Clone, Debug, PartialEq)]
pub struct Literal {
    bytes: Box<[u8]>,
    number: Option<Number>,
}

/// Values of which one is to be met.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// In order, each once.
    values: Box<[Literal]>,
}

/// A pattern: `*` stands for any bytes, `?` for one character, and both for themselves behind `\`, as it does.
#[derive(Clone, Debug, PartialEq)]
pub struct Glob {
    pieces: Box<[Piece]>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Piece {
    Byte(u8),
    Character,
    Any,
}

/// A number as it is written: whole ones are compared exactly, others as `f64`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Whole(i128),
    Real(f64),
}

impl Condition {
    /// A condition of these steps. `None` unless each join has what it joins, nothing is left over, and there are at
    /// most [`TESTS_MAX`] tests.
    #[must_use]
    pub fn new(steps: Vec<Step>) -> Option<Self> {
        let (mut depth, mut tests) = (0usize, 0);
        for step in &steps {
            depth = match step {
                Step::Test(_) => {
                    tests += 1;
                    depth + 1
                }
                Step::Not => (depth >= 1).then_some(depth)?,
                Step::And | Step::Or => (depth >= 2).then(|| depth - 1)?,
            };
        }
        (depth == 1 && tests <= TESTS_MAX).then(|| Self { steps: steps.into() })
    }

    /// Whether a file with these attributes is meant.
    #[must_use]
    pub fn holds(&self, attributes: &Attributes) -> bool {
        // What came last is the lowest bit.
        let mut values = 0u64;
        for step in &self.steps {
            let last = values & 1;
            values = match step {
                Step::Test(test) => values << 1 | u64::from(test.holds(attributes)),
                Step::Not => values ^ 1,
                Step::And => values >> 1 & (!1 | last),
                Step::Or => values >> 1 | last,
            };
        }
        values & 1 == 1
    }
}

impl Test {
    fn holds(&self, attributes: &Attributes) -> bool {
        let Some(value) = attributes.get(&self.name) else { return false };
        match &self.is {
            Is::Present => true,
            Is::Equal(than) => than.order(value) == Ordering::Equal,
            Is::Less(than) => than.order(value) == Ordering::Less,
            Is::AtMost(than) => than.order(value) != Ordering::Greater,
            Is::More(than) => than.order(value) == Ordering::Greater,
            Is::AtLeast(than) => than.order(value) != Ordering::Less,
            Is::OneOf(set) => set.contains(value),
            Is::Like(glob) => glob.matches(value),
        }
    }
}

impl Literal {
    /// A value that was written as a plain word: a number, where it is one.
    #[must_use]
    pub fn word(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), number: Number::parse(bytes) }
    }

    /// A value that is text whatever it looks like.
    #[must_use]
    pub fn text(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), number: None }
    }

    /// How an attribute's value compares with it: as numbers where both are, else byte by byte.
    fn order(&self, value: &[u8]) -> Ordering {
        match self.number.and_then(|number| Some((Number::parse(value)?, number))) {
            Some((value, number)) => value.order(number),
            None => value.cmp(&self.bytes),
        }
    }
}

impl Set {
    /// These values.
    #[must_use]
    pub fn new(mut values: Vec<Literal>) -> Self {
        values
            .sort_unstable_by(|a, b| a.bytes.cmp(&b.bytes).then(a.number.is_some().cmp(&b.number.is_some())));
        values.dedup();
        Self { values: values.into() }
    }

    fn contains(&self, value: &[u8]) -> bool {
        // The same bytes are the same number as well.
        if self.values.binary_search_by(|literal| (*literal.bytes).cmp(value)).is_ok() {
            return true;
        }
        let Some(value) = Number::parse(value) else { return false };
        let mut numbers = self.values.iter().filter_map(|literal| literal.number);
        numbers.any(|number| value.order(number) == Ordering::Equal)
    }
}

impl Number {
    /// A decimal number: a sign, digits, a point, an exponent, and nothing else.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let is_of_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        if bytes.len() > VALUE_SEEN || !bytes.iter().all(is_of_number) {
            return None;
        }
        let text = std::str::from_utf8(bytes).ok()?;
        if let Ok(whole) = text.parse() {
            return Some(Number::Whole(whole));
        }
        text.parse().ok().filter(|real: &f64| real.is_finite()).map(Number::Real)
    }

    fn order(self, other: Self) -> Ordering {
        #[expect(clippy::cast_precision_loss, reason = "compared with a number that was rounded likewise")]
        let real = |number| match number {
            Number::Whole(whole) => whole as f64,
            Number::Real(real) => real,
        };
        match (self, other) {
            (Number::Whole(a), Number::Whole(b)) => a.cmp(&b),
            (a, b) => real(a).partial_cmp(&real(b)).expect("they are finite"),
        }
    }
}

impl Glob {
    /// The pattern that is written so.
    #[must_use]
    pub fn new(pattern: &[u8]) -> Self {
        let mut pieces = Vec::new();
        let mut rest = pattern;
        while let [first, after @ ..] = rest {
            rest = after;
            pieces.push(match (first, after) {
                (b'\\', [special @ (b'*' | b'?' | b'\\'), ..]) => {
                    rest = &after[1..];
                    Piece::Byte(*special)
                }
                (b'*', _) if pieces.last() == Some(&Piece::Any) => continue,
                (b'*', _) => Piece::Any,
                (b'?', _) => Piece::Character,
                (byte, _) => Piece::Byte(*byte),
            });
        }
        Self { pieces: pieces.into() }
    }

    /// Whether the whole value is of this form. Of one that was cut off only its beginning can be.
    fn matches(&self, value: &[u8]) -> bool {
        if value.len() > VALUE_SEEN && self.pieces.last() != Some(&Piece::Any) {
            return false;
        }
        let (mut at, mut piece) = (0, 0);
        // The last `*`, and where what follows it is tried next.
        let mut star = None;
        loop {
            match self.pieces.get(piece) {
                Some(Piece::Any) => {
                    piece += 1;
                    star = Some((at, piece));
                    continue;
                }
                Some(Piece::Byte(byte)) if value.get(at) == Some(byte) => {
                    (at, piece) = (at + 1, piece + 1);
                    continue;
                }
                Some(Piece::Character) if at < value.len() => {
                    let more = value[at + 1..].iter().take(3).take_while(|&&byte| byte & 0xc0 == 0x80);
                    // A byte that begins no longer character is one by itself.
                    let more = if matches!(value[at], 0xc2..=0xf4) { more.count() } else { 0 };
                    (at, piece) = (at + 1 + more, piece + 1);
                    continue;
                }
                None if at == value.len() => return true,
                _ => {}
            }
            match star {
                Some((from, behind)) if from < value.len() => {
                    (at, piece) = (from + 1, behind);
                    star = Some((from + 1, behind));
                }
                _ => return false,
            }
        }
    }

    fn pattern(&self) -> Vec<u8> {
        let mut pattern = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Any => pattern.push(b'*'),
                Piece::Character => pattern.push(b'?'),
                Piece::Byte(byte) => {
                    if b"*?\\".contains(byte) {
                        pattern.push(b'\\');
                    }
                    pattern.push(*byte);
                }
            }
        }
        pattern
    }
}

impl fmt::Display for Condition {
    /// In one spelling: no parentheses that can be left out, so that it is nowhere deeper than what was read; names and
    /// texts in quotes, numbers without.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<Part> = Vec::new();
        for step in &self.steps {
            let last = parts.pop();
            let part = match (step, last) {
                (Step::Test(test), last) => {
                    parts.extend(last);
                    Part { text: test.to_string(), binds: Binds::Alone }
                }
                (Step::Not, Some(last)) => {
                    Part { text: format!("!{}", last.within(Binds::Alone)), binds: Binds::Alone }
                }
                (Step::And, Some(last)) => {
                    let first = parts.pop().ok_or(fmt::Error)?.within(Binds::And);
                    Part { text: format!("{first}&{}", last.within(Binds::Alone)), binds: Binds::And }
                }
                (Step::Or, Some(last)) => {
                    let first = parts.pop().ok_or(fmt::Error)?.within(Binds::Or);
                    Part { text: format!("{first}|{}", last.within(Binds::And)), binds: Binds::Or }
                }
                (_, None) => return Err(fmt::Error),
            };
            parts.push(part);
        }
        f.write_str(&parts.last().ok_or(fmt::Error)?.text)
    }
}

/// A part of a condition as it is shown.
struct Part {
    text: String,
    binds: Binds,
}

/// What holds a part together, the firmest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binds {
    Alone,
    And,
    Or,
}

impl Part {
    /// Where nothing looser than `binds` can be without parentheses.
    fn within(self, binds: Binds) -> String {
        if self.binds > binds { format!("({})", self.text) } else { self.text }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In front of another it is a part of the name.
        let prefix = if self.name.starts_with(PREFIX) { PREFIX } else { b"" };
        quote(f, &[prefix, &self.name].concat())?;
        let (sign, literal) = match &self.is {
            Is::Present => return Ok(()),
            Is::Equal(literal) => ("=", literal),
            Is::Less(literal) => ("<", literal),
            Is::AtMost(literal) => ("<=", literal),
            Is::More(literal) => (">", literal),
            Is::AtLeast(literal) => (">=", literal),
            Is::OneOf(set) => {
                f.write_str(" in (")?;
                for (at, literal) in set.values.iter().enumerate() {
                    f.write_str(if at > 0 { "," } else { "" })?;
                    literal.fmt(f)?;
                }
                return f.write_char(')');
            }
            Is::Like(glob) => {
                f.write_char('~')?;
                return quote(f, &glob.pattern());
            }
        };
        f.write_str(sign)?;
        literal.fmt(f)
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number.and_then(|_| std::str::from_utf8(&self.bytes).ok()) {
            Some(number) => f.write_str(number),
            None => quote(f, &self.bytes),
        }
    }
}

/// Writes bytes in quotes, those that are no plain letter escaped.
fn quote(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    f.write_char('"')?;
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => write!(f, "\\{}", char::from(byte))?,
            b' '..=b'~' if byte != b'/' => f.write_char(char::from(byte))?,
            _ => write!(f, "\\x{byte:02x}")?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn holds(is: Is, value: &[u8]) -> bool {
        let attributes = Attributes::new([(&b"a"[..], value)], &Arc::default()).unwrap();
        Condition::new(vec![Step::Test(Test { name: (*b"a").into(), is })]).unwrap().holds(&attributes)
    }

    fn like(pattern: &str, value: &str) -> bool {
        holds(Is::Like(Glob::new(pattern.as_bytes())), value.as_bytes())
    }

    #[test]
    fn numbers_are_compared_as_numbers_where_both_sides_are() {
        let word = |text: &str| Literal::word(text.as_bytes());
        for (value, order, literal) in [
            ("9", Ordering::Less, "10"),
            ("1.0", Ordering::Equal, "1"),
            ("-2", Ordering::Less, "-1.5"),
            ("1e3", Ordering::Equal, "1000"),
            (".5", Ordering::Equal, "0.5"),
            ("9007199254740993", Ordering::Greater, "9007199254740992"),
            ("2024-01-15", Ordering::Greater, "2024"),
            ("nan", Ordering::Greater, "1"),
            ("1e999", Ordering::Less, "2"),
            ("10 ", Ordering::Less, "9"),
            ("", Ordering::Less, "0"),
        ] {
            assert_eq!(word(literal).order(value.as_bytes()), order, "{value} {literal}");
        }
        // In quotes it is text.
        assert_eq!(Literal::text(b"10").order(b"9"), Ordering::Greater);
        assert_eq!(Literal::text(b"1").order(b"1.0"), Ordering::Greater);
    }

    #[test]
    fn a_set_has_the_texts_and_numbers_that_it_was_given() {
        let set = |words: &[&str]| {
            Is::OneOf(Set::new(words.iter().map(|word| Literal::word(word.as_bytes())).collect()))
        };
        assert!(holds(set(&["en", "de", "7"]), b"de") && holds(set(&["en", "de", "7"]), b"7.0"));
        assert!(!holds(set(&["en", "de", "7"]), b"d") && !holds(set(&["en"]), b""));
        assert!(!holds(Is::OneOf(Set::new(vec![Literal::text(b"7")])), b"7.0"));
        assert_eq!(set(&["b", "a", "b"]), set(&["a", "b"]));
    }

    #[test]
    fn a_pattern_matches_the_whole_value() {
        for (pattern, yes, no) in [
            ("", &[""][..], &["a"][..]),
            ("*", &["", "a", "a/b"], &[]),
            ("ab*", &["ab", "abc"], &["a", "xab"]),
            ("*ab", &["ab", "xab", "abab"], &["abx"]),
            ("a*b*c", &["abc", "aXbYc", "abcbc"], &["ab", "acb", "abcx"]),
            ("a?c", &["abc", "aéc", "a€c", "a😀c"], &["ac", "abbc"]),
            ("??", &["éa", "éé"], &["é", "aéa"]),
            (r"100\*", &["100*"], &["1000", r"100\"]),
            (r"a\\b\?\x", &[r"a\b?\x"], &[r"a\\b?x"]),
        ] {
            assert!(yes.iter().all(|value| like(pattern, value)), "{pattern}");
            assert!(!no.iter().any(|value| like(pattern, value)), "{pattern}");
        }
        assert!(holds(Is::Like(Glob::new(b"?\x80?")), b"\xff\x80\x80") && like("**a**", "xax"));
    }

    #[test]
    fn of_a_long_value_the_beginning_counts() {
        let value = vec![b'x'; 5000];
        let literal = || Literal::text(&value[..VALUE_SEEN]);
        assert!(!holds(Is::Equal(literal()), &value) && holds(Is::More(literal()), &value));
        assert!(holds(Is::Equal(literal()), &value[..VALUE_SEEN]));
        let glob = |pattern: &[u8]| holds(Is::Like(Glob::new(pattern)), &value);
        assert!(glob(b"xx*") && glob(b"*x*") && !glob(b"*x") && !glob(b"*y*"));
        assert!(!holds(Is::AtLeast(Literal::word(b"1")), &[b'0'; 3000]));
    }

    #[test]
    fn steps_that_are_no_condition_are_refused() {
        let test = || Step::Test(Test { name: (*b"a").into(), is: Is::Present });
        for steps in [vec![], vec![Step::Not], vec![test(), Step::And], vec![test(), test()]] {
            assert!(Condition::new(steps).is_none());
        }
        let or = |tests: usize| {
            let mut steps: Vec<Step> = (0..tests).map(|_| test()).collect();
            steps.extend((1..tests).map(|_| Step::Or));
            Condition::new(steps)
        };
        assert!(
            or(TESTS_MAX).unwrap().holds(&Attributes::new([(&b"a"[..], &b""[..])], &Arc::default()).unwrap())
        );
        assert!(!or(TESTS_MAX).unwrap().holds(&Attributes::none()) && or(TESTS_MAX + 1).is_none());
    }
}
