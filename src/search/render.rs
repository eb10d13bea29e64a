//! The forms in which answers are shown: JSON, TSV, symbolic link names, attribute lines, records.

use std::fmt::Write as _;

use serde::Serialize;

use super::answer::{Answer, Hit};
use super::explain::Explanation;
use crate::Error;
use crate::format;

/// Version of every JSON answer.
pub const SCHEMA: u32 = 1;

/// Pads binary answers where fewer than `k` rows exist.
pub const NO_ID: u32 = u32::MAX;

/// Longest name of a directory entry, in bytes.
const NAME_MAX: usize = 255;

#[derive(Serialize)]
struct JsonAnswer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<u32>,
    k: u32,
    metric: &'static str,
    exact: bool,
    complete: bool,
    pending: u64,
    took_us: u64,
    hits: Vec<JsonHit<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<&'a Explanation>,
}

#[derive(Serialize)]
struct JsonHit<'a> {
    rank: usize,
    path: std::borrow::Cow<'a, str>,
    row: u32,
    id: u32,
    distance: f32,
    score: f32,
}

#[derive(Serialize)]
struct JsonAnswers<'a> {
    schema: u32,
    results: Vec<JsonAnswer<'a>>,
}

#[derive(Serialize)]
struct JsonFailure {
    schema: u32,
    error: JsonError,
}

#[derive(Serialize)]
struct JsonError {
    code: &'static str,
    message: String,
}

fn json_answer(answer: &Answer, schema: Option<u32>) -> JsonAnswer<'_> {
    let hits = answer.hits.iter().enumerate().map(|(i, hit)| JsonHit {
        rank: i + 1,
        // JSON is UTF-8: other bytes of a name are shown as the replacement character.
        path: String::from_utf8_lossy(&hit.path),
        row: hit.row,
        id: hit.id,
        distance: hit.distance,
        score: hit.score,
    });
    JsonAnswer {
        schema,
        k: answer.k,
        metric: answer.metric.name(),
        exact: answer.exact,
        complete: answer.complete,
        pending: answer.pending,
        took_us: answer.took_us,
        hits: hits.collect(),
        explain: answer.explain.as_deref(),
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("answers have string keys only");
    bytes.push(b'\n');
    bytes
}

/// `results.json`, one line: of one query its hits, of several a `results` list.
#[must_use]
#[inline(never)]
pub fn json(answers: &[Answer]) -> Vec<u8> {
    match answers {
        [answer] => line(&json_answer(answer, Some(SCHEMA))),
        _ => {
            let results = answers.iter().map(|answer| json_answer(answer, None)).collect();
            line(&JsonAnswers { schema: SCHEMA, results })
        }
    }
}

/// The line that stands for an answer where there is none.
#[must_use]
#[inline(never)]
pub fn json_error(error: &Error) -> Vec<u8> {
    line(&JsonFailure { schema: SCHEMA, error: JsonError { code: error.code(), message: error.to_string() } })
}

/// `results.tsv`: a header line, then `query rank distance score path row id`.
#[must_use]
pub fn tsv(answers: &[Answer]) -> Vec<u8> {
    let mut out = b"query\trank\tdistance\tscore\tpath\trow\tid\n".to_vec();
    for (query, answer) in answers.iter().enumerate() {
        for (i, hit) in answer.hits.iter().enumerate() {
            out.extend(format!("{query}\t{}\t{}\t{}\t", i + 1, hit.distance, hit.score).bytes());
            escape_into(&mut out, &hit.path);
            out.extend(format!("\t{}\t{}\n", hit.row, hit.id).bytes());
        }
    }
    out
}

/// A path in a line-oriented answer: tab, newline and backslash are escaped, other bytes are as they are.
pub fn escape_into(out: &mut Vec<u8>, path: &[u8]) {
    for &byte in path {
        match byte {
            b'\t' => out.extend(b"\\t"),
            b'\n' => out.extend(b"\\n"),
            b'\\' => out.extend(b"\\\\"),
            _ => out.push(byte),
        }
    }
}

/// A path with its row where the file has several: `big.npy#17`.
fn path_and_row(hit: &Hit) -> Vec<u8> {
    let mut path = hit.path.to_vec();
    if hit.multi {
        path.extend(format!("#{}", hit.row).bytes());
    }
    path
}

/// The value of `user.vexfs.similar`: lines `distance<TAB>path`, nearest first, whole lines up to `limit` bytes.
#[must_use]
pub fn attribute(answer: &Answer, limit: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for hit in &answer.hits {
        let whole = out.len();
        out.extend(format!("{}\t", hit.distance).bytes());
        escape_into(&mut out, &path_and_row(hit));
        out.push(b'\n');
        if out.len() > limit {
            out.truncate(whole);
            break;
        }
    }
    out
}

/// The name of a hit's symbolic link: `0001_0.0312_b.npy`. The rank makes it unique and sortable; a file name
/// that would not fit is cut at its front, so that its suffix stays.
#[must_use]
pub fn link_name(rank: usize, hit: &Hit) -> Vec<u8> {
    let mut name = String::new();
    let _ = write!(name, "{rank:04}_{:.4}_", hit.distance);
    let mut name = name.into_bytes();
    let path = path_and_row(hit);
    let base = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let room = NAME_MAX - name.len();
    name.extend(&base[base.len().saturating_sub(room)..]);
    name
}

/// For each answer `k` ids and distances, padded with [`NO_ID`] and infinity.
fn padded(answers: &[Answer], k: usize) -> impl Iterator<Item = (u32, f32)> {
    answers.iter().flat_map(move |answer| {
        let hits = answer.hits.iter().map(|hit| (hit.id, hit.distance));
        hits.chain(std::iter::repeat((NO_ID, f32::INFINITY))).take(k)
    })
}

/// `N x k` records of (u32 id, f32 distance), little-endian, padded with [`NO_ID`] and infinity.
#[must_use]
#[inline(never)]
pub fn records(answers: &[Answer], k: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(answers.len() * k * 8);
    for (id, distance) in padded(answers, k) {
        out.extend(id.to_le_bytes());
        out.extend(distance.to_le_bytes());
    }
    out
}

/// `ids.ivecs`: for each query `k` ids, padded with [`NO_ID`], which reads as -1.
#[must_use]
pub fn ids(answers: &[Answer], k: u32) -> Vec<u8> {
    format::ivecs(k, &padded(answers, k as usize).map(|(id, _)| id).collect::<Vec<_>>())
}

/// `distances.fvecs`: for each query `k` distances, padded with infinity.
#[must_use]
pub fn distances(answers: &[Answer], k: u32) -> Vec<u8> {
    format::fvecs(k, &padded(answers, k as usize).map(|(_, distance)| distance).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distance::Metric;

    fn answer(paths: &[&[u8]]) -> Answer {
        let hit = |(i, path): (usize, &&[u8])| Hit {
            path: (*path).into(),
            row: u32::try_from(i).unwrap(),
            multi: i > 0,
            id: 7,
            distance: 0.1,
            score: 0.9,
        };
        Answer {
            k: 10,
            metric: Metric::Cosine,
            exact: false,
            complete: true,
            pending: 0,
            took_us: 143,
            hits: paths.iter().enumerate().map(hit).collect(),
            explain: None,
        }
    }

    #[test]
    fn json_has_one_shape_for_one_query_and_a_list_for_several() {
        let one = String::from_utf8(json(&[answer(&[b"b.npy"])])).unwrap();
        assert_eq!(
            one,
            "{\"schema\":1,\"k\":10,\"metric\":\"cosine\",\"exact\":false,\"complete\":true,\"pending\":0,\
             \"took_us\":143,\"hits\":[{\"rank\":1,\"path\":\"b.npy\",\"row\":0,\"id\":7,\"distance\":0.1,\
             \"score\":0.9}]}\n"
        );
        let two: serde_json::Value = serde_json::from_slice(&json(&[answer(&[]), answer(&[])])).unwrap();
        assert_eq!(two["schema"], 1);
        assert_eq!(two["results"].as_array().unwrap().len(), 2);
        assert!(two["results"][0].get("schema").is_none());
    }

    #[test]
    fn a_hostile_name_stays_inside_its_line_and_its_link_name_inside_255_bytes() {
        let long = [&[b'x'; 300][..], b".f32"].concat();
        let answer = answer(&[b"a\tb\nc\\.f32", &long]);
        assert_eq!(attribute(&answer, 25), b"0.1\ta\\tb\\nc\\\\.f32\n");
        assert_eq!(tsv(std::slice::from_ref(&answer)).iter().filter(|&&byte| byte == b'\n').count(), 3);
        let name = link_name(2, &answer.hits[1]);
        assert_eq!(name.len(), 255);
        assert!(name.starts_with(b"0002_0.1000_x") && name.ends_with(b".f32#1"));
    }

    #[test]
    fn records_are_padded_to_k() {
        let bytes = records(&[answer(&[b"a"])], 2);
        assert_eq!(bytes[..4], 7u32.to_le_bytes());
        assert_eq!(bytes[4..8], 0.1f32.to_le_bytes());
        assert_eq!(bytes[8..12], NO_ID.to_le_bytes());
        assert_eq!(bytes[12..], f32::INFINITY.to_le_bytes());
    }
}
