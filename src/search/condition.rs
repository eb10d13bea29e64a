//! The language of `where`: from text to a [`Condition`].
//!
//! ```text
//! condition  one | condition (and|&) condition | condition (or| |) condition      and binds closer than or
//! one        test | (not|!) one | ( condition )
//! test       name | name = value | != < <= > >= | name ~ pattern | name [not] in ( value, ... )
//! name       a word, or in quotes; with or without `user.` in front
//! value      a word, which is a number where it looks like one, or in quotes, which is text
//! ```
//!
//! A word ends before white space and any of `( ) & | ! < > = ~ , " '`. Quotes are double or single; in them `\` stands
//! before a quote or itself, and `\x2f` is the byte of that number. In a path element the first comma outside of quotes
//! and parentheses ends the condition.
//!
//! What waits for its right side is in a list, not on the stack: conditions come in deep in operations.

use crate::collection::{Condition, Glob, Is, Literal, Set, Step, TESTS_MAX, Test, VALUE_SEEN};
use crate::{Error, Result};

/// Longest text of a condition, in bytes.
pub const TEXT_MAX: usize = 4096;

/// Most `(` and `!` that may be open at one place.
const OPEN_MAX: usize = 64;

/// Longest name of an attribute, without `user.`.
const NAME_MAX: usize = 250;

/// Reads a condition.
///
/// # Errors
///
/// [`Error::Request`] with the place and what is wanted there; [`Error::TooLarge`] for a text of more than
/// [`TEXT_MAX`] bytes.
pub fn parse(text: &str) -> Result<Condition> {
    let mut reader = Reader::new(text)?;
    let condition = reader.condition(false)?;
    Ok(condition)
}

/// Reads the condition that `text` begins with, up to its end or a comma. Also returns the length of what was read.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_option(text: &str) -> Result<(Condition, usize)> {
    let mut reader = Reader::new(text)?;
    let condition = reader.condition(true)?;
    Ok((condition, reader.at))
}

/// What waits for its right side.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Open {
    Parenthesis,
    Or,
    And,
    Not,
}

/// A name or value as it was written.
enum Word {
    Plain(Vec<u8>),
    Quoted(Vec<u8>),
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    tests: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Result<Self> {
        match text.len() {
            got if got > TEXT_MAX => {
                Err(Error::TooLarge { what: "where of bytes", got: got as u64, limit: TEXT_MAX as u64 })
            }
            _ => Ok(Self { text, at: 0, tests: 0 }),
        }
    }

    fn condition(&mut self, ends_at_comma: bool) -> Result<Condition> {
        let mut steps = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        loop {
            // What comes before a test.
            loop {
                if self.takes("(") {
                    open.push(Open::Parenthesis);
                } else if self.takes_word("not") || self.takes("!") {
                    open.push(Open::Not);
                } else {
                    break;
                }
                if open.len() > OPEN_MAX {
                    return Err(self.wrong(&format!("at most {OPEN_MAX} open '(' and '!'")));
                }
            }
            self.test(&mut steps)?;
            // What comes behind it.
            loop {
                let join = if self.takes("&") || self.takes_word("and") {
                    Open::And
                } else if self.takes("|") || self.takes_word("or") {
                    Open::Or
                } else {
                    Open::Parenthesis
                };
                // Those that bind as close are done first.
                while let Some(done) = open.pop_if(|done| *done >= join && *done != Open::Parenthesis) {
                    steps.push(done.step());
                }
                if join != Open::Parenthesis {
                    open.push(join);
                    break;
                }
                if open.pop().is_some() {
                    if !self.takes(")") {
                        return Err(self.wrong("and, or, or ')'"));
                    }
                } else if self.rest().is_empty() || (ends_at_comma && self.rest().starts_with(',')) {
                    return Condition::new(steps).ok_or_else(|| self.wrong("a condition"));
                } else {
                    return Err(self.wrong("and, or, or the end"));
                }
            }
        }
    }

    /// Reads a test. `not in` is `in`, and then not.
    fn test(&mut self, steps: &mut Vec<Step>) -> Result<()> {
        self.skip_space();
        let begin = self.at;
        let is_keyword = |word: &str| ["and", "or", "in"].iter().any(|key| word.eq_ignore_ascii_case(key));
        if is_keyword(self.plain()) {
            return Err(self.wrong("the name of an attribute (in quotes, if it is and, or, not or in)"));
        }
        let name = match self.word()? {
            Some(Word::Plain(name) | Word::Quoted(name)) if !name.is_empty() => name,
            _ => return Err(self.wrong_at(begin, "the name of an attribute")),
        };
        let name = name.strip_prefix(b"user.").unwrap_or(&name);
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
            return Err(self.wrong_at(begin, &format!("a name of 1 to {NAME_MAX} bytes without NUL")));
        }
        if name.starts_with(b"vexfs.") {
            return Err(self.wrong_at(begin, "an attribute that is stored, not one of user.vexfs"));
        }
        self.tests += 1;
        if self.tests > TESTS_MAX {
            return Err(self.wrong_at(begin, &format!("at most {TESTS_MAX} tests")));
        }
        let mut is_not = false;
        let is = if self.takes("!=") {
            is_not = true;
            Is::Equal(self.value()?)
        } else if self.takes("<=") {
            Is::AtMost(self.value()?)
        } else if self.takes(">=") {
            Is::AtLeast(self.value()?)
        } else if self.takes("=") {
            Is::Equal(self.value()?)
        } else if self.takes("<") {
            Is::Less(self.value()?)
        } else if self.takes(">") {
            Is::More(self.value()?)
        } else if self.takes("~") {
            Is::Like(Glob::new(&self.bytes_of_value()?.0))
        } else if self.takes_word("in") {
            Is::OneOf(self.set()?)
        } else if self.takes_word("not") {
            is_not = true;
            if !self.takes_word("in") {
                return Err(self.wrong("in"));
            }
            Is::OneOf(self.set()?)
        } else {
            Is::Present
        };
        steps.push(Step::Test(Test { name: name.into(), is }));
        steps.extend(is_not.then_some(Step::Not));
        Ok(())
    }

    fn set(&mut self) -> Result<Set> {
        if !self.takes("(") {
            return Err(self.wrong("'('"));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            if self.takes(")") {
                return Ok(Set::new(values));
            }
            if !self.takes(",") {
                return Err(self.wrong("',' or ')'"));
            }
        }
    }

    fn value(&mut self) -> Result<Literal> {
        Ok(match self.bytes_of_value()? {
            (bytes, true) => Literal::text(&bytes),
            (bytes, false) => Literal::word(&bytes),
        })
    }

    /// The bytes of a value, and whether they were in quotes.
    fn bytes_of_value(&mut self) -> Result<(Vec<u8>, bool)> {
        self.skip_space();
        let begin = self.at;
        let value = match self.word()? {
            Some(Word::Plain(bytes)) => (bytes, false),
            Some(Word::Quoted(bytes)) => (bytes, true),
            None => return Err(self.wrong("a value (\"\" is the empty one)")),
        };
        if value.0.len() > VALUE_SEEN {
            return Err(self.wrong_at(begin, &format!("a value of at most {VALUE_SEEN} bytes")));
        }
        Ok(value)
    }

    /// A word or what is in quotes, if there is one.
    fn word(&mut self) -> Result<Option<Word>> {
        if let Some(quote) = self.rest().chars().next().filter(|first| ['"', '\''].contains(first)) {
            self.at += 1;
            return self.quoted(quote).map(|bytes| Some(Word::Quoted(bytes)));
        }
        let plain = self.plain();
        self.at += plain.len();
        Ok((!plain.is_empty()).then(|| Word::Plain(plain.as_bytes().to_vec())))
    }

    fn quoted(&mut self, quote: char) -> Result<Vec<u8>> {
        let begin = self.at - 1;
        let mut bytes = Vec::new();
        loop {
            let mut rest = self.rest().chars();
            let Some(next) = rest.next() else {
                return Err(self.wrong_at(begin, &format!("a second {quote}")));
            };
            if next == quote {
                self.at += 1;
                return Ok(bytes);
            }
            if next != '\\' {
                bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
                self.at += next.len_utf8();
                continue;
            }
            let escape = rest.as_str();
            match escape.as_bytes() {
                [plain @ (b'"' | b'\'' | b'\\'), ..] => {
                    bytes.push(*plain);
                    self.at += 2;
                }
                [b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or(0);
                    bytes.extend(u8::try_from(digit(*high) * 16 + digit(*low)).ok());
                    self.at += 4;
                }
                _ => return Err(self.wrong("one of \\\" \\' \\\\ and \\x with two digits")),
            }
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// The word that comes next, up to what ends it.
    fn plain(&self) -> &'a str {
        let rest = self.rest();
        let ends = |c: char| c.is_whitespace() || c.is_control() || "()&|!<>=~,\"'".contains(c);
        &rest[..rest.find(ends).unwrap_or(rest.len())]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes these signs, if they come next. `!` is not the beginning of `!=`.
    fn takes(&mut self, signs: &str) -> bool {
        self.skip_space();
        let is_next = self.rest().starts_with(signs) && (signs != "!" || !self.rest().starts_with("!="));
        self.at += if is_next { signs.len() } else { 0 };
        is_next
    }

    /// Takes this word, if it comes next.
    fn takes_word(&mut self, word: &str) -> bool {
        self.skip_space();
        let is_next = self.plain().eq_ignore_ascii_case(word);
        self.at += if is_next { word.len() } else { 0 };
        is_next
    }

    fn wrong(&self, want: &str) -> Error {
        self.wrong_at(self.at, want)
    }

    /// What is wanted at a place, and what is there. Places are counted in characters, from 1.
    #[cold]
    #[inline(never)]
    fn wrong_at(&self, at: usize, want: &str) -> Error {
        let place = self.text[..at].chars().count() + 1;
        let found = match self.text[at..].chars().next() {
            Some(found) => format!("{found:?}"),
            None => "the end".into(),
        };
        Error::Request(format!("where: at {place}, want {want}, found {found}"))
    }
}

impl Open {
    fn step(self) -> Step {
        match self {
            Open::And => Step::And,
            Open::Or => Step::Or,
            // A parenthesis is no step; it is taken off where it is closed.
            Open::Not | Open::Parenthesis => Step::Not,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::Attributes;

    fn shown(text: &str) -> String {
        parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).to_string()
    }

    fn refused(text: &str) -> String {
        parse(text).map(|condition| panic!("{text} is {condition}")).unwrap_err().to_string()
    }

    /// Whether a file with these attributes, in order of their names, is meant.
    fn holds(text: &str, attributes: &[(&str, &str)]) -> bool {
        let pairs = attributes.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        parse(text).unwrap().holds(&Attributes::new(pairs, &std::sync::Arc::default()).unwrap())
    }

    #[test]
    fn not_binds_closer_than_and_and_and_closer_than_or() {
        for (text, want) in [
            ("a", r#""a""#),
            ("a=1", r#""a"=1"#),
            ("user.a = x", r#""a"="x""#),
            ("user.user.=x", r#""user.user."="x""#),
            ("a!=x", r#"!"a"="x""#),
            ("!a", r#"!"a""#),
            ("not a<=1 and b", r#"!"a"<=1&"b""#),
            ("a or b and c", r#""a"|"b"&"c""#),
            ("a and b or c", r#""a"&"b"|"c""#),
            ("a|b|c&!d&e", r#""a"|"b"|"c"&!"d"&"e""#),
            ("(a or b)&c", r#"("a"|"b")&"c""#),
            ("a|(b|c)", r#""a"|("b"|"c")"#),
            ("(a&b)&(c&d)", r#""a"&"b"&("c"&"d")"#),
            ("not (a | !(b))", r#"!("a"|!"b")"#),
            ("not not a", r#"!!"a""#),
            ("lang in (en, de,\"7\",7)", r#""lang" in ("7",7,"de","en")"#),
            ("lang NOT IN (en) AND x>2", r#"!"lang" in ("en")&"x">2"#),
            ("x = and or y=in", r#""x"="and"|"y"="in""#),
            ("\"and\"=1", r#""and"=1"#),
            ("a ~ *.txt", r#""a"~"*.txt""#),
            (r#"a="1""#, r#""a"="1""#),
            (r#"a="say \"hi\" \\ \x2f\xff""#, r#""a"="say \"hi\" \\ \x2f\xff""#),
            ("a='say \"hi\"'", r#""a"="say \"hi\"""#),
            (
                "größe>=1.5e3&名前=値",
                r#""gr\xc3\xb6\xc3\x9fe">=1.5e3&"\xe5\x90\x8d\xe5\x89\x8d"="\xe5\x80\xa4""#,
            ),
            ("a.b-c:d=2024-01-15T10:00", r#""a.b-c:d"="2024-01-15T10:00""#),
            ("\u{a0}a\t=\n1 ", r#""a"=1"#),
        ] {
            assert_eq!(shown(text), want, "{text}");
            assert_eq!(parse(want).unwrap(), parse(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_what_was_wanted() {
        for (text, want) in [
            ("", "where: at 1, want the name of an attribute, found the end"),
            ("  ", "at 3, want the name of an attribute, found the end"),
            ("lang=", "at 6, want a value (\"\" is the empty one), found the end"),
            ("lang==en", "at 6, want a value (\"\" is the empty one), found '='"),
            ("é=!x", "at 3, want a value"),
            ("lang=en de", "at 9, want and, or, or the end, found 'd'"),
            ("lang=en,k=3", "at 8, want and, or, or the end, found ','"),
            ("lang=en)", "at 8, want and, or, or the end, found ')'"),
            ("(lang=en", "at 9, want and, or, or ')', found the end"),
            ("(lang=en,de)", "at 9, want and, or, or ')', found ','"),
            ("()", "at 2, want the name of an attribute, found ')'"),
            ("a and", "at 6, want the name of an attribute, found the end"),
            ("and=1", "at 1, want the name of an attribute (in quotes"),
            ("a && b", "at 4, want the name of an attribute, found '&'"),
            ("=1", "at 1, want the name of an attribute, found '='"),
            ("!=1", "at 1, want the name of an attribute, found '!'"),
            ("a in en", "at 6, want '(', found 'e'"),
            ("a in ()", "at 7, want a value"),
            ("a in (b", "at 8, want ',' or ')', found the end"),
            ("a in (b,)", "at 9, want a value"),
            ("a not b", "at 7, want in, found 'b'"),
            ("x='it''", "at 7, want and, or, or the end, found '\\''"),
            ("a=\"b", "at 3, want a second \", found '\"'"),
            (r#"a="\n""#, "at 4, want one of"),
            (r#"a="\x4""#, "at 4, want one of"),
            (r#"a="\x4é""#, "at 4, want one of"),
            ("a=\u{7}", "at 3, want a value"),
            ("user.=1", "at 1, want a name of 1 to 250 bytes"),
            ("\"\"=1", "at 1, want the name of an attribute"),
            ("\"a\\x00\"=1", "at 1, want a name of 1 to 250 bytes without NUL"),
            ("user.vexfs.dim=3", "at 1, want an attribute that is stored"),
        ] {
            let message = refused(text);
            assert!(message.contains(want), "{text}: {message}");
        }
    }

    #[test]
    fn length_depth_tests_names_and_values_have_bounds() {
        let deep = |open: usize| format!("{}a{}", "(".repeat(open), ")".repeat(open));
        assert!(parse(&deep(64)).is_ok() && refused(&deep(65)).contains("at most 64 open"));
        let nots = format!("{}a & b or c", "!".repeat(64));
        assert_eq!(
            parse(&shown(&nots)).unwrap(),
            parse(&nots).unwrap(),
            "what is shown is no deeper than what was read"
        );
        assert!(refused(&"!".repeat(4000)).contains("at 66, want at most 64 open"));
        let many = |tests: usize| vec!["a"; tests].join("|");
        assert!(parse(&many(64)).is_ok() && refused(&many(65)).contains("at most 64 tests"));
        let nested = |tests: usize| format!("{}a{}", "a|(".repeat(tests - 1), ")".repeat(tests - 1));
        assert!(parse(&nested(32)).is_ok() && refused(&nested(64)).contains("at most 64 open"));
        assert!(parse(&format!("{}=1", "n".repeat(250))).is_ok());
        assert!(refused(&format!("{}=1", "n".repeat(251))).contains("at 1, want a name"));
        assert!(parse(&format!("a={}", "v".repeat(1024))).is_ok());
        assert!(refused(&format!("a={}", "v".repeat(1025))).contains("at 3, want a value of at most 1024"));
        let long = |len: usize| parse(&format!("a{}", " ".repeat(len - 1)));
        assert!(long(4096).is_ok());
        assert!(matches!(long(4097), Err(Error::TooLarge { got: 4097, limit: 4096, .. })));
    }

    #[test]
    fn in_a_path_the_first_comma_outside_of_quotes_and_parentheses_is_the_end() {
        for (text, end) in [
            ("lang=en,k=3", 7),
            ("lang=en", 7),
            ("lang in (en,de) ,k=3", 16),
            ("t=\"a,b\"&u='c,d',exact", 15),
            ("a,", 1),
        ] {
            let (condition, len) = parse_option(text).unwrap();
            assert_eq!((len, &condition), (end, &parse(&text[..end]).unwrap()), "{text}");
        }
        assert!(parse_option("(a,b)").is_err() && parse_option(",k=3").is_err());
    }

    #[test]
    fn without_the_attribute_no_test_holds_and_its_negation_does() {
        let tests = ["a", "a=1", "a<1", "a<=1", "a>1", "a>=1", "a~*", "a in (1)", "a=\"\""];
        for test in tests {
            assert!(!holds(test, &[]) && holds(&format!("not {test}"), &[]), "{test}");
        }
        assert!(holds("a!=1", &[]) && holds("a not in (1)", &[]) && !holds("a & a!=1", &[]));
        assert!(holds("a", &[("a", "")]) && holds("a=\"\"", &[("a", "")]) && holds("a!=1", &[("a", "")]));
    }

    #[test]
    fn conditions_hold_of_the_files_that_they_describe() {
        let file = [("lang", "en"), ("title", "Ants, bees"), ("year", "2024")];
        for (text, want) in [
            ("lang=en", true),
            ("lang = en and year>=2020", true),
            ("lang=de|year<2020", false),
            ("not (lang=de or year<2020)", true),
            ("title~'*,*'&!pages", true),
            ("title='Ants, bees'", true),
            ("year in (2023,2024.0)", true),
            ("year=\"2024.0\"", false),
            ("year>300", true),
            ("year>\"300\"", false),
            ("lang in (de,fr)", false),
            ("user.lang~e?", true),
        ] {
            assert_eq!(holds(text, &file), want, "{text}");
        }
    }

    #[test]
    fn hostile_text_is_refused_or_reads_as_it_is_shown() {
        const PIECES: [&str; 28] = [
            "a", "\"", "'", "\\", "\\x", "41", "(", ")", ",", "=", "!", "!=", "<", ">=", "~", "&", "|",
            " and ", " or ", "not ", " in ", "é", "\0", "1e9", "*", "?", " ", "user.",
        ];
        let mut state = 5u64;
        let mut read = 0;
        for _ in 0..30_000 {
            let mut text = String::new();
            for _ in 0..1 + (state >> 60) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(PIECES[(state >> 33) as usize % PIECES.len()]);
            }
            if let Ok(condition) = parse(&text) {
                read += 1;
                assert_eq!(parse(&condition.to_string()).unwrap(), condition, "{text}");
            }
            let _ = parse_option(&text);
        }
        assert!(read > 300, "{read}");
    }
}
