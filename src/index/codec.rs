//! Codes of vectors: what a graph's walk compares instead of the vectors themselves.
//!
//! A vector is normalised (cosine), taken relative to the nearest of some [*centers*](super::centers), rotated by a
//! random [`Rotation`] and kept as
//!
//! - [`Quant::Sq8`]: one byte for each coordinate, as a plane of high and a plane of low nibbles. The walk reads the
//!   high plane alone, which halves the bytes of a hop; what is linked to what is decided by both. Vectors of less than 40
//!   elements have the high plane alone, and their links are decided by the vectors, as with signs.
//! - [`Quant::B1`]: the sign of each coordinate.
//! - [`Quant::None`]: not rotated, all 32 bits of every element.
//!
//! After the rotation every coordinate is nearly normal with the same variance, so one fixed grid over
//! +-[`RANGE`] standard deviations suits all vectors of all data, and nothing is learned but the centers.
//!
//! Beside the code a vector has some numbers, its *head*: an *offset*, a *scale* by which integer dot products are
//! multiplied, and the number of its center. The scale is chosen so that the dot product of the code with its own vector
//! comes out exactly, which makes the estimate of any dot product unbiased. A code of two planes has a scale for the first
//! and one for both.
//!
//! **Centers.** A vector x is c + r, and what the code tells is r. For l2 and cosine
//!
//! ```text
//! |q - x|^2 = |q - c|^2 + |r|^2 - 2 <q - c, r>
//! ```
//!
//! and for an inner product, with any number b,
//!
//! ```text
//! -<q, x> = -<q, c> - b <c, r> - <q - b c, r>
//! ```
//!
//! The first term belongs to query and center, the second to the vector: the offset is |r|^2 or -<c, r>. The last is
//! estimated, and errs by a share of |q - c| |r| or |q - b c| |r|. So the query is cut down to integers once for each
//! center, relative to it: within a cluster both factors are as short as the cluster is wide, however far the clusters lie
//! from each other and from 0. For an inner product b takes c out of the query, b = <q, c> / |c|^2, so that q - b c is
//! never longer than q. A [`Probe`] makes such a *side* when it first meets a code of the center; the rotation is linear,
//! so a side takes a subtraction and not a rotation. A walk meets few centers.
//!
//! Two codes of one center are compared with b = 1, by what they have as integers: <q - c, r> is a dot product of two
//! codes. For one of another center a code is taken back to numbers, and is like a query then.
//!
//! **The head** takes 8 bytes. Offset and scale have the 14 highest bits of their mantissas, so they err by 1 / 2^15 of
//! themselves; the grid of bytes errs by .007 / sqrt(dim) of a vector's length, which is more below 50,000 elements. The
//! scale of both planes is nearly a 16th of that of the first: it is kept as the share by which it differs, which is
//! about .1 / sqrt(dim), in 9 bits that lie closer around 0 ([`widen`]). 9 bits are the number of the center.
//!
//! Sources: Gao and Long 2024 (RaBitQ, arXiv:2405.12497) for rotation, signs and the unbiased scale; Gao et al. 2024
//! (arXiv:2409.09913) for more than one bit, both also for codes relative to the center of a cluster; Aguerrebere et al. 2023 (LVQ, arXiv:2304.04759) for two-level codes.
//!
//! **Keys.** A key here orders like the metric's key in [`Query`](super::Query), and for l2 and ip it estimates it.
//! For cosine it estimates twice the key: the squared distance of unit vectors.

use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Quant, centers};
use crate::distance::codes::{
    bit_bytes, dot_bits_each, dot_plane_each, dot_planes, plane_bytes, query_len, read_planes, write_planes,
};
use crate::distance::rotation::Rotation;
use crate::distance::{self, Metric};
use crate::store::rows::{BATCH, Code, Codes};

#[cfg(test)]
mod tests;

/// Standard deviations of a coordinate that the grid of [`Quant::Sq8`] covers on either side. At 3 the 16 steps of the
/// high plane lose least of a normal variable, and the clipped ends cost the low plane little.
const RANGE: f32 = 3.0;
/// Width of a step of the byte grid, in standard deviations.
const STEP: f32 = 2.0 * RANGE / 256.0;
/// Bytes of a head.
const HEAD_BYTES: usize = 8;
/// What stands for zero in bytes and in high nibbles: the byte 128 is zero, and a nibble stands for the middle of its
/// 16 bytes.
const BYTE_ZERO: f32 = 128.0;
const NIBBLE_ZERO: f32 = (128.0 - 7.5) / 16.0;

/// How vectors become codes, and how codes are compared.
#[derive(Debug)]
pub(super) struct Codec {
    quant: Quant,
    metric: Metric,
    rotation: Rotation,
    /// One after the other; there may be none.
    centers: Vec<f32>,
    /// Their rotated differences from the first (l2 and cosine), or themselves rotated (ip).
    rotated_centers: Vec<f32>,
}

/// A vector that codes are compared with.
#[derive(Debug, Default)]
pub(super) struct Probe {
    /// The vector itself, of unit length for cosine: for [`Quant::None`].
    values: Vec<f32>,
    /// The rotated vector, relative to the first center for l2 and cosine. For a code it is made when it is wanted.
    rotated: Vec<f32>,
    is_rotated: bool,
    /// Of a code: its full scale, and its bytes.
    scale: f32,
    bytes: Vec<u8>,
    /// The first `made` are in use.
    sides: Vec<Side>,
    made: usize,
    /// For each center one more than the number of its side, or 0; empty where there is one center at most.
    side_of: Vec<u16>,
}

/// What the codes of one center are compared with.
#[derive(Debug, Default)]
struct Side {
    center: usize,
    /// 8 bits for each coordinate, and their sum.
    coordinates: Vec<i8>,
    sum: f32,
    /// What a key begins with.
    bias: f32,
    /// What an offset is multiplied by.
    stretch: f32,
    /// What a scaled dot product is multiplied by.
    weight: f32,
    /// Of the vector relative to the center. Of a code that is compared with those of its own it is not told.
    length: f32,
}

/// The parts of a code that is being made.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) head: u64,
    pub(super) near: Vec<u8>,
    pub(super) far: Vec<u8>,
    values: Vec<f32>,
    rotated: Vec<f32>,
    bytes: Vec<u8>,
}

impl Codec {
    /// A codec for vectors of `dim` elements. `centers` has `dim` elements for each of at most [`centers::MAX_CENTERS`].
    pub(super) fn new(quant: Quant, metric: Metric, dim: usize, centers: Vec<f32>, seed: u64) -> Self {
        let rotation = Rotation::new(dim, seed);
        let mut rotated_centers = vec![0.0; centers.len()];
        let first = centers.get(..dim).filter(|_| metric != Metric::Ip);
        let mut from_first = vec![0.0; dim];
        for (center, rotated) in centers.chunks_exact(dim).zip(rotated_centers.chunks_exact_mut(dim)) {
            from_first.copy_from_slice(center);
            take_off(first.unwrap_or(&[]), &mut from_first);
            rotation.apply(&from_first, rotated);
        }
        Codec { quant, metric, rotation, centers, rotated_centers }
    }

    pub(super) fn centers(&self) -> &[f32] {
        &self.centers
    }

    fn center(&self, number: usize) -> &[f32] {
        self.centers.chunks_exact(self.dim()).nth(number).unwrap_or(&[])
    }

    fn rotated_center(&self, number: usize) -> &[f32] {
        self.rotated_centers.chunks_exact(self.dim()).nth(number).unwrap_or(&[])
    }

    /// Whether all codes have the same center, or none.
    #[inline]
    fn has_one_center(&self) -> bool {
        self.centers.len() <= self.rotation.dim()
    }

    fn dim(&self) -> usize {
        self.rotation.dim()
    }

    /// Bytes of a code's near and far part.
    pub(super) fn code_bytes(&self) -> (usize, usize) {
        match self.quant {
            Quant::None => (4 * self.dim(), 0),
            Quant::Sq8 => (plane_bytes(self.dim()), if self.has_far() { plane_bytes(self.dim()) } else { 0 }),
            Quant::B1 => (bit_bytes(self.dim()), 0),
        }
    }

    /// The most bytes that a code is to take with its head: .3 of the vector's own (sq8), 16 beside its bits (b1).
    pub(super) fn most_bytes(&self) -> usize {
        match self.quant {
            Quant::None => usize::MAX,
            Quant::Sq8 => 12 * self.dim() / 10,
            Quant::B1 => bit_bytes(self.dim()) + 16,
        }
    }

    /// Whether a code has bytes that the walk does not read. Of few elements two planes and a head take more than a
    /// code may, and the second is left out.
    pub(super) fn has_far(&self) -> bool {
        self.quant == Quant::Sq8 && 2 * plane_bytes(self.dim()) + HEAD_BYTES <= self.most_bytes()
    }

    /// Whether the graph's links can be chosen by codes alone.
    pub(super) fn compares_well(&self) -> bool {
        self.quant == Quant::None || self.has_far()
    }

    /// The key of the metric as a key of this codec.
    pub(super) fn key_from_metric(&self, key: f32) -> f32 {
        if self.metric == Metric::Cosine { 2.0 * key } else { key }
    }

    /// Whether codes are relative to one of several centers, and so err by more or less.
    pub(super) fn has_several_centers(&self) -> bool {
        self.quant != Quant::None && !self.has_one_center()
    }

    /// What the error of a key by near bytes scales with, above 0: of several centers, how long query and vector are
    /// relative to the code's.
    pub(super) fn expected_error(&self, probe: &mut Probe, head: u64) -> f32 {
        let head = Head::unpack(head);
        (self.side(probe, head.center).length * head.scale).max(f32::MIN_POSITIVE)
    }

    fn is_euclidean(&self) -> bool {
        self.metric != Metric::Ip
    }

    /// The vector as it is compared: normalised where the metric wants it.
    fn prepare(&self, vector: &[f32], into: &mut Vec<f32>) {
        into.clear();
        match self.metric {
            Metric::Cosine => {
                let inverse = distance::inverse_norm(vector);
                into.extend(vector.iter().map(|x| x * inverse));
            }
            Metric::Ip | Metric::L2 => into.extend_from_slice(vector),
        }
    }

    /// The squared distance of a vector, as it is compared, from what its code is relative to; 0 where that is the vector
    /// itself. `values` is for the vector.
    pub(super) fn residual(&self, vector: &[f32], values: &mut Vec<f32>) -> f32 {
        if self.quant == Quant::None {
            return 0.0;
        }
        self.prepare(vector, values);
        take_off(self.center(centers::nearest(&self.centers, values)), values);
        distance::dot(values, values)
    }

    /// Makes the code of a vector.
    pub(super) fn encode(&self, vector: &[f32], draft: &mut Draft) {
        let Draft { head, near, far, values, rotated, bytes } = draft;
        self.prepare(vector, values);
        let (near_bytes, far_bytes) = self.code_bytes();
        near.clear();
        near.resize(near_bytes, 0);
        far.clear();
        far.resize(far_bytes, 0);
        if self.quant == Quant::None {
            near.copy_from_slice(values.as_bytes());
            *head = Head::new(0.0, 1.0, 0).pack();
            return;
        }
        let number = centers::nearest(&self.centers, values);
        let center = self.center(number);
        take_off(center, values);
        let along =
            if self.is_euclidean() || center.is_empty() { 0.0 } else { distance::dot(center, values) };
        rotated.resize(self.dim(), 0.0);
        self.rotation.apply(values, rotated);
        let squared = distance::dot(rotated, rotated);
        let offset = if self.is_euclidean() { squared } else { -along };
        // How much of the vector's own square its code finds.
        let unbiased = |found: f32| squared / found;
        match self.quant {
            Quant::B1 => {
                let mut sum = 0.0;
                for (at, x) in rotated.iter().enumerate() {
                    near[at / 8] |= u8::from(*x >= 0.0) << (at % 8);
                    sum += x.abs();
                }
                *head = Head::new(offset, unbiased(sum), number).pack();
            }
            Quant::Sq8 | Quant::None => {
                let per_step = (self.dim() as f32).sqrt() / (squared.sqrt() * STEP);
                bytes.clear();
                let (mut by_nibbles, mut by_bytes) = (0.0, 0.0);
                for x in rotated.iter() {
                    let byte = to_byte(x * per_step);
                    bytes.push(byte);
                    by_nibbles += x * (f32::from(byte >> 4) - NIBBLE_ZERO);
                    by_bytes += x * (f32::from(byte) - BYTE_ZERO);
                }
                far.resize(near_bytes, 0);
                write_planes(bytes, near, far);
                far.truncate(far_bytes);
                let with_one = Head::new(offset, unbiased(by_nibbles), number);
                *head = match self.has_far() {
                    true => with_one.with_full_scale(unbiased(by_bytes)).pack(),
                    false => with_one.pack(),
                };
            }
        }
    }

    /// Prepares `probe` for comparing a vector with codes.
    pub(super) fn probe(&self, vector: &[f32], probe: &mut Probe) {
        self.prepare(vector, &mut probe.values);
        if self.quant == Quant::None {
            return;
        }
        if self.is_euclidean() {
            take_off(self.center(0), &mut probe.values);
        }
        probe.rotated.resize(self.dim(), 0.0);
        self.rotation.apply(&probe.values, &mut probe.rotated);
        probe.is_rotated = true;
        probe.forget_sides(self.center_count());
        if self.has_one_center() {
            self.make_side(probe, 0);
        }
    }

    /// Prepares `probe` for comparing a code with others, as far as codes [compare well](Self::compares_well).
    pub(super) fn probe_code(&self, code: Code<'_>, far: &[u8], probe: &mut Probe) {
        if self.quant == Quant::None {
            probe.values.clear();
            probe.values.extend_from_slice(floats(code.near));
            return;
        }
        let head = Head::unpack(code.head);
        probe.bytes.resize(self.dim(), 0);
        read_planes(code.near, far, &mut probe.bytes);
        probe.scale = head.full_scale();
        probe.is_rotated = false;
        probe.forget_sides(self.center_count());
        // Only a file that was made up has another number.
        let number = if head.center < self.center_count() { head.center } else { 0 };
        let bytes = std::mem::take(&mut probe.bytes);
        let full_scale = probe.scale;
        let side = probe.begin_side(number);
        side.coordinates.clear();
        // The byte 0 is never written, so -128 does not occur.
        side.coordinates.extend(bytes.iter().map(|byte| byte.wrapping_sub(128).cast_signed()));
        side.sum = sum(&side.coordinates);
        side.coordinates.resize(query_len(self.dim()), 0);
        side.stretch = 1.0;
        (side.bias, side.weight) = if self.is_euclidean() {
            (head.offset, 2.0 * full_scale)
        } else {
            let center = self.center(number);
            let squared = if center.is_empty() { 0.0 } else { distance::dot(center, center) };
            (head.offset - squared, full_scale)
        };
        probe.bytes = bytes;
    }

    fn center_count(&self) -> usize {
        self.centers.len() / self.dim()
    }

    /// The side of `probe` for the codes of one center.
    #[inline(always)]
    fn side<'p>(&self, probe: &'p mut Probe, center: usize) -> &'p Side {
        if self.has_one_center() { &probe.sides[0] } else { self.side_of(probe, center) }
    }

    #[inline(never)]
    fn side_of<'p>(&self, probe: &'p mut Probe, center: usize) -> &'p Side {
        match probe.side_of.get(center) {
            Some(0) => {
                self.make_side(probe, center);
                &probe.sides[probe.made - 1]
            }
            Some(&number) => &probe.sides[usize::from(number) - 1],
            // Only a file that was made up has such a number.
            None => self.side_of(probe, 0),
        }
    }

    #[inline(never)]
    fn make_side(&self, probe: &mut Probe, center: usize) {
        if !probe.is_rotated {
            self.rotate_code(probe);
        }
        let rotated = std::mem::take(&mut probe.rotated);
        let mut relative = std::mem::take(&mut probe.values);
        let away = self.rotated_center(center);
        let side = probe.begin_side(center);
        relative.clear();
        if self.is_euclidean() {
            if center == 0 {
                relative.extend_from_slice(&rotated);
            } else {
                relative.extend(rotated.iter().zip(away).map(|(x, c)| x - c));
            }
            side.stretch = 1.0;
        } else if away.is_empty() {
            relative.extend_from_slice(&rotated);
            (side.bias, side.stretch) = (0.0, 0.0);
        } else {
            let along = distance::dot(&rotated, away);
            let share = along / distance::dot(away, away);
            side.stretch = if share.is_finite() { share } else { 0.0 };
            side.bias = -along;
            relative.extend(rotated.iter().zip(away).map(|(x, c)| x - side.stretch * c));
        }
        let step = largest(&relative) / 127.0;
        let per_step = if step > 0.0 && step.is_finite() { 1.0 / step } else { 0.0 };
        let padded = match self.quant {
            Quant::B1 => 8 * bit_bytes(self.dim()),
            Quant::Sq8 | Quant::None => query_len(self.dim()),
        };
        side.coordinates.clear();
        side.coordinates.extend(relative.iter().map(|x| rounded(x * per_step)));
        side.sum = sum(&side.coordinates);
        side.coordinates.resize(padded, 0);
        side.weight = step;
        let squared = distance::dot(&relative, &relative);
        side.length = squared.sqrt();
        if self.is_euclidean() {
            (side.bias, side.weight) = (squared, 2.0 * step);
        }
        (probe.rotated, probe.values) = (rotated, relative);
    }

    /// Takes the code that a probe was made of back to a vector.
    fn rotate_code(&self, probe: &mut Probe) {
        let own = self.rotated_center(probe.sides[0].center);
        let Probe { rotated, bytes, scale, .. } = probe;
        rotated.clear();
        rotated.extend(bytes.iter().zip(own).map(|(&byte, c)| *scale * (f32::from(byte) - BYTE_ZERO) + c));
        probe.is_rotated = true;
    }

    /// The keys of up to [`BATCH`] codes, as the walk wants them: by near bytes only. Never NaN.
    #[inline(always)]
    pub(super) fn near_keys(&self, probe: &mut Probe, heads: &[u64], near: &[&[u8]], keys: &mut [f32]) {
        if self.quant == Quant::None {
            for (key, near) in keys.iter_mut().zip(near) {
                *key = self.float_key(&probe.values, floats(near));
            }
        } else if self.has_one_center() {
            self.keys_of_side(&probe.sides[0], heads, near, keys);
        } else {
            self.keys_by_center(probe, heads, near, keys);
        }
    }

    /// Brings codes of one center together: [`near_keys`](Self::near_keys) compares those that follow each other in one
    /// go.
    #[inline]
    pub(super) fn group(&self, codes: &mut Codes<'_>) {
        if self.has_several_centers() {
            group_by_center(codes);
        }
    }

    /// The same where codes have several centers.
    #[inline(never)]
    fn keys_by_center(&self, probe: &mut Probe, heads: &[u64], near: &[&[u8]], keys: &mut [f32]) {
        let mut from = 0;
        for run in heads.chunk_by(|&head, &next| center_of(head) == center_of(next)) {
            let to = from + run.len();
            let side = self.side_of(probe, center_of(run[0]));
            self.keys_of_side(side, run, &near[from..to], &mut keys[from..to]);
            from = to;
        }
    }

    #[inline(always)]
    fn keys_of_side(&self, side: &Side, heads: &[u64], near: &[&[u8]], keys: &mut [f32]) {
        let n = near.len();
        let mut dots = [0i32; BATCH];
        let (times, minus) = if self.quant == Quant::B1 {
            dot_bits_each(&side.coordinates, near, &mut dots[..n]);
            (2.0, side.sum)
        } else {
            dot_plane_each(&side.coordinates, near, &mut dots[..n]);
            (1.0, NIBBLE_ZERO * side.sum)
        };
        let (bias, stretch) = (side.bias, side.stretch);
        let (times, minus) = (side.weight * times, side.weight * minus);
        for ((key, dot), head) in keys.iter_mut().zip(&dots[..n]).zip(heads) {
            let Head { offset, scale, .. } = Head::unpack(*head);
            let dot = *dot as f32;
            *key = defined(bias + stretch * offset - scale * (times * dot - minus));
        }
    }

    /// The key of one code by all its bytes, as far as codes [compare well](Self::compares_well). Never NaN.
    #[inline(always)]
    pub(super) fn full_key(&self, probe: &mut Probe, code: Code<'_>, far: &[u8]) -> f32 {
        match self.quant {
            Quant::None => self.float_key(&probe.values, floats(code.near)),
            Quant::Sq8 | Quant::B1 => {
                let head = Head::unpack(code.head);
                let side = self.side(probe, head.center);
                let dot = dot_planes(&side.coordinates, code.near, far) as f32;
                let scale = side.weight * head.full_scale();
                defined(side.bias + side.stretch * head.offset - scale * (dot - BYTE_ZERO * side.sum))
            }
        }
    }

    fn float_key(&self, a: &[f32], b: &[f32]) -> f32 {
        let key = match self.metric {
            Metric::Ip => 0.0 - distance::dot(a, b),
            Metric::L2 | Metric::Cosine => distance::l2_squared(a, b),
        };
        defined(key)
    }
}

impl Probe {
    fn forget_sides(&mut self, centers: usize) {
        for side in &self.sides[..self.made] {
            if let Some(side_of) = self.side_of.get_mut(side.center) {
                *side_of = 0;
            }
        }
        self.made = 0;
        self.side_of.resize(if centers > 1 { centers } else { 0 }, 0);
    }

    /// A side whose numbers are still to be set.
    fn begin_side(&mut self, center: usize) -> &mut Side {
        let number = self.made;
        self.made += 1;
        if self.sides.len() == number {
            self.sides.push(Side::default());
        }
        if let Some(side_of) = self.side_of.get_mut(center) {
            *side_of = u16::try_from(self.made).unwrap_or(0);
        }
        let side = &mut self.sides[number];
        side.center = center;
        side
    }
}

/// Brings codes of one center together.
#[inline(never)]
fn group_by_center(codes: &mut Codes<'_>) {
    let mut grouped = 0;
    while let Some(&head) = codes.heads().get(grouped) {
        grouped += 1;
        let mut at = grouped;
        while let Some(&other) = codes.heads().get(at) {
            if center_of(other) == center_of(head) {
                codes.swap(grouped, at);
                grouped += 1;
            }
            at += 1;
        }
    }
}

/// Subtracts a center, unless it is empty.
fn take_off(center: &[f32], vector: &mut [f32]) {
    for (x, center) in vector.iter_mut().zip(center) {
        *x -= center;
    }
}

/// The numbers of a code: see the [module](self).
#[derive(Clone, Copy, Debug)]
struct Head {
    offset: f32,
    /// Of the near bytes. Positive, so that a packed head is no small number.
    scale: f32,
    /// What [`widen`] makes the share by which 16 times the scale of all bytes differs from `scale`.
    differs: i32,
    /// Number of the center.
    center: usize,
}

/// Lowest bits of a float that make room for something else in a packed head.
const SPARE_BITS: u32 = 9;
const SPARE: u32 = (1 << SPARE_BITS) - 1;
/// One more than the largest [`Head::differs`].
const DIFFERS: f32 = (1 << (SPARE_BITS - 1)) as f32;

impl Head {
    fn new(offset: f32, scale: f32, center: usize) -> Self {
        Head { offset: shortened(offset), scale: shortened(positive(scale)), differs: 0, center }
    }

    /// The same with the scale of all bytes of a code of two planes.
    fn with_full_scale(self, scale: f32) -> Self {
        let share = 16.0 * positive(scale) / self.scale - 1.0;
        let root = (2.0 * share.abs()).sqrt().copysign(share);
        #[expect(clippy::cast_possible_truncation, reason = "clamped, and a NaN becomes 0")]
        let differs = (root * DIFFERS).round().clamp(-DIFFERS, DIFFERS - 1.0) as i32;
        Head { differs, ..self }
    }

    /// The scale of all bytes of a code of two planes.
    #[inline]
    fn full_scale(self) -> f32 {
        self.scale * (1.0 / 16.0 + widen(self.differs) * (1.0 / 16.0))
    }

    fn pack(self) -> u64 {
        let differs = self.differs.cast_unsigned() & SPARE;
        let high = u64::from(self.scale.to_bits() | differs) << 32;
        high | u64::from(self.offset.to_bits()) | self.center as u64
    }

    #[inline]
    fn unpack(head: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "each half of 64 bits is 32 bits")]
        let (low, high) = (head as u32, (head >> 32) as u32);
        // Shifted to the top and back, so that its sign comes along.
        let differs = (high << (32 - SPARE_BITS)).cast_signed() >> (32 - SPARE_BITS);
        let (offset, scale) = (f32::from_bits(low & !SPARE), f32::from_bits(high & !SPARE));
        Head { offset, scale, differs, center: center_of(head) }
    }
}

/// The center of a code, by its head.
#[inline]
fn center_of(head: u64) -> usize {
    let [low, high, ..] = head.to_le_bytes();
    usize::from(u16::from_le_bytes([low, high])) & SPARE as usize
}

/// From -.5 to .5, in steps that grow from the middle to the ends.
#[inline]
fn widen(differs: i32) -> f32 {
    let steps = differs as f32;
    steps * steps.abs() * (0.5 / (DIFFERS * DIFFERS))
}

/// The nearest number whose spare bits are 0. Never another sign, and NaN stays NaN.
fn shortened(x: f32) -> f32 {
    if x.is_nan() {
        return f32::NAN;
    }
    // Beyond the largest number this comes to infinity, which has no bits to carry further.
    f32::from_bits((x.to_bits() + (1 << (SPARE_BITS - 1))) & !SPARE)
}

/// A scale as it is kept. That of a vector without length does not matter, for all its coordinates are zero.
fn positive(scale: f32) -> f32 {
    if scale > f32::MIN_POSITIVE { scale } else { f32::MIN_POSITIVE }
}

/// The byte for a coordinate in steps of the grid. Never 0, so that the grid is symmetric.
fn to_byte(steps: f32) -> u8 {
    rounded(if steps.is_nan() { 0.0 } else { steps.clamp(-127.0, 127.0) }).cast_unsigned().wrapping_add(128)
}

/// The integer nearest to `x`, which is within -128..=127; any integer for NaN. Without a call for each number, as
/// rounding otherwise is on CPUs of the baseline.
#[inline]
fn rounded(x: f32) -> i8 {
    // From 2^23 to 2^24 floats are the integers, so the sum is rounded to one: its lowest bits are the answer.
    #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are meant")]
    let rounded = (x + 12_582_912.0).to_bits() as i8;
    rounded
}

/// The largest magnitude.
fn largest(values: &[f32]) -> f32 {
    // Several at a time, so that none waits for the one before.
    let mut lanes = [0.0f32; 16];
    let (groups, rest) = values.as_chunks::<16>();
    let tail = rest.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    for group in groups {
        for (lane, x) in lanes.iter_mut().zip(group) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    lanes.iter().fold(tail, |largest, &lane| largest.max(lane))
}

#[inline]
fn defined(key: f32) -> f32 {
    if key.is_nan() { f32::INFINITY } else { key }
}

fn sum(coordinates: &[i8]) -> f32 {
    coordinates.iter().map(|&x| i32::from(x)).sum::<i32>() as f32
}

#[inline]
fn floats(near: &[u8]) -> &[f32] {
    <[f32]>::ref_from_bytes(near).expect("rows of codes are aligned to 4 bytes, and hold whole floats")
}
