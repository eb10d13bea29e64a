//! How searches in a directory are answered: the plans of its collections, and those that a query leaves out.

use std::sync::Arc;
use std::time::Instant;

use super::Volume;
use super::permission::EVERYBODY;
use super::query::{ALLOWANCE, CATCH_UP, Part};
use super::types::Caller;
use crate::Result;
use crate::collection::{Collection, Filter};
use crate::distance::Metric;
use crate::namespace::Ino;
use crate::search::explain::{Explained, OfCollection};
use crate::search::nearest::{self, Limits, Way};
use crate::search::{Answer, Explanation, Options};

impl Volume {
    /// How a search with these options would be answered in each collection that `base` covers. Nothing is searched
    /// for, so nothing is found, and the answer is not complete. `k` hits would be wanted.
    #[inline(never)]
    pub(super) fn explain_without_a_query(
        &self,
        caller: &Caller,
        base: Ino,
        k: u32,
        options: &Options,
    ) -> Result<Vec<Answer>> {
        let mut answer = Answer {
            k,
            metric: Metric::default(),
            exact: true,
            complete: false,
            pending: 0,
            took_us: 0,
            hits: Vec::new(),
            explain: None,
        };
        let mut collections = Vec::new();
        for (at, collection) in self.covered(caller, base)?.iter().enumerate() {
            let allowed = self.allowed(caller, base, collection)?;
            let filter = Filter { condition: options.condition.clone(), ..Filter::files(allowed) };
            let (begun, limits) = (Instant::now(), Limits::within(ALLOWANCE));
            let explained = loop {
                match nearest::explain(collection, k as usize, options, &filter, limits)? {
                    Ok(explained) => break explained,
                    Err(unknown) => {
                        self.learn_attributes(collection, unknown, begun.elapsed() > CATCH_UP)?;
                    }
                }
                limits.check(Instant::now())?;
            };
            if at == 0 {
                answer.metric = collection.schema().metric;
            }
            answer.exact &= explained.plan == Way::Scan;
            answer.pending += explained.pending;
            if self.is_told_of(caller, base, collection)? {
                collections.push(self.explained(base, collection, Ok(explained))?);
            }
        }
        collections.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        answer.explain = Some(Box::new(Explanation { ran: false, collections }));
        Ok(vec![answer])
    }

    /// How a search for a vector of `dim` elements was answered: `explained` for each of `parts`, and what was left
    /// out.
    #[inline(never)]
    pub(super) fn explanation(
        &self,
        (caller, base): (&Caller, Ino),
        parts: &[Part],
        explained: impl Iterator<Item = Box<Explained>>,
        dim: u32,
    ) -> Result<Box<Explanation>> {
        let mut collections = Vec::new();
        for (part, explained) in parts.iter().zip(explained) {
            if self.is_told_of(caller, base, &part.collection)? {
                collections.push(self.explained(base, &part.collection, Ok(explained))?);
            }
        }
        for collection in self.covered(caller, base)? {
            let is_left_out = parts.iter().all(|part| !Arc::ptr_eq(&part.collection, &collection));
            if is_left_out && self.is_told_of(caller, base, &collection)? {
                let why = if collection.dim() == Some(dim) { "metric" } else { "dimension" };
                collections.push(self.explained(base, &collection, Err(why))?);
            }
        }
        collections.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Box::new(Explanation { ran: true, collections }))
    }

    /// `search` is how the collection is searched, or why it is not.
    fn explained(
        &self,
        base: Ino,
        collection: &Collection,
        search: std::result::Result<Box<Explained>, &'static str>,
    ) -> Result<OfCollection> {
        let below = Filter::files(self.allowed(&EVERYBODY, base, collection)?);
        let covered = match below.is_all(collection.groups()) {
            true => collection.len(),
            false => {
                let rows = collection.rows(&below, &collection.snapshot().reader, &mut || true);
                rows.expect("there is no condition, and nobody stops it").len()
            }
        };
        let (search, left_out) = match search {
            Ok(search) => (Some(search), None),
            Err(why) => (None, Some(why)),
        };
        Ok(OfCollection {
            path: self.directory_path(Ino(collection.root())),
            dim: collection.dim(),
            metric: collection.schema().metric.name(),
            vectors: collection.len(),
            covered,
            left_out,
            search,
        })
    }
}
