use super::*;

/// Four groups of 128 and a few more; every shape of a last group.
const MAX_LEN: usize = 4 * GROUP + 5;

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 24
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut next = random(seed);
    (0..len).map(|_| (next() & 0xFF) as u8).collect()
}

/// Elements -127..=127 and zeros up to `padded`.
fn query(seed: u64, len: usize, padded: usize) -> Vec<i8> {
    let mut next = random(seed);
    (0..padded).map(|i| if i < len { (next() % 255) as i8 } else { 0 }).map(|x| x.max(-127)).collect()
}

fn exact(query: &[i8], values: impl Iterator<Item = i64>) -> i32 {
    let sum: i64 = query.iter().zip(values).map(|(&q, v)| i64::from(q) * v).sum();
    i32::try_from(sum).unwrap()
}

/// A copy that starts `start` bytes after an aligned address.
fn shifted<T: Copy + Default>(values: &[T], start: usize) -> Vec<T> {
    let mut all = vec![T::default(); start];
    all.extend_from_slice(values);
    all
}

fn agrees_with_exact_sums(variant: &Variant) {
    for len in 0..=MAX_LEN {
        // Five rows: one block of four and one alone.
        let rows: Vec<_> = (0..5).map(|row| bytes(len as u64 * 8 + row, len)).collect();
        let mut planes = Vec::new();
        for values in &rows {
            let (mut high, mut low) = (vec![0; plane_bytes(len)], vec![0; plane_bytes(len)]);
            write_planes(values, &mut high, &mut low);
            planes.push((high, low));
        }
        for start in 0..=3 {
            let case = format!("{}, length {len}, start {start}", variant.name());
            let planes: Vec<_> =
                planes.iter().map(|(high, low)| (shifted(high, start), shifted(low, 3 - start))).collect();
            let nibbles = shifted(&query(7, len, query_len(len)), start);
            let nibbles = &nibbles[start..];
            let highs: Vec<_> = planes.iter().map(|(high, _)| &high[start..]).collect();
            let want: Vec<_> =
                rows.iter().map(|v| exact(nibbles, v.iter().map(|&v| i64::from(v >> 4)))).collect();
            let mut got = vec![0; 5];
            variant.dot_plane_each(nibbles, &highs, &mut got);
            assert_eq!(got, want, "planes, {case}");
            for (row, (high, low)) in planes.iter().enumerate() {
                assert_eq!(variant.dot_plane(nibbles, &high[start..]), want[row], "plane, {case}");
                let got = variant.dot_planes(nibbles, &high[start..], &low[3 - start..]);
                let want = exact(nibbles, rows[row].iter().map(|&v| i64::from(v)));
                assert_eq!(got, want, "two planes, {case}");
            }

            let bits = shifted(&query(8, len, 8 * bit_bytes(len)), start);
            let bits = &bits[start..];
            let codes: Vec<_> = rows.iter().map(|v| shifted(&v[..bit_bytes(len)], start)).collect();
            let codes: Vec<_> = codes.iter().map(|row| &row[start..]).collect();
            let bit = |row: &[u8], i: usize| i64::from(row[i / 8] >> (i % 8) & 1);
            let want: Vec<_> = codes.iter().map(|row| exact(bits, (0..len).map(|i| bit(row, i)))).collect();
            variant.dot_bits_each(bits, &codes, &mut got);
            assert_eq!(got, want, "bits, {case}");
            assert_eq!(variant.dot_bits(bits, codes[4]), want[4], "bits of one row, {case}");
        }
    }
}

fn holds_the_largest_sums(variant: &Variant) {
    let planes = vec![0xFF; plane_bytes(MAX_DIM)];
    let ones = vec![0xFF; bit_bytes(MAX_DIM)];
    let dim = i32::try_from(MAX_DIM).unwrap();
    for element in [127i8, -127] {
        let query = vec![element; MAX_DIM];
        let element = i32::from(element);
        assert_eq!(variant.dot_plane(&query, &planes), element * 15 * dim, "{}", variant.name());
        assert_eq!(variant.dot_planes(&query, &planes, &planes), element * 255 * dim, "{}", variant.name());
        assert_eq!(variant.dot_bits(&query, &ones), element * dim, "{}", variant.name());
    }
}

fn test_by_name(name: &str) {
    match variants().iter().find(|variant| variant.name() == name) {
        Some(variant) => {
            agrees_with_exact_sums(variant);
            holds_the_largest_sums(variant);
        }
        None => assert_ne!(VARIANT.name(), name, "a variant in use must be available"),
    }
}

#[test]
fn scalar_definition_agrees_with_exact_sums() {
    test_by_name("scalar");
}

#[test]
fn avx2_agrees_with_exact_sums_where_the_cpu_has_it() {
    test_by_name("avx2");
}

#[test]
fn avx512vnni_agrees_with_exact_sums_where_the_cpu_has_it() {
    test_by_name("avx512vnni");
}

#[test]
fn neon_agrees_with_exact_sums_where_the_cpu_has_it() {
    test_by_name("neon");
}

#[test]
fn elements_lie_in_a_plane_where_the_layout_says() {
    let values: Vec<u8> = (0..133).collect();
    let (mut high, mut low) = ([0; 67], [0; 67]);
    write_planes(&values, &mut high, &mut low);
    // Byte 5: elements 5 and 64 + 5.
    assert_eq!((high[5], low[5]), (0x40, 0x55));
    // The last group has 5 elements in 3 bytes: 128 and 131, 129 and 132, 130 and none.
    assert_eq!(high[64..], [0x88, 0x88, 0x08]);
    assert_eq!(low[64..], [0x30, 0x41, 0x02]);
}

#[test]
fn planes_are_read_back_as_they_were_written() {
    for len in 0..=MAX_LEN {
        let values = bytes(len as u64, len);
        let (mut high, mut low) = (vec![0xEE; plane_bytes(len)], vec![0xEE; plane_bytes(len)]);
        write_planes(&values, &mut high, &mut low);
        let mut back = vec![0; len];
        read_planes(&high, &low, &mut back);
        assert_eq!(back, values, "length {len}");
    }
}

#[test]
fn no_rows_give_no_results() {
    for variant in variants() {
        variant.dot_plane_each(&[1; 128], &[], &mut []);
        variant.dot_bits_each(&[1; 128], &[], &mut []);
    }
}

#[test]
fn rows_that_do_not_fit_the_query_are_refused_by_every_variant() {
    let short = [0; 63];
    let whole = [0; 64];
    for variant in variants() {
        let refused = |call: &dyn Fn()| {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
            assert!(caught.is_err(), "{}", variant.name());
        };
        let each = |rows: &[&[u8]], results: usize| {
            variant.dot_plane_each(&[1; 128], rows, &mut vec![0; results]);
        };
        each(&[&whole[..]; 4], 4);
        refused(&|| each(&[&whole, &whole, &whole, &short], 4));
        refused(&|| each(&[&short], 1));
        refused(&|| each(&[&whole], 2));
        refused(&|| _ = variant.dot_planes(&[1; 128], &whole, &short));
        refused(&|| _ = variant.dot_plane(&[1; 127], &short));
        refused(&|| _ = variant.dot_bits(&[1; 8 * 64], &short));
        refused(&|| _ = variant.dot_bits(&[1; 8 * 64 - 1], &whole));
    }
}
