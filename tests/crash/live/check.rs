//! What a mounted store shows: its files, and whether searches say what the files say.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::Random;
use super::load::{DIM, ask, rows_of};
use super::model::{Seen, SeenFile, is_vector};

/// How far a distance in f32 may be from the one in f64.
const TOLERANCE: f64 = 1e-4;

/// Everything in a client's directory. One that is not there is empty.
pub(super) fn capture(dir: &Path) -> io::Result<Seen> {
    let mut seen = Seen::default();
    match capture_into(dir, "", &mut seen) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && seen.files.is_empty() => Ok(Seen::default()),
        captured => captured.map(|()| seen),
    }
}

fn capture_into(dir: &Path, prefix: &str, seen: &mut Seen) -> io::Result<()> {
    let listed = |error: io::Error| io::Error::new(error.kind(), format!("listing {prefix:?}: {error}"));
    for entry in fs::read_dir(dir).map_err(listed)? {
        let entry = entry.map_err(listed)?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            capture_into(&entry.path(), &format!("{path}/"), seen)?;
            seen.dirs.push(path);
            continue;
        }
        let attribute = |name| {
            xattr::get(entry.path(), name)
                .map_err(|error| io::Error::new(error.kind(), format!("{name} of {path}: {error}")))
        };
        let status = attribute("user.vexfs.status")?.unwrap_or_default();
        let file = SeenFile {
            content: fs::read(entry.path()),
            note: attribute("user.note")?,
            status: String::from_utf8_lossy(&status).into_owned(),
        };
        seen.files.insert(path, file);
    }
    Ok(())
}

/// A row that a search can return.
struct Row {
    path: String,
    index: u64,
    vector: Vec<f32>,
}

/// Compares what searches in `dir` return with the content of its files: every whole vector is found, nothing else,
/// at its distance.
///
/// # Errors
///
/// What differs.
pub(super) fn searches_agree(dir: &Path, seen: &Seen, random: &mut Random) -> Result<(), String> {
    let rows = searchable(seen)?;
    if seen.files.is_empty() && !dir.exists() {
        return Ok(());
    }
    let stats = fs::read(dir.join(".vexfs/stats.json")).map_err(|error| format!("stats.json: {error}"))?;
    let stats: Value = serde_json::from_slice(&stats).map_err(|error| format!("stats.json: {error}"))?;
    if stats["count"] != rows.len() {
        return Err(format!("the collection counts {} rows, the files have {}", stats["count"], rows.len()));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let mut found = 0;
    const QUERIES: usize = 3;
    for _ in 0..QUERIES {
        let query: Vec<f32> = (0..DIM).map(|_| random.value()).collect();
        let answer = |exact: bool| -> Result<Value, String> {
            let mut request = json!({"vector": query, "k": 10});
            if exact {
                request["exact"] = true.into();
            }
            ask(dir, &request).map_err(|error| format!("search: {error}"))
        };
        let exact = answer(true)?;
        compare(&exact, &query, &rows)?;
        let ids = |answer: &Value| -> Vec<(String, u64)> {
            answer["hits"].as_array().into_iter().flatten().filter_map(place).collect()
        };
        let truth = ids(&exact);
        let by_default = ids(&answer(false)?);
        if by_default.len() != truth.len() {
            return Err(format!("{} hits by default, {} exactly", by_default.len(), truth.len()));
        }
        found += by_default.iter().filter(|hit| truth.contains(hit)).count();
    }
    let wanted = QUERIES * rows.len().min(10);
    if found * 10 < wanted * 7 {
        return Err(format!("{found} of the {wanted} nearest found by default"));
    }
    Ok(())
}

/// The rows of every file that says that it is searched. A whole vector says so, and nothing else does.
fn searchable(seen: &Seen) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for (path, file) in seen.files.iter().filter(|(path, _)| is_vector(path)) {
        let bytes = match (&file.content, file.is_searched()) {
            (Ok(bytes), _) => bytes,
            (Err(_), false) => continue,
            (Err(error), true) => return Err(format!("{path}: {error}, and searches return it")),
        };
        match (rows_of(path, bytes), file.is_searched()) {
            (Some(vectors), true) => {
                let vectors = (0..).zip(vectors);
                rows.extend(vectors.map(|(index, vector)| Row { path: path.clone(), index, vector }));
            }
            (None, false) => {}
            (Some(_), false) => return Err(format!("{path}: a whole vector with status {:?}", file.status)),
            (None, true) => return Err(format!("{path}: {} bytes, half a vector, searched", bytes.len())),
        }
    }
    Ok(rows)
}

fn place(hit: &Value) -> Option<(String, u64)> {
    Some((hit["path"].as_str()?.to_owned(), hit["row"].as_u64()?))
}

fn compare(answer: &Value, query: &[f32], rows: &[Row]) -> Result<(), String> {
    let mut wanted: Vec<f64> = rows.iter().map(|row| cosine(query, &row.vector)).collect();
    wanted.sort_unstable_by(f64::total_cmp);
    wanted.truncate(10);
    let hits = answer["hits"].as_array().ok_or_else(|| format!("the search answered {answer}"))?;
    if hits.len() != wanted.len() {
        return Err(format!("{} hits, {} wanted", hits.len(), wanted.len()));
    }
    for (hit, wanted) in hits.iter().zip(&wanted) {
        let row = place(hit)
            .and_then(|place| rows.iter().find(|row| (&row.path, row.index) == (&place.0, place.1)));
        let row = row.ok_or_else(|| format!("the hit {hit} is no row of a file"))?;
        let distance = hit["distance"].as_f64().unwrap_or(f64::NAN);
        let true_distance = cosine(query, &row.vector);
        let agrees = |other: f64| (distance - other).abs() <= TOLERANCE;
        if !agrees(true_distance) || !agrees(*wanted) {
            return Err(format!("the hit {hit} is at {true_distance}, the one of its rank at {wanted}"));
        }
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
