//! How many pairs of vectors a second do the distance functions compare, in cache, beside SimSIMD?
//!
//! One row per function, dimension and variant: million pairs (for the rotation: vectors) a second, least, median and
//! best of 201 runs, and the best's ratio to that of the scalar definition, and for f32 of SimSIMD. A run is shorter
//! than a turn of the scheduler and the variants take turns, so that other work on the machine spoils some runs of each,
//! and the best of none. Every result is compared with a sum in f64 or i64 first.

use std::hint::black_box;
use std::time::Instant;

use simsimd::SpatialSimilarity;
use vexfs::distance::{self, codes, rotation::Rotation};

const DIMS: [usize; 5] = [100, 128, 384, 768, 1536];
/// Rows per round: 96 KiB of f32 at dimension 1536, so all of them stay in the second level of cache at least.
const ROWS: usize = 16;
const RUNS: usize = 201;
/// Rounds are doubled until a run takes this long.
const RUN_SECONDS: f64 = 50e-6;

type Round<'a> = dyn Fn(&mut [f64; ROWS]) + 'a;

/// One thing that is timed: its name, and a call that computes `ROWS` pairs and returns their results.
struct Contestant<'a> {
    name: &'a str,
    round: Box<Round<'a>>,
}

fn main() {
    println!("variant in use: f32 {}, codes {}", distance::variant(), codes::variant());
    println!(
        "{:<16} {:>5}  {:<11} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "function", "dim", "variant", "least", "median", "best", "x scalar", "x simsimd"
    );
    for dim in DIMS {
        over_f32(dim);
    }
    for dim in DIMS {
        over_codes(dim);
    }
    for dim in DIMS {
        rotations(dim);
    }
}

/// Values in -1..1, the same in every run.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn over_f32(dim: usize) {
    let query = numbers(1, dim);
    let rows = numbers(2, dim * ROWS);
    let (query, rows) = (&query[..], &rows[..]);
    let variants = distance::variants();
    let exact = |term: fn(f64, f64) -> f64| {
        let sum = |row: &[f32]| query.iter().zip(row).map(|(&x, &y)| term(x.into(), y.into())).sum::<f64>();
        rows.chunks(dim).map(sum).collect::<Vec<_>>()
    };
    // Written out for each function: a call through one more pointer would count for all of them.
    macro_rules! contest {
        ($name:literal, $ours:ident, $simsimd:expr, $term:expr) => {
            let mut contestants = vec![
                Contestant {
                    name: "in use",
                    round: Box::new(|out| {
                        for (out, row) in out.iter_mut().zip(rows.chunks_exact(dim)) {
                            *out = distance::$ours(black_box(query), row).into();
                        }
                    }),
                },
                Contestant {
                    name: "simsimd",
                    round: Box::new(|out| {
                        for (out, row) in out.iter_mut().zip(rows.chunks_exact(dim)) {
                            *out = $simsimd(black_box(query), row).expect("equal lengths");
                        }
                    }),
                },
            ];
            for variant in &variants {
                contestants.push(Contestant {
                    name: variant.name(),
                    round: Box::new(move |out| {
                        for (out, row) in out.iter_mut().zip(rows.chunks_exact(dim)) {
                            *out = variant.$ours(black_box(query), row).into();
                        }
                    }),
                });
            }
            compare($name, dim, &contestants, &exact($term), 1e-5 * dim as f64);
        };
    }
    contest!("dot", dot, <f32 as SpatialSimilarity>::dot, |x, y| x * y);
    contest!("l2_squared", l2_squared, <f32 as SpatialSimilarity>::l2sq, |x, y| (x - y) * (x - y));
}

fn over_codes(dim: usize) {
    let signed = |x: &f32| (x * 127.0) as i8;
    let query: Vec<i8> = numbers(3, dim).iter().map(signed).collect();
    let padded = |len: usize| query.iter().copied().chain(std::iter::repeat(0)).take(len).collect::<Vec<_>>();
    let (for_planes, for_bits) = (padded(codes::query_len(dim)), padded(8 * codes::bit_bytes(dim)));
    let (for_planes, for_bits) = (&for_planes[..], &for_bits[..]);
    let values: Vec<u8> = numbers(4, dim * ROWS).iter().map(|x| (x * 127.0 + 128.0) as u8).collect();
    let bytes = codes::plane_bytes(dim);
    let mut planes = vec![(vec![0; bytes], vec![0; bytes]); ROWS];
    for (values, (high, low)) in values.chunks(dim).zip(&mut planes) {
        codes::write_planes(values, high, low);
    }
    let highs: Vec<_> = planes.iter().map(|(high, _)| &high[..]).collect();
    let bits: Vec<_> = values.chunks(dim).map(|row| &row[..codes::bit_bytes(dim)]).collect();
    let exact = |value: &dyn Fn(&[u8], usize) -> i64| {
        let sum = |row: &[u8]| (0..dim).map(|i| i64::from(query[i]) * value(row, i)).sum::<i64>() as f64;
        values.chunks(dim).map(sum).collect::<Vec<_>>()
    };
    let variants = codes::variants();
    let contest = |name, exact: Vec<f64>, round: &dyn Fn(&codes::Variant, &mut [i32; ROWS])| {
        let contestants: Vec<_> = variants
            .iter()
            .map(|variant| Contestant {
                name: variant.name(),
                round: Box::new(move |out| {
                    let mut sums = [0; ROWS];
                    round(variant, &mut sums);
                    *out = sums.map(f64::from);
                }),
            })
            .collect();
        compare(name, dim, &contestants, &exact, 0.0);
    };
    contest("dot_plane_each", exact(&|row, i| i64::from(row[i] >> 4)), &|variant, out| {
        variant.dot_plane_each(black_box(for_planes), &highs, out);
    });
    contest("dot_plane", exact(&|row, i| i64::from(row[i] >> 4)), &|variant, out| {
        for (out, high) in out.iter_mut().zip(&highs) {
            *out = variant.dot_plane(black_box(for_planes), high);
        }
    });
    contest("dot_planes", exact(&|row, i| i64::from(row[i])), &|variant, out| {
        for (out, (high, low)) in out.iter_mut().zip(&planes) {
            *out = variant.dot_planes(black_box(for_planes), high, low);
        }
    });
    contest("dot_bits_each", exact(&|row, i| i64::from(row[i / 8] >> (i % 8) & 1)), &|variant, out| {
        variant.dot_bits_each(black_box(for_bits), &bits, out);
    });
}

fn rotations(dim: usize) {
    let rotation = Rotation::new(dim, 1);
    let rows = numbers(5, dim * ROWS);
    let norms = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let contestants = [Contestant {
        name: "in use",
        round: Box::new(|out| {
            let mut to = vec![0.0; dim];
            for (out, row) in out.iter_mut().zip(rows.chunks_exact(dim)) {
                rotation.apply(black_box(row), &mut to);
                *out = black_box(&to)[0].into();
            }
        }),
    }];
    let mut to = vec![0.0; dim];
    let firsts: Vec<f64> = rows
        .chunks(dim)
        .map(|row| {
            rotation.apply(row, &mut to);
            assert!((norms(&to) / norms(row) - 1.0).abs() < 1e-5, "a rotation keeps norms");
            to[0].into()
        })
        .collect();
    compare("rotation", dim, &contestants, &firsts, 0.0);
}

/// Checks every contestant's results, times them in turn, and prints a row for each.
fn compare(function: &str, dim: usize, contestants: &[Contestant], exact: &[f64], tolerance: f64) {
    let mut rates = vec![Vec::new(); contestants.len()];
    let mut rounds = vec![0; contestants.len()];
    for (contestant, rounds) in contestants.iter().zip(&mut rounds) {
        let mut out = [0.0; ROWS];
        (contestant.round)(&mut out);
        for (row, (got, want)) in out.iter().zip(exact).enumerate() {
            let name = contestant.name;
            assert!(
                (got - want).abs() <= tolerance,
                "{function}, dim {dim}, {name}, row {row}: {got}, want {want}"
            );
        }
        *rounds = 1;
        while seconds(contestant, *rounds) < RUN_SECONDS {
            *rounds *= 2;
        }
    }
    for _ in 0..RUNS {
        for ((contestant, &rounds), rates) in contestants.iter().zip(&rounds).zip(&mut rates) {
            rates.push((rounds * ROWS) as f64 / seconds(contestant, rounds) / 1e6);
        }
    }
    for rates in &mut rates {
        rates.sort_by(f64::total_cmp);
    }
    let best = |name: &str| {
        let at = contestants.iter().position(|contestant| contestant.name == name)?;
        Some(rates[at][RUNS - 1])
    };
    for (contestant, rates) in contestants.iter().zip(&rates) {
        let [least, median, most] = [0, RUNS / 2, RUNS - 1].map(|at| rates[at]);
        print!("{function:<16} {dim:>5}  {:<11} {least:>9.1} {median:>9.1} {most:>9.1}", contestant.name);
        for other in ["scalar", "simsimd"] {
            match best(other) {
                Some(other) => print!(" {:>9.2}", most / other),
                None => print!(" {:>9}", "-"),
            }
        }
        println!();
    }
}

fn seconds(contestant: &Contestant, rounds: usize) -> f64 {
    let mut out = [0.0; ROWS];
    let start = Instant::now();
    for _ in 0..rounds {
        (contestant.round)(black_box(&mut out));
    }
    start.elapsed().as_secs_f64()
}
