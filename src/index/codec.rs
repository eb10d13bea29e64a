//! Codes of vectors: what a graph's walk compares instead of the vectors themselves.
//!
//! A vector is normalised (cosine), taken relative to a *center* (l2 and cosine), rotated by a random
//! [`Rotation`] and kept as
//!
//! - [`Quant::Sq8`]: one byte for each coordinate, as a plane of high and a plane of low nibbles. The walk reads the
//!   high plane alone, which halves the bytes of a hop; what is linked to what is decided by both.
//! - [`Quant::B1`]: the sign of each coordinate.
//! - [`Quant::None`]: not rotated, all 32 bits of every element.
//!
//! After the rotation every coordinate is nearly normal with the same variance, so one fixed grid over
//! +-[`RANGE`] standard deviations suits all vectors of all data, and nothing is learned but the center.
//!
//! The query keeps 8 bits per coordinate. Beside the code a vector has two numbers: an *offset*, the square of its
//! length (l2 and cosine; else 0), and a *scale* by which the integer dot product is multiplied. The scale is chosen
//! so that the dot product of the code with its own vector comes out exactly, which makes the estimate of any dot
//! product unbiased.
//!
//! Sources: Gao and Long 2024 (RaBitQ, arXiv:2405.12497) for rotation, signs and the unbiased scale; Gao et al. 2024
//! (arXiv:2409.09913) for more than one bit; Aguerrebere et al. 2023 (LVQ, arXiv:2304.04759) for two-level codes.
//!
//! **Keys.** A key here orders like the metric's key in [`Query`](super::Query), and for l2 and ip it estimates it.
//! For cosine it estimates twice the key: the squared distance of unit vectors.

use zerocopy::{FromBytes as _, IntoBytes as _};

use super::Quant;
use crate::distance::codes::{
    bit_bytes, dot_bits_each, dot_plane_each, dot_planes, plane_bytes, query_len, read_planes, write_planes,
};
use crate::distance::rotation::Rotation;
use crate::distance::{self, Metric};
use crate::store::rows::{BATCH, Code};

#[cfg(test)]
mod tests;

/// Standard deviations of a coordinate that the grid of [`Quant::Sq8`] covers on either side. At 3 the 16 steps of the
/// high plane lose least of a normal variable, and the clipped ends cost the low plane little.
const RANGE: f32 = 3.0;
/// Width of a step of the byte grid, in standard deviations.
const STEP: f32 = 2.0 * RANGE / 256.0;
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
    /// Nothing, or an element for each of the vectors'.
    center: Vec<f32>,
}

/// A vector that codes are compared with.
#[derive(Debug, Default)]
pub(super) struct Probe {
    /// The vector itself, of unit length for cosine: for [`Quant::None`].
    values: Vec<f32>,
    /// 8 bits for each coordinate, and their sum.
    coordinates: Vec<i8>,
    sum: f32,
    /// What a key begins with.
    bias: f32,
    /// What a scaled dot product is multiplied by.
    weight: f32,
    rotated: Vec<f32>,
    bytes: Vec<u8>,
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
    /// A codec for vectors of `dim` elements. `center` has none or as many; ip has no use for it.
    pub(super) fn new(quant: Quant, metric: Metric, dim: usize, center: Vec<f32>, seed: u64) -> Self {
        Codec { quant, metric, rotation: Rotation::new(dim, seed), center }
    }

    pub(super) fn center(&self) -> &[f32] {
        &self.center
    }

    fn dim(&self) -> usize {
        self.rotation.dim()
    }

    /// Bytes of a code's near and far part.
    pub(super) fn code_bytes(&self) -> (usize, usize) {
        match self.quant {
            Quant::None => (4 * self.dim(), 0),
            Quant::Sq8 => (plane_bytes(self.dim()), plane_bytes(self.dim()) + 4),
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

    /// Whether a code has bytes that the walk does not read.
    pub(super) fn has_far(&self) -> bool {
        self.quant == Quant::Sq8
    }

    /// Whether the graph's links can be chosen by codes alone.
    pub(super) fn compares_well(&self) -> bool {
        self.quant != Quant::B1
    }

    /// The key of the metric as a key of this codec.
    pub(super) fn key_from_metric(&self, key: f32) -> f32 {
        if self.metric == Metric::Cosine { 2.0 * key } else { key }
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

    /// Takes the center off a prepared vector and rotates it; returns its squared length.
    fn rotate(&self, values: &mut [f32], rotated: &mut Vec<f32>) -> f32 {
        for (x, center) in values.iter_mut().zip(&self.center) {
            *x -= center;
        }
        rotated.resize(self.dim(), 0.0);
        self.rotation.apply(values, rotated);
        distance::dot(rotated, rotated)
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
            *head = pack(0.0, 1.0);
            return;
        }
        let squared = self.rotate(values, rotated);
        let offset = if self.is_euclidean() { squared } else { 0.0 };
        // How much of the vector's own square its code finds.
        let unbiased = |found: f32| squared / found;
        match self.quant {
            Quant::B1 => {
                let mut sum = 0.0;
                for (at, x) in rotated.iter().enumerate() {
                    near[at / 8] |= u8::from(*x >= 0.0) << (at % 8);
                    sum += x.abs();
                }
                *head = pack(offset, unbiased(sum));
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
                let (low, scale) = far.split_at_mut(near_bytes);
                write_planes(bytes, near, low);
                scale.copy_from_slice(&positive(unbiased(by_bytes)).to_le_bytes());
                *head = pack(offset, unbiased(by_nibbles));
            }
        }
    }

    /// Prepares `probe` for comparing a vector with codes.
    pub(super) fn probe(&self, vector: &[f32], probe: &mut Probe) {
        self.prepare(vector, &mut probe.values);
        if self.quant == Quant::None {
            return;
        }
        let squared = self.rotate(&mut probe.values, &mut probe.rotated);
        let step = largest(&probe.rotated) / 127.0;
        let per_step = if step > 0.0 && step.is_finite() { 1.0 / step } else { 0.0 };
        let padded = match self.quant {
            Quant::B1 => 8 * bit_bytes(self.dim()),
            Quant::Sq8 | Quant::None => query_len(self.dim()),
        };
        probe.coordinates.clear();
        probe.coordinates.extend(probe.rotated.iter().map(|x| rounded(x * per_step)));
        probe.sum = sum(&probe.coordinates);
        probe.coordinates.resize(padded, 0);
        probe.set(self.is_euclidean(), squared, step);
    }

    /// Prepares `probe` for comparing a code with others, as far as codes [compare well](Self::compares_well).
    pub(super) fn probe_code(&self, code: Code<'_>, far: &[u8], probe: &mut Probe) {
        match self.quant {
            Quant::None => {
                probe.values.clear();
                probe.values.extend_from_slice(floats(code.near));
            }
            Quant::Sq8 | Quant::B1 => {
                let (low, scale) = split_far(far, code.near.len());
                probe.bytes.resize(self.dim(), 0);
                read_planes(code.near, low, &mut probe.bytes);
                probe.coordinates.clear();
                // The byte 0 is never written, so -128 does not occur.
                probe.coordinates.extend(probe.bytes.iter().map(|byte| byte.wrapping_sub(128).cast_signed()));
                probe.sum = sum(&probe.coordinates);
                probe.coordinates.resize(query_len(self.dim()), 0);
                let (offset, _) = unpack(code.head);
                probe.set(self.is_euclidean(), offset, scale);
            }
        }
    }

    /// The keys of up to [`BATCH`] codes, as the walk wants them: by near bytes only. Never NaN.
    #[inline]
    pub(super) fn near_keys(&self, probe: &Probe, heads: &[u64], near: &[&[u8]], keys: &mut [f32]) {
        let n = near.len();
        let mut dots = [0i32; BATCH];
        let (times, minus) = match self.quant {
            Quant::None => {
                for (key, near) in keys.iter_mut().zip(near) {
                    *key = self.float_key(&probe.values, floats(near));
                }
                return;
            }
            Quant::Sq8 => {
                dot_plane_each(&probe.coordinates, near, &mut dots[..n]);
                (1.0, NIBBLE_ZERO * probe.sum)
            }
            Quant::B1 => {
                dot_bits_each(&probe.coordinates, near, &mut dots[..n]);
                (2.0, probe.sum)
            }
        };
        for ((key, dot), head) in keys.iter_mut().zip(&dots[..n]).zip(heads) {
            let (offset, scale) = unpack(*head);
            let dot = *dot as f32;
            *key = defined(probe.bias + offset - probe.weight * scale * (times * dot - minus));
        }
    }

    /// The key of one code by all its bytes, as far as codes [compare well](Self::compares_well). Never NaN.
    #[inline]
    pub(super) fn full_key(&self, probe: &Probe, code: Code<'_>, far: &[u8]) -> f32 {
        match self.quant {
            Quant::None => self.float_key(&probe.values, floats(code.near)),
            Quant::Sq8 | Quant::B1 => {
                let (low, scale) = split_far(far, code.near.len());
                let (offset, _) = unpack(code.head);
                let dot = dot_planes(&probe.coordinates, code.near, low) as f32;
                defined(probe.bias + offset - probe.weight * scale * (dot - BYTE_ZERO * probe.sum))
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
    fn set(&mut self, euclidean: bool, squared: f32, step: f32) {
        (self.bias, self.weight) = if euclidean { (squared, 2.0 * step) } else { (0.0, step) };
    }
}

/// Offset and scale in one word, which is no small number: the scale is positive.
fn pack(offset: f32, scale: f32) -> u64 {
    u64::from(positive(scale).to_bits()) << 32 | u64::from(offset.to_bits())
}

#[inline]
fn unpack(head: u64) -> (f32, f32) {
    #[expect(clippy::cast_possible_truncation, reason = "the low half of 64 bits is 32 bits")]
    let offset = f32::from_bits(head as u32);
    (offset, f32::from_bits((head >> 32) as u32))
}

/// A scale as it is kept. That of a vector without length does not matter, for all its coordinates are zero.
fn positive(scale: f32) -> f32 {
    if scale > 0.0 { scale } else { f32::MIN_POSITIVE }
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

/// The low plane and the scale for both planes.
#[inline]
fn split_far(far: &[u8], plane: usize) -> (&[u8], f32) {
    let (low, scale) = far.split_at(plane);
    (low, scale.try_into().map_or(0.0, f32::from_le_bytes))
}

#[inline]
fn floats(near: &[u8]) -> &[f32] {
    <[f32]>::ref_from_bytes(near).expect("rows of codes are aligned to 4 bytes, and hold whole floats")
}
