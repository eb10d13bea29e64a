//! What was found damaged while the store is open: kept for whoever asks how it is.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::Error;

/// Most places that are kept; more are counted.
const KEPT: usize = 1000;

/// Places that were found damaged.
#[derive(Debug, Default)]
pub(super) struct DamageLog(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    /// File and offset to what is wrong there.
    kept: BTreeMap<(String, u64), String>,
    more: u64,
}

impl DamageLog {
    /// Keeps what is damage of `error`, and hands it on.
    pub(super) fn note(&self, error: Error) -> Error {
        if let Error::Corrupt { file, offset, what } = &error {
            let mut places = self.0.lock();
            let place = (file.clone(), *offset);
            let is_new = !places.kept.contains_key(&place);
            if is_new && places.kept.len() < KEPT {
                tracing::error!(file, offset, what, "damage");
                places.kept.insert(place, what.clone());
            } else if is_new {
                places.more += 1;
            }
        }
        error
    }

    /// The places, in order: file, offset, what is wrong; and how many more there were.
    pub(super) fn list(&self) -> (Vec<(String, u64, String)>, u64) {
        let places = self.0.lock();
        let kept = places.kept.iter().map(|((file, offset), what)| (file.clone(), *offset, what.clone()));
        (kept.collect(), places.more)
    }
}
