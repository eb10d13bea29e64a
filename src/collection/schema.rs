//! A collection's configuration: its keys, their defaults and bounds, and its TOML form.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::distance::Metric;
use crate::index::Quant;
use crate::{Error, Result};

/// What happens when a recognised file has bad content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, bincode::Encode, bincode::Decode)]
#[serde(rename_all = "lowercase")]
pub enum OnInvalid {
    /// `close` fails as well.
    Error,
    /// The status attribute and `errors.jsonl` say so.
    Keep,
}

/// A collection's configuration.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub struct Schema {
    /// Declared dimension, 1..=`max_dim`. Without it the first valid vector fixes the dimension.
    pub dim: Option<u32>,
    /// How distances are measured.
    pub metric: Metric,
    /// Declared reaction to bad content. Without it: `Error` when a dimension is declared, else `Keep`.
    pub on_invalid: Option<OnInvalid>,
    /// Links of a graph node per level, 2..=128; twice as many at the lowest level.
    pub m: u32,
    /// Candidates considered when a node is linked, 1..=4096.
    pub ef_construction: u32,
    /// Share of the true neighbours that a search finds which names neither `ef` nor `recall`, 0.5..=0.999.
    pub recall: f64,
    /// What the graph keeps of its vectors for the walk.
    pub quant: Quant,
    /// Below this many rows there is no graph: every search is exact.
    pub exact_below: u32,
    /// Largest dimension, 1..=16384.
    pub max_dim: u32,
    /// Largest `k` of a search, 1..=10000.
    pub max_k: u32,
    /// Largest request in bytes, 1..=64 MiB.
    pub max_query: u64,
}

impl Default for Schema {
    fn default() -> Self {
        Self {
            dim: None,
            metric: Metric::Cosine,
            on_invalid: None,
            m: 16,
            ef_construction: 200,
            recall: 0.95,
            quant: Quant::Sq8,
            exact_below: 5000,
            max_dim: Schema::MAX_DIM,
            max_k: Schema::MAX_K,
            max_query: Schema::MAX_QUERY,
        }
    }
}

/// The TOML form, as a user writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    collection: CollectionKeys,
    index: IndexKeys,
    limits: LimitKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CollectionKeys {
    dim: Option<i64>,
    metric: Option<Metric>,
    on_invalid: Option<OnInvalid>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IndexKeys {
    m: Option<i64>,
    ef_construction: Option<i64>,
    recall: Option<f64>,
    quant: Option<String>,
    exact_below: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitKeys {
    max_dim: Option<i64>,
    max_k: Option<i64>,
    max_query: Option<i64>,
}

impl Schema {
    /// No vector is longer.
    pub const MAX_DIM: u32 = 16384;
    /// No search returns more.
    pub const MAX_K: u32 = 10000;
    /// No request is larger, in bytes.
    pub const MAX_QUERY: u64 = 64 << 20;
    /// A lower recall than this is a search for something else.
    pub const MIN_RECALL: f64 = 0.5;
    /// A higher recall than this is a matter of `exact`, in a request.
    pub const MAX_RECALL: f64 = 0.999;
    /// No configuration file is larger, in bytes.
    pub const MAX_CONFIG: usize = 64 << 10;

    /// What happens to bad content.
    #[must_use]
    pub fn on_invalid(&self) -> OnInvalid {
        self.on_invalid.unwrap_or(if self.dim.is_some() { OnInvalid::Error } else { OnInvalid::Keep })
    }

    /// Reads a configuration file. Keys that are not named have their defaults.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the key, the value and the bound.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > Self::MAX_CONFIG {
            return Err(Error::Config(format!("{} bytes, the limit is {}", bytes.len(), Self::MAX_CONFIG)));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| Error::Config(error.to_string()))?;
        let file: File = toml::from_str(text).map_err(|error| Error::Config(located(text, &error)))?;
        let default = Self::default();
        let max_dim = bounded("limits.max_dim", file.limits.max_dim, default.max_dim, 1, Self::MAX_DIM)?;
        Ok(Self {
            dim: match file.collection.dim {
                Some(_) => Some(bounded("collection.dim", file.collection.dim, 0, 1, max_dim)?),
                None => None,
            },
            metric: file.collection.metric.unwrap_or(default.metric),
            on_invalid: file.collection.on_invalid,
            m: bounded("index.m", file.index.m, default.m, 2, 128)?,
            ef_construction: bounded(
                "index.ef_construction",
                file.index.ef_construction,
                default.ef_construction,
                1,
                4096,
            )?,
            recall: file.index.recall.map_or(Ok(default.recall), checked_recall)?,
            quant: file.index.quant.as_deref().map_or(Ok(default.quant), parse_quant)?,
            exact_below: bounded(
                "index.exact_below",
                file.index.exact_below,
                default.exact_below,
                0,
                u32::MAX - 1,
            )?,
            max_dim,
            max_k: bounded("limits.max_k", file.limits.max_k, default.max_k, 1, Self::MAX_K)?,
            max_query: u64::from(bounded(
                "limits.max_query",
                file.limits.max_query,
                u32::try_from(default.max_query).unwrap_or(u32::MAX),
                1,
                u32::try_from(Self::MAX_QUERY).unwrap_or(u32::MAX),
            )?),
        })
    }

    /// The configuration with one key set, as `setfattr -n user.vexfs.KEY` on the directory does.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a value out of bounds, [`Error::NotPermitted`] for another key.
    pub fn with_attribute(&self, key: &[u8], value: &[u8]) -> Result<Self> {
        let value = std::str::from_utf8(value).unwrap_or("not UTF-8").trim_end_matches(['\n', '\0']);
        let mut schema = self.clone();
        match key {
            b"dim" => {
                let number = value
                    .parse()
                    .map_err(|_| Error::Config(format!("collection.dim: '{value}' is not a number")))?;
                schema.dim = Some(bounded("collection.dim", Some(number), 0, 1, self.max_dim)?);
            }
            b"metric" => {
                schema.metric = Metric::parse(value).ok_or_else(|| {
                    Error::Config(format!("collection.metric: '{value}', want cosine, ip or l2"))
                })?;
            }
            b"recall" => {
                let number = value.parse();
                let number =
                    number.map_err(|_| Error::Config(format!("index.recall: '{value}' is not a number")))?;
                schema.recall = checked_recall(number)?;
            }
            b"quant" => schema.quant = parse_quant(value)?,
            _ => return Err(Error::NotPermitted),
        }
        Ok(schema)
    }

    /// The file that shows every key with the value in force. `dim` is the dimension that vectors have
    /// fixed, shown in a comment when none is declared.
    #[must_use]
    pub fn render(&self, dim: Option<u32>) -> String {
        let on_invalid = match self.on_invalid() {
            OnInvalid::Error => "error",
            OnInvalid::Keep => "keep",
        };
        let mut text = String::from("[collection]\n");
        let _ = match (self.dim, dim) {
            (Some(dim), _) => writeln!(text, "dim = {dim}"),
            (None, Some(dim)) => writeln!(text, "# dim = {dim}, fixed by the vectors that are here"),
            (None, None) => writeln!(text, "# dim is fixed by the first valid vector"),
        };
        let _ = writeln!(text, "metric = \"{}\"", self.metric.name());
        let _ = match self.on_invalid {
            Some(_) => writeln!(text, "on_invalid = \"{on_invalid}\""),
            None => writeln!(text, "# on_invalid = \"{on_invalid}\": error where dim is declared, else keep"),
        };
        let _ = write!(
            text,
            "\n[index]\nm = {}\nef_construction = {}\nrecall = {}\nquant = \"{}\"\n\
             exact_below = {}\n\n[limits]\nmax_dim = {}\nmax_k = {}\nmax_query = {}\n",
            self.m,
            self.ef_construction,
            self.recall,
            self.quant.name(),
            self.exact_below,
            self.max_dim,
            self.max_k,
            self.max_query,
        );
        text
    }
}

fn bounded(key: &str, value: Option<i64>, default: u32, low: u32, high: u32) -> Result<u32> {
    let Some(value) = value else { return Ok(default) };
    u32::try_from(value)
        .ok()
        .filter(|value| (low..=high).contains(value))
        .ok_or_else(|| Error::Config(format!("{key} = {value}, want {low} to {high}")))
}

fn checked_recall(value: f64) -> Result<f64> {
    let (low, high) = (Schema::MIN_RECALL, Schema::MAX_RECALL);
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(Error::Config(format!("index.recall = {value}, want {low} to {high}")))
}

fn parse_quant(name: &str) -> Result<Quant> {
    Quant::parse(name).ok_or_else(|| Error::Config(format!("index.quant: '{name}', want none, sq8 or b1")))
}

/// The parser's message with its line number, on one line.
fn located(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_gives_the_defaults_and_rendering_reads_back() {
        assert_eq!(Schema::parse(b"").unwrap(), Schema::default());
        let schema =
            Schema::parse(b"[collection]\ndim = 3\nmetric = \"l2\"\n[index]\nm = 9\n[limits]\nmax_k = 7\n")
                .unwrap();
        assert_eq!((schema.dim, schema.metric, schema.m, schema.max_k), (Some(3), Metric::L2, 9, 7));
        assert_eq!(Schema::parse(schema.render(Some(3)).as_bytes()).unwrap(), schema);
        let undeclared = Schema::default();
        assert_eq!(Schema::parse(undeclared.render(Some(3)).as_bytes()).unwrap(), undeclared);
    }

    #[test]
    fn recall_and_quant_are_read_and_shown() {
        let schema = Schema::parse(b"[index]\nrecall = 0.9\nquant = \"b1\"\n").unwrap();
        assert_eq!((schema.recall, schema.quant), (0.9, Quant::B1));
        assert!(schema.render(None).contains("\nrecall = 0.9\nquant = \"b1\"\n"), "{}", schema.render(None));
        assert_eq!(Schema::parse(schema.render(None).as_bytes()).unwrap(), schema);
    }

    #[test]
    fn unknown_keys_and_values_out_of_bounds_name_themselves() {
        for (text, want) in [
            ("[collection]\ndimm = 3\n", "line 2: unknown field `dimm`"),
            ("[index]\nquant = \"pq\"\n", "index.quant: 'pq', want none, sq8 or b1"),
            ("[index]\nef = 200\n", "line 2: unknown field `ef`"),
            ("[index]\nrecall = 0.4999\n", "index.recall = 0.4999, want 0.5 to 0.999"),
            ("[index]\nrecall = 1.0\n", "index.recall = 1, want 0.5 to 0.999"),
            ("[index]\nrecall = nan\n", "index.recall = NaN, want 0.5 to 0.999"),
            ("[index]\nrecall = \"high\"\n", "line 2: invalid type"),
            ("[indexes]\n", "indexes"),
            ("[collection]\ndim = 0\n", "collection.dim = 0, want 1 to 16384"),
            ("[collection]\ndim = 16385\n", "collection.dim = 16385, want 1 to 16384"),
            ("[collection]\ndim = -1\n", "collection.dim = -1"),
            ("[collection]\nmetric = \"cos\"\n", "cos"),
            ("[limits]\nmax_k = 10001\n", "limits.max_k = 10001, want 1 to 10000"),
            ("[collection", ""),
        ] {
            let message = Schema::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(message.starts_with("config: ") && message.contains(want), "{text}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_declared_dimension_makes_close_strict_unless_told_otherwise() {
        assert_eq!(Schema::default().on_invalid(), OnInvalid::Keep);
        let declared = Schema::default().with_attribute(b"dim", b"4\n").unwrap();
        assert_eq!(declared.on_invalid(), OnInvalid::Error);
        let lenient = Schema { on_invalid: Some(OnInvalid::Keep), ..declared };
        assert_eq!(lenient.on_invalid(), OnInvalid::Keep);
    }

    #[test]
    fn attributes_set_four_keys_and_nothing_else() {
        let schema = Schema::default();
        assert_eq!(schema.with_attribute(b"metric", b"ip").unwrap().metric, Metric::Ip);
        assert_eq!(schema.with_attribute(b"recall", b"0.99\n").unwrap().recall, 0.99);
        assert_eq!(schema.with_attribute(b"quant", b"b1").unwrap().quant, Quant::B1);
        assert!(matches!(schema.with_attribute(b"recall", b"1"), Err(Error::Config(_))));
        assert!(matches!(schema.with_attribute(b"recall", b"most"), Err(Error::Config(_))));
        assert!(matches!(schema.with_attribute(b"quant", b"sq4"), Err(Error::Config(_))));
        assert!(matches!(schema.with_attribute(b"metric", b"dot"), Err(Error::Config(_))));
        assert!(matches!(schema.with_attribute(b"dim", b"x"), Err(Error::Config(_))));
        assert!(matches!(schema.with_attribute(b"count", b"1"), Err(Error::NotPermitted)));
    }
}
