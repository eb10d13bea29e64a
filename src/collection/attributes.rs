//! What is known of a file's attributes: names and values, in one piece of memory.
//!
//! Conditions are about attributes ([`Condition`](super::Condition)), so a collection that has been searched under one
//! keeps those of its files beside them. They are derived state: the catalog has them, the volume reads them when a
//! search meets a file of which they are not known, and tells of each change. A file version keeps what it had when it
//! ends, for the searches that still see it.

use std::sync::{Arc, LazyLock};

use crate::sync::{AtomicU64, Ordering};

/// Bytes of a value that are looked at. What is longer is kept up to one more, which tells that there is more.
pub const VALUE_SEEN: usize = 1024;

/// Most bytes that the attributes of one volume's files may take in memory.
const KEPT_MAX: u64 = 1 << 30;

/// What a record takes beside names and values: itself, two counts, and what the allocator adds to both pieces.
const RECORD_BYTES: u64 = 64;

/// How much memory the attributes of a volume's files take.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: AtomicU64,
}

impl Kept {
    /// Most bytes that it may be.
    pub const LIMIT: u64 = KEPT_MAX;

    /// Bytes of all records, with what the allocator adds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// The attributes of one file.
#[derive(Debug)]
pub struct Attributes {
    /// Of each attribute, by name: the lengths of name and value as `u16`, the name, the value.
    bytes: Box<[u8]>,
    /// Where it is counted; what has no attributes is not.
    kept: Option<Arc<Kept>>,
}

impl Attributes {
    /// Those of a file that has none.
    #[must_use]
    pub fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<Attributes>> =
            LazyLock::new(|| Arc::new(Attributes { bytes: Box::default(), kept: None }));
        Arc::clone(&NONE)
    }

    /// Attributes from pairs of name and value, ordered by name, each name once and at most 255 bytes long. `None`
    /// when all that is kept would take more than [`Kept::LIMIT`].
    #[must_use]
    pub fn new<'a>(
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        kept: &Arc<Kept>,
    ) -> Option<Arc<Self>> {
        let mut bytes = Vec::new();
        for (name, value) in pairs {
            put(&mut bytes, name, value);
        }
        Self::counted(bytes, kept)
    }

    /// The same with another value of one attribute, or without it. `None` as of [`new`](Self::new).
    #[must_use]
    pub fn with(&self, name: &[u8], value: Option<&[u8]>, kept: &Arc<Kept>) -> Option<Arc<Self>> {
        let mut bytes = Vec::with_capacity(self.bytes.len() + name.len() + 4);
        let mut new = value;
        for (other, its) in self.iter() {
            if other >= name
                && let Some(value) = new.take()
            {
                put(&mut bytes, name, value);
            }
            if other != name {
                put(&mut bytes, other, its);
            }
        }
        if let Some(value) = new {
            put(&mut bytes, name, value);
        }
        Self::counted(bytes, kept)
    }

    fn counted(bytes: Vec<u8>, kept: &Arc<Kept>) -> Option<Arc<Self>> {
        if bytes.is_empty() {
            return Some(Self::none());
        }
        let more = bytes.len() as u64 + RECORD_BYTES;
        if kept.bytes.fetch_add(more, Ordering::Relaxed) + more > Kept::LIMIT {
            kept.bytes.fetch_sub(more, Ordering::Relaxed);
            return None;
        }
        Some(Arc::new(Self { bytes: bytes.into(), kept: Some(Arc::clone(kept)) }))
    }

    /// The value of an attribute, cut off behind [`VALUE_SEEN`] bytes and one.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        // In order, so what comes behind the name need not be looked at.
        let (found, value) = self.iter().find(|(other, _)| *other >= name)?;
        (found == name).then_some(value)
    }

    /// Names and values, by name.
    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (name, value);
            let (&[a, b, c, d], after) = rest.split_first_chunk()?;
            (name, rest) = after.split_at(usize::from(u16::from_le_bytes([a, b])));
            (value, rest) = rest.split_at(usize::from(u16::from_le_bytes([c, d])));
            Some((name, value))
        })
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        if let Some(kept) = &self.kept {
            kept.bytes.fetch_sub(self.bytes.len() as u64 + RECORD_BYTES, Ordering::Relaxed);
        }
    }
}

fn put(bytes: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let value = &value[..value.len().min(VALUE_SEEN + 1)];
    for len in [name.len(), value.len()] {
        bytes.extend(u16::try_from(len).expect("names and values have bounds").to_le_bytes());
    }
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_attribute_is_found_and_the_others_stay() {
        let kept = Arc::default();
        let one = Attributes::new([(&b"b"[..], &b"2"[..]), (b"d", b"")], &kept).unwrap();
        assert_eq!((one.get(b"b"), one.get(b"d")), (Some(&b"2"[..]), Some(&b""[..])));
        assert_eq!((one.get(b"a"), one.get(b"c"), one.get(b"e")), (None, None, None));
        for (name, value) in [(b"a", b"x"), (b"b", b"y"), (b"c", b"z"), (b"e", b"w")] {
            let two = one.with(name, Some(value), &kept).unwrap();
            assert_eq!(two.get(name), Some(&value[..]));
            let others = [b"b", b"d"].into_iter().filter(|other| *other != name);
            assert!(others.clone().all(|other| two.get(other) == one.get(other)));
            let three = two.with(name, None, &kept).unwrap();
            assert!(
                others.clone().all(|other| three.get(other) == one.get(other)) && three.get(name).is_none()
            );
        }
        let none = one.with(b"b", None, &kept).unwrap().with(b"d", None, &kept).unwrap();
        assert!(Arc::ptr_eq(&none, &Attributes::none()));
    }

    #[test]
    fn memory_is_counted_while_it_is_taken_and_more_than_the_limit_is_refused() {
        let kept: Arc<Kept> = Arc::default();
        let long = vec![b'x'; 60_000];
        let one = Attributes::new([(&b"a"[..], &long[..])], &kept).unwrap();
        assert_eq!(one.get(b"a").unwrap().len(), VALUE_SEEN + 1);
        let bytes = kept.bytes();
        assert!(bytes > VALUE_SEEN as u64 && bytes < 2 * VALUE_SEEN as u64, "{bytes}");
        kept.bytes.store(Kept::LIMIT - 10, Ordering::Relaxed);
        assert!(one.with(b"b", Some(b"1"), &kept).is_none());
        assert_eq!(kept.bytes(), Kept::LIMIT - 10);
        kept.bytes.store(bytes, Ordering::Relaxed);
        drop(one);
        assert_eq!(kept.bytes(), 0);
    }
}
