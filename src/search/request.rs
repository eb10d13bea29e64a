//! What is asked: targets and options, and the one parser for every form in which they come.

use std::sync::Arc;

use serde::Deserialize;

use super::condition;
use crate::collection::Condition;
use crate::format::{self, Dtype};
use crate::{Error, Result};

/// Hits that are returned when the request does not say how many and so many may be.
const DEFAULT_K: u32 = 10;

/// Largest `ef`.
pub const MAX_EF: u32 = 10_000;

/// How to search; `None` means the collection's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// How many hits, 1..=`max_k`; see [`RequestLimits::k`].
    pub k: Option<u32>,
    /// Candidates considered by the graph, 1..=[`MAX_EF`]; raised to `k`.
    pub ef: Option<u32>,
    /// Share of the true neighbours to find, above 0 and up to 1. Not together with `ef` or `exact`.
    pub recall: Option<f64>,
    /// Look at every row.
    pub exact: bool,
    /// Only hits at most this far away.
    pub max: Option<f32>,
    /// Say how the answer came about as well.
    pub explain: bool,
    /// `where`: only rows of files whose attributes are like this.
    pub condition: Option<Arc<Condition>>,
}

/// What the neighbours are wanted of.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Vectors of `dim` elements, one after the other.
    Vectors {
        /// Elements of each.
        dim: u32,
        /// All values, `rows * dim`.
        values: Vec<f32>,
    },
    /// A vector file, by its path relative to the directory asked. It is not its own neighbour.
    Like {
        /// The path.
        path: String,
        /// Row of a multi-row file.
        row: Option<u32>,
    },
    /// A text, for an embedder.
    Text(String),
    /// Of nothing: with [`Options::explain`], how a search would be answered.
    Nothing,
}

impl Target {
    /// What it takes in memory besides itself, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        match self {
            Target::Vectors { values, .. } => size_of_val(values.as_slice()),
            Target::Like { path, .. } => path.len(),
            Target::Text(text) => text.len(),
            Target::Nothing => 0,
        }
    }

    /// How many vectors are searched for.
    #[must_use]
    pub fn vectors(&self) -> usize {
        match self {
            Target::Vectors { dim, values } => values.len() / (*dim as usize).max(1),
            Target::Like { .. } | Target::Text(_) | Target::Nothing => 1,
        }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What the neighbours are wanted of.
    pub target: Target,
    /// How to search.
    pub options: Options,
}

/// The JSON form of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRequest {
    vector: Option<Vec<f32>>,
    like: Option<String>,
    row: Option<u32>,
    text: Option<String>,
    k: Option<u64>,
    ef: Option<u64>,
    recall: Option<f64>,
    #[serde(default)]
    exact: bool,
    max: Option<f32>,
    #[serde(default)]
    explain: bool,
    r#where: Option<String>,
}

/// The header line of a binary request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonHeader {
    dtype: String,
    rows: u64,
    dim: u64,
    k: Option<u64>,
    ef: Option<u64>,
    recall: Option<f64>,
    #[serde(default)]
    exact: bool,
    max: Option<f32>,
    r#where: Option<String>,
}

/// A binary request whose values follow its header line.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Element type of the values.
    pub dtype: Dtype,
    /// Query vectors.
    pub rows: u32,
    /// Elements of each.
    pub dim: u32,
    /// Hits of each.
    pub k: u32,
    /// How to search.
    options: Options,
}

/// One line of the `query` file.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A whole request.
    Request(Request),
    /// The header of a binary request.
    Header(Header),
}

/// Bounds of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Largest `k`.
    pub max_k: u32,
    /// Largest dimension.
    pub max_dim: u32,
    /// Largest request in bytes.
    pub max_bytes: u64,
}

impl RequestLimits {
    /// How many hits are returned where `asked` are asked for: without that 10, or `max_k` where that is less.
    #[must_use]
    pub fn k(&self, asked: Option<u32>) -> u32 {
        asked.unwrap_or(DEFAULT_K.min(self.max_k))
    }

    /// A dimension from outside, within the limit.
    fn dim(&self, got: u64) -> Result<u32> {
        let limit = self.max_dim;
        let dim = u32::try_from(got).ok().filter(|&dim| dim <= limit);
        dim.ok_or(Error::TooLarge { what: "dimension", got, limit: limit.into() })
    }

    /// Checks what the records of an answer take: `k` of 8 bytes for each query vector.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] above the largest request.
    pub fn check_answer(&self, vectors: u64, k: u32) -> Result<()> {
        let (got, limit) = (vectors.saturating_mul(u64::from(k)).saturating_mul(8), self.max_bytes);
        if got > limit { Err(Error::TooLarge { what: "answer of bytes", got, limit }) } else { Ok(()) }
    }
}

impl Options {
    /// The options that both JSON forms have, checked.
    fn from_json(
        (k, ef): (Option<u64>, Option<u64>),
        (recall, exact): (Option<f64>, bool),
        (max, text): (Option<f32>, Option<&str>),
        limits: &RequestLimits,
    ) -> Result<Self> {
        let (k, ef) = (count("k", k, limits.max_k)?, count("ef", ef, MAX_EF)?);
        let condition = text.map(condition::parse).transpose()?.map(Arc::new);
        let options = Self { k, ef, recall, exact, max, condition, explain: false };
        options.check(limits)?;
        Ok(options)
    }

    /// Checks the numbers against the limits.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] above a limit, [`Error::Request`] for zero, a `max` that is not a number, a `recall`
    /// that is no share, or one together with `ef` or `exact`.
    pub fn check(&self, limits: &RequestLimits) -> Result<()> {
        for (what, value, limit) in [("k", self.k, limits.max_k), ("ef", self.ef, MAX_EF)] {
            match value {
                Some(0) => return Err(Error::Request(format!("{what} is 0, want at least 1"))),
                Some(value) if value > limit => {
                    return Err(Error::TooLarge { what, got: value.into(), limit: limit.into() });
                }
                _ => {}
            }
        }
        match self.recall {
            // Written so that NaN is refused.
            Some(recall) if !(recall > 0.0 && recall <= 1.0) => {
                return Err(Error::Request(format!("recall is {recall}, want above 0 and at most 1")));
            }
            Some(_) if self.ef.is_some() || self.exact => {
                return Err(Error::Request("want one of recall, ef and exact".into()));
            }
            _ => {}
        }
        match self.max {
            Some(max) if max.is_nan() => Err(Error::Request("max is not a number".into())),
            _ => Ok(()),
        }
    }

    /// Parses the path element `@k=20,ef=100,exact,max=0.5` or `@recall=0.95,where=lang=en`.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] naming the option or value.
    pub fn parse_element(element: &str) -> Result<Self> {
        let mut rest = Some(element.strip_prefix('@').unwrap_or(element));
        let mut options = Self::default();
        let mut names = Vec::new();
        while let Some(list) = rest {
            let mut end = list.find(',').unwrap_or(list.len());
            // A condition has commas of its own.
            if let Some(text) = list.strip_prefix(WHERE) {
                let (condition, len) = condition::parse_option(text)?;
                options.condition = Some(Arc::new(condition));
                end = WHERE.len() + len;
            }
            let option = &list[..end];
            rest = list.get(end + 1..);
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            // As a JSON key that comes twice.
            if names.contains(&name) {
                return Err(Error::Request(format!("option '{name}' twice")));
            }
            names.push(name);
            match (name, value) {
                ("k", Some(value)) => options.k = Some(number(name, value)?),
                ("ef", Some(value)) => options.ef = Some(number(name, value)?),
                ("recall", Some(value)) => options.recall = Some(number(name, value)?),
                ("max", Some(value)) => options.max = Some(number(name, value)?),
                ("where", Some(_)) => {}
                ("exact", None | Some("true" | "1")) => options.exact = true,
                ("exact", Some("false" | "0")) => options.exact = false,
                ("explain", None) => options.explain = true,
                _ => {
                    let have = "k= recall= ef= max= exact explain where=";
                    return Err(Error::Request(format!("unknown option '{option}', have {have}")));
                }
            }
        }
        Ok(options)
    }

    /// The path element that [`parse_element`](Self::parse_element) reads, in one spelling.
    #[must_use]
    pub fn element(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.k.map(|k| format!("k={k}")));
        parts.extend(self.ef.map(|ef| format!("ef={ef}")));
        parts.extend(self.recall.map(|recall| format!("recall={recall}")));
        parts.extend(self.max.map(|max| format!("max={max}")));
        parts.extend(self.exact.then(|| "exact".to_owned()));
        parts.extend(self.explain.then(|| "explain".to_owned()));
        parts.extend(self.condition.as_ref().map(|condition| format!("{WHERE}{condition}")));
        format!("@{}", parts.join(","))
    }
}

/// How the option begins that has a condition.
const WHERE: &str = "where=";

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| Error::Request(format!("{name}={value} is not a number in range")))
}

fn count(name: &'static str, value: Option<u64>, limit: u32) -> Result<Option<u32>> {
    value
        .map(|got| u32::try_from(got).map_err(|_| Error::TooLarge { what: name, got, limit: limit.into() }))
        .transpose()
}

impl Line {
    /// Parses one line: a JSON request, or the header of a binary one.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] for JSON that is not a request, [`Error::TooLarge`] above a limit.
    pub fn parse(line: &[u8], limits: &RequestLimits) -> Result<Self> {
        let wrong = |error: serde_json::Error| Error::Request(error.to_string());
        let keys: serde_json::Value = serde_json::from_slice(line).map_err(wrong)?;
        let Some(object) = keys.as_object() else {
            return Err(Error::Request("want a JSON object".into()));
        };
        if object.contains_key("dtype") {
            return Self::header(serde_json::from_value(keys).map_err(wrong)?, limits).map(Line::Header);
        }
        // From the bytes again: numbers go to f32 directly, not through f64.
        Self::request(serde_json::from_slice(line).map_err(wrong)?, limits).map(Line::Request)
    }

    fn header(json: JsonHeader, limits: &RequestLimits) -> Result<Header> {
        let dtype = Dtype::parse(&json.dtype).ok_or_else(|| {
            Error::Request(format!("dtype '{}', want f32, f16, bf16, f64, i8 or u8", json.dtype))
        })?;
        let dim = limits.dim(json.dim)?;
        let (limit, text) = (json.max, json.r#where.as_deref());
        let options =
            Options::from_json((json.k, json.ef), (json.recall, json.exact), (limit, text), limits)?;
        let k = limits.k(options.k);
        if dim == 0 || json.rows == 0 {
            return Err(Error::Request(format!("{} rows x dim {dim}, want at least 1 x 1", json.rows)));
        }
        // Both the values that follow and the answer's records are bounded.
        limits.check_answer(json.rows, k)?;
        let got = json.rows.saturating_mul(u64::from(dim)).saturating_mul(dtype.size_bytes() as u64);
        if got > limits.max_bytes {
            return Err(Error::TooLarge { what: "request of bytes", got, limit: limits.max_bytes });
        }
        let rows = u32::try_from(json.rows).map_err(|_| Error::TooLarge {
            what: "rows",
            got: json.rows,
            limit: u32::MAX.into(),
        })?;
        Ok(Header { dtype, rows, dim, k, options })
    }

    fn request(json: JsonRequest, limits: &RequestLimits) -> Result<Request> {
        let (limit, text) = (json.max, json.r#where.as_deref());
        let options =
            Options::from_json((json.k, json.ef), (json.recall, json.exact), (limit, text), limits)?;
        let options = Options { explain: json.explain, ..options };
        let target = match (json.vector, json.like, json.text) {
            (Some(values), None, None) => {
                let dim = limits.dim(values.len() as u64)?;
                if dim == 0 {
                    return Err(Error::Request("the vector is empty".into()));
                }
                Target::Vectors { dim, values }
            }
            (None, Some(path), None) if path.is_empty() => {
                return Err(Error::Request("like is empty, want the path of a file".into()));
            }
            (None, Some(path), None) => {
                return Ok(Request { target: Target::Like { path, row: json.row }, options });
            }
            (None, None, Some(text)) => Target::Text(text),
            (None, None, None) if json.explain => Target::Nothing,
            _ => return Err(Error::Request("want one of vector, like and text".into())),
        };
        if json.row.is_some() {
            return Err(Error::Request("row goes with like".into()));
        }
        Ok(Request { target, options })
    }
}

impl Header {
    /// Bytes that follow the header line.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.rows as usize * self.dim as usize * self.dtype.size_bytes()
    }

    /// The request, from the bytes that followed.
    ///
    /// # Errors
    ///
    /// None: `body` has [`body_bytes`](Self::body_bytes) bytes.
    #[must_use]
    pub fn with_body(&self, body: &[u8]) -> Request {
        let values = format::decoded(self.dtype, body);
        // The answer's records are counted by the limits under which the header was read.
        let options = Options { k: Some(self.k), ..self.options.clone() };
        Request { target: Target::Vectors { dim: self.dim, values }, options }
    }
}

/// The query vectors of a file that was dropped into `queries/`, by its name or, failing that, its bytes.
///
/// A name without a recognised suffix is a JSON request when it is text that begins with `{`, a `.npy` or numbers as
/// text when it looks like one, and else raw f32 rows of the collection's dimension.
///
/// # Errors
///
/// Those of the format, of [`Line::parse`], and [`Error::Request`] for raw bytes where the dimension is not known.
pub fn parse_query_file(
    name: &[u8],
    bytes: &[u8],
    dim: Option<u32>,
    limits: &RequestLimits,
) -> Result<Request> {
    use format::FileKind;
    let kind = match format::recognise(name) {
        Some(kind) => Some(kind),
        None if looks_like_json(bytes) => {
            return match Line::parse(bytes, limits)? {
                Line::Request(request) => Ok(request),
                Line::Header(_) => Err(Error::Request("a binary request goes to the query file".into())),
            };
        }
        None => format::sniff(bytes),
    };
    let format_limits = format::Limits { max_dim: limits.max_dim, ..format::Limits::default() };
    let (dim, values) = match kind {
        Some(FileKind::Text) => {
            let values = format::parse_text(bytes, &format_limits)?;
            (u32::try_from(values.len()).unwrap_or(u32::MAX), values)
        }
        // A raw file has one vector elsewhere; a query of the collection's dimension may have several.
        Some(FileKind::Raw(dtype)) => raw_rows(dtype, bytes, dim)?,
        None => raw_rows(Dtype::F32, bytes, dim)?,
        Some(kind) => {
            let layout = format::layout(kind, bytes, &format_limits)?;
            let rows = usize::try_from(layout.rows).unwrap_or(usize::MAX);
            let mut values = vec![0.0; rows * layout.dim as usize];
            for (row, out) in (0u64..).zip(values.chunks_exact_mut(layout.dim as usize)) {
                format::decode(layout.dtype, &bytes[layout.row_range(row)], out);
            }
            (layout.dim, values)
        }
    };
    Ok(Request { target: Target::Vectors { dim, values }, options: Options::default() })
}

/// One raw vector in 256 begins with the byte of `{` as well, but is hardly text to its end.
fn looks_like_json(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"{")
        && std::str::from_utf8(bytes)
            .is_ok_and(|text| text.chars().all(|c| !c.is_control() || c.is_ascii_whitespace()))
}

fn raw_rows(dtype: Dtype, bytes: &[u8], dim: Option<u32>) -> Result<(u32, Vec<f32>)> {
    let size = dtype.size_bytes();
    let dim = match dim {
        Some(dim) => dim,
        None => u32::try_from(bytes.len() / size).unwrap_or(u32::MAX),
    };
    let row = dim as usize * size;
    if row == 0 || bytes.is_empty() || !bytes.len().is_multiple_of(row) {
        return Err(Error::Request(format!(
            "{} bytes, want a multiple of {row} (dim {dim}, {})",
            bytes.len(),
            dtype.name()
        )));
    }
    Ok((dim, format::decoded(dtype, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits { max_k: 100, max_dim: 8, max_bytes: 1 << 10 };

    fn parse(line: &str) -> Result<Line> {
        Line::parse(line.as_bytes(), &LIMITS)
    }

    #[test]
    fn the_three_targets_and_every_option_are_read() {
        let Line::Request(request) =
            parse(r#"{"vector":[1,0.5],"k":3,"ef":50,"exact":true,"max":0.25}"#).unwrap()
        else {
            panic!("a header")
        };
        assert_eq!(request.target, Target::Vectors { dim: 2, values: vec![1.0, 0.5] });
        assert_eq!(
            request.options,
            Options { k: Some(3), ef: Some(50), exact: true, max: Some(0.25), ..Options::default() }
        );
        let like = Request {
            target: Target::Like { path: "a.f32".into(), row: Some(2) },
            options: Options::default(),
        };
        assert_eq!(parse(r#"{"like":"a.f32","row":2}"#).unwrap(), Line::Request(like));
        assert!(matches!(
            parse(r#"{"text":"x"}"#).unwrap(),
            Line::Request(Request { target: Target::Text(_), .. })
        ));
    }

    #[test]
    fn the_widest_walk_is_allowed_and_no_wider_one() {
        assert!(parse(r#"{"vector":[1],"ef":10000}"#).is_ok());
        let element = |text| Options::parse_element(text).unwrap().check(&LIMITS);
        assert!(element("@ef=10000").is_ok());
        let error = element("@ef=10001").unwrap_err();
        assert_eq!(error.to_string(), "ef 10001, the limit is 10000");
    }

    #[test]
    fn recall_is_read_in_both_json_forms() {
        for line in [
            r#"{"vector":[1],"recall":0.95,"exact":false}"#,
            r#"{"dtype":"f32","rows":1,"dim":1,"recall":0.95}"#,
        ] {
            let options = match parse(line).unwrap() {
                Line::Request(request) => request.options,
                Line::Header(header) => header.options,
            };
            assert_eq!(options, Options { recall: Some(0.95), ..Options::default() });
        }
    }

    #[test]
    fn a_header_knows_how_many_bytes_follow() {
        let Line::Header(header) = parse(r#"{"dtype":"f16","rows":3,"dim":4,"k":2}"#).unwrap() else {
            panic!("a request")
        };
        assert_eq!(header.body_bytes(), 24);
        let request = header.with_body(&[0; 24]);
        assert_eq!(request.target, Target::Vectors { dim: 4, values: vec![0.0; 12] });
    }

    #[test]
    fn without_k_it_is_ten_or_the_limit_where_that_is_less() {
        for (max_k, want) in [(100, 10), (10, 10), (5, 5)] {
            let limits = RequestLimits { max_k, ..LIMITS };
            assert_eq!((limits.k(None), limits.k(Some(3))), (want, 3));
            let line = Line::parse(br#"{"dtype":"f32","rows":1,"dim":1}"#, &limits).unwrap();
            let Line::Header(header) = line else { panic!("a request") };
            assert_eq!((header.k, header.with_body(&[0; 4]).options.k), (want, Some(want)));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_both_numbers() {
        for (line, want) in [
            ("[1]", "JSON object"),
            ("{", "EOF"),
            (r#"{"vector":[1],"like":"a"}"#, "one of vector, like and text"),
            (r#"{"k":3}"#, "one of vector, like and text"),
            (r#"{"vector":[]}"#, "empty"),
            (r#"{"like":""}"#, "like is empty, want the path of a file"),
            (r#"{"vector":[1],"row":1}"#, "row goes with like"),
            (r#"{"vector":[1],"kk":1}"#, "kk"),
            (r#"{"vector":[1],"k":0}"#, "k is 0"),
            (r#"{"vector":[1],"recall":0}"#, "recall is 0, want above 0 and at most 1"),
            (r#"{"vector":[1],"recall":1.01}"#, "recall is 1.01, want"),
            (r#"{"vector":[1],"recall":"high"}"#, "high"),
            (r#"{"vector":[1],"recall":0.9,"ef":50}"#, "one of recall, ef and exact"),
            (r#"{"vector":[1],"recall":0.9,"exact":true}"#, "one of recall, ef and exact"),
            (r#"{"dtype":"f32","rows":1,"dim":4,"recall":2}"#, "recall is 2, want"),
            (r#"{"vector":[1],"k":101}"#, "k 101, the limit is 100"),
            (r#"{"vector":[1],"k":99999999999}"#, "k 99999999999, the limit is 100"),
            (r#"{"vector":[1],"ef":0}"#, "ef is 0"),
            (r#"{"vector":[1],"ef":10001}"#, "ef 10001, the limit is 10000"),
            (r#"{"vector":[1],"ef":4294967295}"#, "ef 4294967295, the limit is 10000"),
            (r#"{"vector":[1],"ef":99999999999}"#, "ef 99999999999, the limit is 10000"),
            (r#"{"dtype":"f32","rows":1,"dim":4,"ef":10001}"#, "ef 10001, the limit is 10000"),
            (r#"{"vector":[1,2,3,4,5,6,7,8,9]}"#, "dimension 9, the limit is 8"),
            (r#"{"dtype":"f32","rows":0,"dim":4}"#, "0 rows x dim 4"),
            (r#"{"dtype":"c64","rows":1,"dim":4}"#, "c64"),
            (r#"{"dtype":"f32","rows":1,"dim":9}"#, "dimension 9, the limit is 8"),
            (r#"{"dtype":"f32","rows":1000,"dim":4}"#, "80000, the limit is 1024"),
            (r#"{"dtype":"f32","rows":18446744073709551615,"dim":8}"#, "the limit is 1024"),
        ] {
            let message = parse(line).unwrap_err().to_string();
            assert!(message.contains(want), "{line}: {message}");
        }
    }

    #[test]
    fn an_option_element_is_read_and_written_in_one_spelling() {
        let options = Options::parse_element("@max=0.5,k=20,exact,ef=7").unwrap();
        let want = Options { k: Some(20), ef: Some(7), exact: true, max: Some(0.5), ..Options::default() };
        assert_eq!(options, want);
        assert_eq!(options.element(), "@k=20,ef=7,max=0.5,exact");
        let options = Options::parse_element("@recall=0.95,k=5").unwrap();
        assert_eq!(options, Options { k: Some(5), recall: Some(0.95), ..Options::default() });
        assert_eq!(options.element(), "@k=5,recall=0.95");
        for bad in ["@", "@k", "@recall=", "@recall", "@k=x", "@k=-1", "@where", "@where=", "@k=1,,"] {
            assert!(matches!(Options::parse_element(bad), Err(Error::Request(_))), "{bad}");
        }
    }

    #[test]
    fn a_condition_is_read_alike_in_every_form() {
        let text = r#"lang in (en,"d,e") and year>=2020"#;
        let condition = Some(Arc::new(condition::parse(text).unwrap()));
        let json = serde_json::Value::from(text);
        for line in [
            format!(r#"{{"vector":[1],"where":{json}}}"#),
            format!(r#"{{"like":"a.f32","where":{json}}}"#),
            format!(r#"{{"dtype":"f32","rows":1,"dim":1,"where":{json}}}"#),
        ] {
            let options = match parse(&line).unwrap() {
                Line::Request(request) => request.options,
                Line::Header(header) => header.options,
            };
            assert_eq!(options, Options { condition: condition.clone(), ..Options::default() }, "{line}");
        }
        let want = Options { k: Some(3), exact: true, condition, ..Options::default() };
        for element in
            [format!("@k=3,where={text},exact"), format!("@where={text} ,exact,k=3"), want.element()]
        {
            assert_eq!(Options::parse_element(&element).unwrap(), want, "{element}");
        }
        for (bad, why) in [
            ("@where=a=,k=3", "where: at 3, want a value"),
            ("@where=a,where=b", "option 'where' twice"),
            ("@where=(a,k=3", "where: at 3, want and, or, or ')', found ','"),
            ("@where=a b,k=3", "where: at 3, want and, or, or the end, found 'b'"),
        ] {
            let message = Options::parse_element(bad).unwrap_err().to_string();
            assert!(message.contains(why), "{bad}: {message}");
        }
        let message = parse(r#"{"vector":[1],"where":"a=\"b"}"#).unwrap_err().to_string();
        assert!(message.contains("where: at 3, want a second \""), "{message}");
    }

    #[test]
    fn a_query_file_without_a_suffix_is_raw_rows_of_the_collection() {
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let target = |dim| parse_query_file(b"q", &bytes, dim, &LIMITS).map(|request| request.target);
        let values = vec![1.0, 2.0, 3.0, 4.0];
        assert_eq!(target(Some(2)).unwrap(), Target::Vectors { dim: 2, values: values.clone() });
        assert_eq!(target(None).unwrap(), Target::Vectors { dim: 4, values });
        assert!(target(Some(3)).unwrap_err().to_string().contains("16 bytes, want a multiple of 12"));
        let json = parse_query_file(b"q", b" {\"like\":\"a\"}\n", None, &LIMITS).unwrap();
        assert_eq!(json.target, Target::Like { path: "a".into(), row: None });
        let broken = parse_query_file(b"q", b"{\"like\":\"a", None, &LIMITS).unwrap_err();
        assert!(broken.to_string().contains("EOF"), "{broken}");
        let text = parse_query_file(b"q", b"1, 2\n", Some(2), &LIMITS).unwrap();
        assert_eq!(text.target, Target::Vectors { dim: 2, values: vec![1.0, 2.0] });
    }

    #[test]
    fn a_raw_vector_that_begins_with_the_byte_of_a_brace_is_one() {
        for first in [[b'{', 0x14, 0xae, 0x3f], [b'\n', b'{', 0x9c, 0x40], [b'{', b'a', b'b', 0x3f]] {
            let bytes = [first, 0.5f32.to_le_bytes()].concat();
            let request = parse_query_file(b"q", &bytes, Some(2), &LIMITS).unwrap();
            let values = vec![f32::from_le_bytes(first), 0.5];
            assert_eq!(request.target, Target::Vectors { dim: 2, values });
        }
    }
}
