//! The choice of a node's links among candidates (algorithm 4): near, and each in a direction of its own.

use super::nodes::NodeId;
use super::search::View;
use crate::distance::{self, Metric};
use crate::index::codec::Probe;
use crate::index::ranked::Ranked;
use crate::index::{Query, VectorSource};
use crate::store::rows::Code;

/// A node's links are chosen with what is here. Keep it and use it again.
#[derive(Debug, Default)]
pub(super) struct Selector {
    /// The base of [`Selector::rank`].
    base: Probe,
    /// Those chosen, each ready to be compared with more candidates.
    chosen: Vec<Probe>,
    /// Vectors in the place of codes that do not compare well.
    vectors: Vec<Vec<f32>>,
    /// What the keys of each lack to distances; see [`Space::lack`].
    lacks: Vec<f32>,
    /// The same of the base.
    base_lack: f32,
    decode: Vec<f32>,
    /// What was chosen, nearest first.
    pub(super) kept: Vec<Ranked>,
    /// Candidates with their keys from the base.
    pub(super) candidates: Vec<Ranked>,
}

/// What links are chosen by: full codes where they tell enough, else the vectors.
pub(super) struct Space<'s, S: ?Sized> {
    pub(super) view: View<'s>,
    pub(super) source: &'s S,
    pub(super) metric: Metric,
}

impl<S: ?Sized> Clone for Space<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: ?Sized> Copy for Space<'_, S> {}

impl<S: VectorSource + ?Sized> Space<'_, S> {
    /// A hint that a node is compared soon.
    #[inline]
    fn prefetch(&self, id: NodeId) {
        if self.view.codec.compares_well() {
            self.view.nodes.codes.prefetch(id.0);
        } else if let Some(row) = self.view.nodes.row(id, self.view.guard) {
            self.source.prefetch(row);
        }
    }

    fn vector<'v>(&'v self, id: NodeId, decode: &'v mut Vec<f32>) -> Option<&'v [f32]> {
        decode.resize(self.source.dim(), 0.0);
        self.source.vector(self.view.nodes.row(id, self.view.guard)?, decode)
    }

    /// Makes a node one that others are compared with. False if its code or vector is gone.
    fn take(&self, id: NodeId, probe: &mut Probe, vector: &mut Vec<f32>, decode: &mut Vec<f32>) -> bool {
        let codec = self.view.codec;
        if !codec.compares_well() {
            let Some(from) = self.vector(id, decode) else { return false };
            vector.clear();
            vector.extend_from_slice(from);
            return true;
        }
        let Some((code, far)) = self.code(id) else { return false };
        codec.probe_code(code, far, probe);
        true
    }

    /// The code of a node with its far bytes; `None` if either is gone or damaged.
    #[inline]
    fn code(&self, id: NodeId) -> Option<(Code<'_>, &[u8])> {
        let View { nodes, codec, guard } = self.view;
        let code = nodes.codes.get(id.0, guard)?;
        let far = if codec.code_bytes().1 > 0 { nodes.codes.far(id.0, guard)? } else { &[] };
        Some((code, far))
    }

    /// Key of a node from one that was taken.
    #[inline]
    fn key(&self, probe: &mut Probe, vector: &[f32], id: NodeId, decode: &mut Vec<f32>) -> Option<f32> {
        let View { nodes, codec, guard } = self.view;
        if codec.compares_well() {
            let (code, far) = self.code(id)?;
            return Some(codec.full_key(probe, code, far));
        }
        decode.resize(self.source.dim(), 0.0);
        let row = nodes.row(id, guard)?;
        Query::new(self.metric, vector).key(self.source, row, decode).map(|key| codec.key_from_metric(key))
    }

    /// What the keys from a node that was taken lack to distances, apart from what those of one other node lack alike:
    /// half of its squared length where the metric is an inner product, nothing where it is a distance.
    ///
    /// By the product alone every vector is nearer to a long one than to those around it. The long ones would cover all
    /// the others, and no list would hold anything else.
    fn lack(&self, probe: &mut Probe, vector: &[f32], id: NodeId, decode: &mut Vec<f32>) -> f32 {
        match self.metric {
            Metric::Ip => self.key(probe, vector, id, decode).map_or(0.0, |key| -key / 2.0),
            Metric::L2 | Metric::Cosine => 0.0,
        }
    }
}

impl Selector {
    /// Replaces the keys of `candidates`, which are from the walk, by those from `probe` or `vector` by all that is
    /// known of them, and sorts them. What is gone is left out.
    pub(super) fn rerank<S: VectorSource + ?Sized>(
        &mut self,
        space: Space<'_, S>,
        probe: &mut Probe,
        vector: &[f32],
        found: impl Iterator<Item = u32>,
    ) {
        self.compare(space, probe, vector, found);
        self.base_lack = match space.metric {
            Metric::Ip => distance::dot(vector, vector) / 2.0,
            Metric::L2 | Metric::Cosine => 0.0,
        };
    }

    fn compare<S: VectorSource + ?Sized>(
        &mut self,
        space: Space<'_, S>,
        probe: &mut Probe,
        vector: &[f32],
        found: impl Iterator<Item = u32>,
    ) {
        self.candidates.clear();
        for node in found {
            space.prefetch(NodeId(node));
            self.candidates.push(Ranked::new(0.0, node));
        }
        let decode = &mut self.decode;
        self.candidates.retain_mut(|candidate| {
            let node = candidate.number();
            let key = space.key(probe, vector, NodeId(node), decode);
            *candidate = Ranked::new(key.unwrap_or(f32::INFINITY), node);
            key.is_some()
        });
        self.candidates.sort_unstable();
    }

    /// Fills `candidates` with `others` by their keys from node `base`. False if that is gone.
    pub(super) fn rank<S: VectorSource + ?Sized>(
        &mut self,
        space: Space<'_, S>,
        base: NodeId,
        others: impl Iterator<Item = u32>,
    ) -> bool {
        let mut probe = std::mem::take(&mut self.base);
        let mut vector = self.vectors.pop().unwrap_or_default();
        let there = space.take(base, &mut probe, &mut vector, &mut self.decode);
        if there {
            self.compare(space, &mut probe, &vector, others);
            self.base_lack = space.lack(&mut probe, &vector, base, &mut self.decode);
        }
        self.base = probe;
        self.vectors.push(vector);
        there
    }

    /// Chooses at most `max` of `candidates` (sorted, with their keys from the base) into `kept`: one is left out when
    /// it is nearer to one already kept than to the base, for it can be reached through that; for an inner product, when
    /// it is so by the product and by distance. Those in `tree` are always kept and not counted.
    ///
    /// Of candidates equidistant from the base and each other one is left out too: those are copies of one vector,
    /// and lists full of copies would be a place that no walk leaves.
    pub(super) fn choose<S: VectorSource + ?Sized>(&mut self, space: Space<'_, S>, max: usize, tree: &[u32]) {
        let Selector { chosen, vectors, lacks, base_lack, decode, kept, candidates, .. } = self;
        kept.clear();
        lacks.clear();
        let mut counted = 0;
        for &candidate in candidates.iter() {
            let id = NodeId(candidate.number());
            let pinned = tree.contains(&candidate.number());
            if !pinned && counted == max {
                continue;
            }
            let covers = |(at, kept): (usize, &Ranked)| {
                let key = space.key(&mut chosen[at], vectors.get(at).map_or(&[], Vec::as_slice), id, decode);
                key.is_some_and(|key| {
                    let is_nearer = key < candidate.key() && key + lacks[at] < candidate.key() + *base_lack;
                    is_nearer || key == candidate.key() && kept.key() == key
                })
            };
            if !pinned && kept.iter().enumerate().any(covers) {
                continue;
            }
            let at = kept.len();
            if chosen.len() == at {
                chosen.push(Probe::default());
            }
            if vectors.len() == at {
                vectors.push(Vec::new());
            }
            if space.take(id, &mut chosen[at], &mut vectors[at], decode) {
                lacks.push(space.lack(&mut chosen[at], &vectors[at], id, decode));
                kept.push(candidate);
                counted += usize::from(!pinned);
            }
        }
    }
}
