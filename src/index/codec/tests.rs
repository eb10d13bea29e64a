//! How far estimates may be from the distances, for every code, metric and dimension.

use super::*;
use crate::index::flat::Matrix;
use crate::index::{Query, RowId};

const QUANTS: [Quant; 3] = [Quant::None, Quant::Sq8, Quant::B1];
const METRICS: [Metric; 3] = [Metric::L2, Metric::Ip, Metric::Cosine];
const ROWS: usize = 200;

struct Random(u64);

impl Random {
    /// Roughly normal with variance 1: the sum of twelve uniform numbers.
    fn normal(&mut self) -> f32 {
        let mut sum = -6.0;
        for _ in 0..12 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            sum += (self.0 >> 40) as f32 / (1 << 24) as f32;
        }
        sum
    }

    fn vector(&mut self, dim: usize) -> Vec<f32> {
        (0..dim).map(|_| self.normal()).collect()
    }
}

struct Coded {
    head: u64,
    near: Vec<u8>,
    far: Vec<u8>,
}

impl Coded {
    fn code(&self) -> Code<'_> {
        Code { head: self.head, near: &self.near }
    }
}

/// The code, with near bytes where [`floats`] can be read.
fn encode(codec: &Codec, vector: &[f32]) -> Coded {
    let mut draft = Draft::default();
    codec.encode(vector, &mut draft);
    assert!(draft.head > 2, "head {}", draft.head);
    assert_eq!((draft.near.len(), draft.far.len()), codec.code_bytes());
    Coded { head: draft.head, near: draft.near, far: draft.far }
}

fn near_key(codec: &Codec, probe: &mut Probe, coded: &Coded) -> f32 {
    let mut keys = [f32::NAN];
    codec.near_keys(probe, &[coded.head], &[&coded.near], &mut keys);
    keys[0]
}

/// Root mean square errors of the walk's estimate and of that by all bytes, with the vector and with its code as the
/// probe, each in units of what the metric's error scales with: |a| |b|, of vectors relative to the center.
fn errors(quant: Quant, metric: Metric, dim: usize) -> [f64; 2] {
    let mut random = Random(0x5eed + dim as u64);
    let middle: Vec<f32> = (0..dim).map(|_| random.normal()).collect();
    let mut around = || -> Vec<f32> { random.vector(dim).iter().zip(&middle).map(|(x, c)| x + c).collect() };
    let rows: Vec<Vec<f32>> = (0..ROWS).map(|_| around()).collect();
    let matrix = Matrix::new(dim, rows.concat());
    let scale = |row: &[f32]| if metric == Metric::Cosine { distance::inverse_norm(row) } else { 1.0 };
    let mean = |at: usize| rows.iter().map(|row| scale(row) * row[at]).sum::<f32>() / ROWS as f32;
    let center: Vec<f32> = (0..dim).map(mean).collect();
    let codec = Codec::new(quant, metric, dim, center.clone(), 3);
    let length = |vector: &[f32]| -> f64 {
        let mut values = Vec::new();
        codec.prepare(vector, &mut values);
        for (x, c) in values.iter_mut().zip(&center) {
            *x -= c;
        }
        f64::from(distance::dot(&values, &values)).sqrt()
    };
    let coded: Vec<Coded> = rows.iter().map(|row| encode(&codec, row)).collect();
    let (mut near, mut full, mut count) = (0.0, 0.0, 0.0);
    let (mut probe, mut probe_of_code) = (Probe::default(), Probe::default());
    for (a, code_of_a) in rows.iter().zip(&coded).take(20) {
        codec.probe(a, &mut probe);
        if codec.compares_well() {
            codec.probe_code(code_of_a.code(), &code_of_a.far, &mut probe_of_code);
        }
        for (number, (b, code_of_b)) in (0..).zip(rows.iter().zip(&coded)) {
            let key = Query::new(metric, a).key(&matrix, RowId(number), &mut vec![0.0; dim]).unwrap();
            let exact = f64::from(codec.key_from_metric(key));
            let unit = length(a) * length(b);
            let error = |estimate: f32| {
                assert!(!estimate.is_nan());
                ((f64::from(estimate) - exact) / unit).powi(2)
            };
            near += error(near_key(&codec, &mut probe, code_of_b));
            if codec.compares_well() {
                let by_vector = codec.full_key(&mut probe, code_of_b.code(), &code_of_b.far);
                let by_code = codec.full_key(&mut probe_of_code, code_of_b.code(), &code_of_b.far);
                full += f64::max(error(by_vector), error(by_code));
            }
            count += 1.0;
        }
    }
    [near, full].map(|sum| f64::sqrt(sum / count))
}

#[test]
fn estimates_are_as_near_as_their_bits_allow() {
    for quant in QUANTS {
        for metric in METRICS {
            for dim in [1, 2, 3, 31, 32, 100, 128, 129, 384] {
                let [near, full] = errors(quant, metric, dim);
                // An estimate of a . b errs by the code's part of a that is not along it, spread over `dim` directions.
                let per_root = 1.0 / (dim as f64).sqrt();
                // l2 and cosine take twice the dot product.
                let times = if metric == Metric::Ip { 1.0 } else { 2.0 };
                let (most_near, most_full) = match quant {
                    Quant::None => (1e-5, 1e-5),
                    Quant::Sq8 => (times * (0.13 * per_root + 0.006), times * (0.02 * per_root + 0.012)),
                    Quant::B1 => (times * (0.8 * per_root + 0.006), 0.0),
                };
                let place = format!("{} {} dim {dim}", quant.name(), metric.name());
                assert!(near <= most_near, "{place}: walk errs by {near}, want {most_near}");
                assert!(full <= most_full, "{place}: all bytes err by {full}, want {most_full}");
            }
        }
    }
}

/// The same with rows around middles that are `apart` times as far from each other as rows from their middle. In units
/// of what the error scales with once each has a center: |a - c| |b - c|, c being that of b, for an inner product the
/// part of a across c and |b - c|.
fn errors_far_apart(quant: Quant, metric: Metric, dim: usize, apart: f32) -> [f64; 2] {
    let mut random = Random(0xfa5 + dim as u64);
    let middles: Vec<Vec<f32>> =
        (0..5).map(|_| random.vector(dim).iter().map(|x| apart * x).collect()).collect();
    let mut around = |number: usize| -> Vec<f32> {
        random.vector(dim).iter().zip(&middles[number % 5]).map(|(x, c)| x + c).collect()
    };
    let rows: Vec<Vec<f32>> = (0..ROWS).map(&mut around).collect();
    let of_unit = |vector: &[f32]| {
        let scale = if metric == Metric::Cosine { distance::inverse_norm(vector) } else { 1.0 };
        vector.iter().map(|x| x * scale).collect::<Vec<f32>>()
    };
    let centers: Vec<Vec<f32>> = middles.iter().map(|middle| of_unit(middle)).collect();
    let codec = Codec::new(quant, metric, dim, centers.concat(), 3);
    let coded: Vec<Coded> = rows.iter().map(|row| encode(&codec, row)).collect();
    let (mut near, mut full, mut count) = (0.0, 0.0, 0.0);
    let (mut probe, mut probe_of_code) = (Probe::default(), Probe::default());
    for (a, code_of_a) in rows.iter().zip(&coded).take(20) {
        codec.probe(a, &mut probe);
        if codec.compares_well() {
            codec.probe_code(code_of_a.code(), &code_of_a.far, &mut probe_of_code);
        }
        let heads: Vec<u64> = coded.iter().map(|coded| coded.head).collect();
        let planes: Vec<&[u8]> = coded.iter().map(|coded| &*coded.near).collect();
        let mut keys = vec![f32::NAN; ROWS];
        for ((heads, planes), keys) in
            heads.chunks(BATCH).zip(planes.chunks(BATCH)).zip(keys.chunks_mut(BATCH))
        {
            codec.near_keys(&mut probe, heads, planes, keys);
        }
        for (number, (b, code_of_b)) in (0..).zip(rows.iter().zip(&coded)) {
            let (unit_a, unit_b) = (of_unit(a), of_unit(b));
            // In double precision: the terms are much longer than what is left.
            let pairs = || unit_a.iter().zip(&unit_b).map(|(&x, &y)| (f64::from(x), f64::from(y)));
            let exact: f64 = match metric {
                Metric::Ip => pairs().map(|(x, y)| -x * y).sum(),
                Metric::L2 | Metric::Cosine => pairs().map(|(x, y)| (x - y) * (x - y)).sum(),
            };
            let center = &centers[number % 5];
            let share = match metric {
                Metric::Ip => distance::dot(&unit_a, center) / distance::dot(center, center),
                Metric::L2 | Metric::Cosine => 1.0,
            };
            let away = |vector: &[f32], share: f32| -> f64 {
                vector.iter().zip(center).map(|(x, c)| f64::from(x - share * c).powi(2)).sum::<f64>().sqrt()
            };
            let unit = away(&unit_a, share) * away(&unit_b, 1.0);
            let error = |estimate: f32| ((f64::from(estimate) - exact) / unit).powi(2);
            near += error(keys[number]);
            if codec.compares_well() {
                let by_vector = codec.full_key(&mut probe, code_of_b.code(), &code_of_b.far);
                full += error(by_vector);
                // What a code has lost of its vector is multiplied by how far it is from the other center.
                let by_code = f64::from(codec.full_key(&mut probe_of_code, code_of_b.code(), &code_of_b.far));
                let own = away(&unit_a, 1.0) * (away(&unit_b, 1.0) + away(&unit_b, 0.0));
                assert!((by_code - exact).abs() <= 0.2 * own.max(unit), "{by_code} for {exact}");
            }
            count += 1.0;
        }
    }
    [near, full].map(|sum| f64::sqrt(sum / count))
}

#[test]
fn estimates_are_as_near_when_there_is_a_center_for_each_cluster() {
    for quant in [Quant::Sq8, Quant::B1] {
        for metric in METRICS {
            for (dim, apart) in [(32, 5.0), (100, 20.0), (129, 10.0)] {
                let [near, full] = errors_far_apart(quant, metric, dim, apart);
                let per_root = 1.0 / (dim as f64).sqrt();
                let times = if metric == Metric::Ip { 1.0 } else { 2.0 };
                let (most_near, most_full) = match quant {
                    Quant::Sq8 | Quant::None => (0.13 * per_root + 0.006, 0.02 * per_root + 0.012),
                    Quant::B1 => (0.8 * per_root + 0.006, 0.0),
                };
                let place = format!("{} {} dim {dim}", quant.name(), metric.name());
                assert!(near <= times * most_near, "{place}: walk errs by {near}, want {most_near}");
                assert!(full <= times * most_full, "{place}: all bytes err by {full}, want {most_full}");
            }
        }
    }
}

#[test]
fn a_batch_has_the_keys_of_its_codes_one_by_one() {
    for quant in QUANTS {
        for dim in [1, 3, 100, 129] {
            let mut random = Random(9);
            for centers in 0..4 {
                let codec = Codec::new(quant, Metric::L2, dim, random.vector(centers * dim), 1);
                let coded: Vec<Coded> = (0..BATCH).map(|_| encode(&codec, &random.vector(dim))).collect();
                let mut probe = Probe::default();
                codec.probe(&random.vector(dim), &mut probe);
                let heads: Vec<u64> = coded.iter().map(|coded| coded.head).collect();
                let near: Vec<&[u8]> = coded.iter().map(|coded| &*coded.near).collect();
                for len in [0, 1, 2, 3, 31, BATCH] {
                    let mut keys = vec![f32::NAN; len];
                    codec.near_keys(&mut probe, &heads[..len], &near[..len], &mut keys);
                    let singles: Vec<f32> =
                        coded[..len].iter().map(|coded| near_key(&codec, &mut probe, coded)).collect();
                    assert_eq!(keys, singles, "{} dim {dim}, {len} codes, {centers} centers", quant.name());
                }
            }
        }
    }
}

#[test]
fn no_vector_makes_a_key_that_is_not_a_number() {
    for quant in QUANTS {
        for metric in METRICS {
            for dim in [1, 3, 100, 129] {
                let mut random = Random(11);
                let mut vectors = vec![vec![0.0; dim], vec![1.0; dim], random.vector(dim)];
                for scale in [1e-45, 1e-40, 1e-30, 1e-20, 1e18, 1e30, f32::MAX] {
                    vectors.push(vec![scale; dim]);
                    vectors.push(
                        random.vector(dim).iter().map(|x| (x * scale).clamp(f32::MIN, f32::MAX)).collect(),
                    );
                    let mut one = vec![0.0; dim];
                    one[dim / 2] = -scale;
                    vectors.push(one);
                }
                for center in [Vec::new(), vec![0.5; dim], [vec![1e20; dim], vec![-0.5; dim]].concat()] {
                    let codec = Codec::new(quant, metric, dim, center, 1);
                    let coded: Vec<Coded> = vectors.iter().map(|vector| encode(&codec, vector)).collect();
                    let (mut probe, mut probe_of_code) = (Probe::default(), Probe::default());
                    for (vector, code_of_it) in vectors.iter().zip(&coded) {
                        codec.probe(vector, &mut probe);
                        for coded in &coded {
                            assert!(
                                !near_key(&codec, &mut probe, coded).is_nan(),
                                "{} {vector:?}",
                                quant.name()
                            );
                            if codec.compares_well() {
                                assert!(!codec.full_key(&mut probe, coded.code(), &coded.far).is_nan());
                                codec.probe_code(code_of_it.code(), &code_of_it.far, &mut probe_of_code);
                                assert!(
                                    !codec.full_key(&mut probe_of_code, coded.code(), &coded.far).is_nan()
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_vector_without_length_is_as_far_as_it_is() {
    for quant in QUANTS {
        for dim in [1, 3, 100] {
            let codec = Codec::new(quant, Metric::L2, dim, Vec::new(), 1);
            let zero = encode(&codec, &vec![0.0; dim]);
            let mut probe = Probe::default();
            codec.probe(&vec![2.0; dim], &mut probe);
            let key = near_key(&codec, &mut probe, &zero);
            assert!((key - 4.0 * dim as f32).abs() <= 1e-3 * dim as f32, "{} dim {dim}: {key}", quant.name());
            codec.probe(&vec![0.0; dim], &mut probe);
            assert_eq!(near_key(&codec, &mut probe, &zero), 0.0, "{} dim {dim}", quant.name());
        }
    }
}

#[test]
fn codes_have_the_bytes_of_their_bits() {
    for dim in [1, 3, 64, 100, 129, 384, 768] {
        let bytes = |quant| Codec::new(quant, Metric::L2, dim, Vec::new(), 0).code_bytes();
        assert_eq!(bytes(Quant::None), (4 * dim, 0));
        let far = if dim < 40 { 0 } else { dim.div_ceil(2) };
        assert_eq!(bytes(Quant::Sq8), (dim.div_ceil(2), far));
        assert_eq!(bytes(Quant::B1), (dim.div_ceil(8), 0));
    }
}

#[test]
fn the_numbers_of_a_code_come_back_nearly_as_they_were() {
    for offset in [0.0, 1.0, -1.0, 1e-30, 3.333e7, -7.77e30] {
        for scale in [1.0, 1e-20, 1.2345e-3, 9.87e20] {
            for share in [0.0, 1e-4, -0.004, 0.02, -0.08, 0.3, -0.45] {
                let full = scale / 16.0 * (1.0 + share);
                let head = Head::unpack(Head::new(offset, scale, 511).with_full_scale(full).pack());
                assert!((head.offset - offset).abs() <= offset.abs() / 32_768.0, "{offset}: {head:?}");
                assert!((head.scale - scale).abs() <= scale / 32_768.0, "{scale}: {head:?}");
                // Half a step: the steps grow with the root of the share.
                let most = full * ((2.0 * (share.abs() + 1e-4)).sqrt() / 512.0 + 1e-5);
                assert!((head.full_scale() - full).abs() <= most, "{share}: {head:?}");
            }
        }
    }
    for number in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
        let head = Head::unpack(Head::new(number, number, 3).with_full_scale(number).pack());
        assert_eq!(head.offset.is_nan(), number.is_nan());
        assert!(head.scale > 0.0 && !head.full_scale().is_nan(), "{number}: {head:?}");
        assert!(head.pack() > 2);
    }
}

#[test]
fn the_same_seed_makes_the_same_code() {
    let vector = Random(5).vector(100);
    for quant in QUANTS {
        let codes =
            [1, 1, 2].map(|seed| encode(&Codec::new(quant, Metric::Ip, 100, Vec::new(), seed), &vector));
        assert_eq!(
            (codes[0].head, &codes[0].near, &codes[0].far),
            (codes[1].head, &codes[1].near, &codes[1].far)
        );
        if quant != Quant::None {
            assert_ne!(codes[0].near, codes[2].near);
        }
    }
}
