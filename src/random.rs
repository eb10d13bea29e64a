//! Numbers that only look random: the same ones for the same seed, so that what is made with them can be made again. And
//! one that nobody can make again, to tell things apart by.

use std::hash::{BuildHasher, RandomState};

/// A number that nothing had before, in this process or another: of two, they are the same once in 2^64.
#[must_use]
pub fn unlike_any() -> u64 {
    RandomState::new().hash_one(())
}

/// The next of the numbers that `state`, at first any seed, stands for.
///
/// Source: Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, 2014 (SplitMix64).
#[must_use]
pub fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_numbers_are_alike() {
        let numbers: std::collections::HashSet<u64> = (0..1000).map(|_| unlike_any()).collect();
        assert_eq!(numbers.len(), 1000);
    }

    #[test]
    fn the_first_numbers_of_a_seed_are_those_of_the_reference() {
        let mut state = 1_234_567;
        let first: [u64; 3] = std::array::from_fn(|_| splitmix64(&mut state));
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
