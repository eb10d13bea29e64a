//! `.npy`: a header that is a Python dict literal, then the elements.
//!
//! The header comes from anybody, so it is read by a parser for exactly the three keys that it has, not for
//! Python. Source: NEP 1 and `numpy.lib.format`, versions 1.0, 2.0 and 3.0.

use super::{Dtype, Layout, Limits, shown};
use crate::{Error, Result};

/// The first bytes of every `.npy` file.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest header that is read, in bytes. Those of numpy have 118 for all shapes that are accepted.
pub(super) const MAX_HEADER: usize = 64 << 10;

/// Magic, version and length of the header, at most.
pub(super) const PREFIX: usize = 12;

/// A file of shape `(n,)` is one row, one of shape `(rows, dim)` is its rows.
pub(super) fn layout(head: &[u8], len_bytes: u64, limits: &Limits) -> Result<Layout> {
    let (text, offset) = header_text(head)?;
    let header = Header::parse(text)?;
    let dtype = dtype_of(header.descr)?;
    let (rows, dim) = header.shape.rows_and_columns()?;
    // With one row or one column both orders are the same bytes.
    if header.fortran_order && rows > 1 && dim > 1 {
        return Err(Error::Format(format!(
            "shape {} in Fortran order, want C order (numpy.ascontiguousarray)",
            shown(header.shape.text)
        )));
    }
    Layout::packed(dtype, (rows, dim), offset as u64, len_bytes, limits)
}

/// A list of row numbers: what programs that search save beside vectors.
///
/// Numbers are whole, of 4 or 8 bytes with or without a sign, and in either order: libraries return all of these, and
/// transposed arrays are saved in Fortran order.
///
/// # Errors
///
/// [`Error::Format`] when the file is something else.
pub fn npy_numbers(bytes: &[u8]) -> Result<Numbers> {
    let (text, offset) = header_text(bytes)?;
    let header = Header::parse(text)?;
    let (rows, columns) = header.shape.rows_and_columns()?;
    let data = &bytes[offset..];
    let values: Vec<i64> = match header.descr {
        b"<i4" => data.as_chunks().0.iter().map(|&value| i32::from_le_bytes(value).into()).collect(),
        b"<u4" => data.as_chunks().0.iter().map(|&value| u32::from_le_bytes(value).into()).collect(),
        b"<i8" => data.as_chunks().0.iter().map(|&value| i64::from_le_bytes(value)).collect(),
        b"<u8" => {
            let value = |&value| i64::try_from(u64::from_le_bytes(value)).unwrap_or(i64::MAX);
            data.as_chunks().0.iter().map(value).collect()
        }
        descr => {
            return Err(Error::Format(format!("dtype '{}', want <i4, <i8, <u4 or <u8", shown(descr))));
        }
    };
    let width = if header.descr.ends_with(b"4") { 4 } else { 8 };
    let len = rows.checked_mul(columns).and_then(|count| count.checked_mul(width));
    // Rows without columns take no bytes, however many they are said to be.
    if columns == 0 || len != Some(data.len() as u64) {
        let shape = shown(header.shape.text);
        return Err(Error::Format(format!("shape {shape} of {width} bytes each, file has {}", data.len())));
    }
    let too_many = |_| Error::Format(format!("shape {} is too large", shown(header.shape.text)));
    let (rows, columns) =
        (usize::try_from(rows).map_err(too_many)?, usize::try_from(columns).map_err(too_many)?);
    Ok(Numbers { values, rows, columns, is_fortran: header.fortran_order })
}

/// Whole numbers in rows and columns. Those above `i64::MAX` are as that.
#[derive(Debug)]
pub struct Numbers {
    values: Vec<i64>,
    rows: usize,
    columns: usize,
    /// Columns follow one another, not rows.
    is_fortran: bool,
}

impl Numbers {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The numbers of a row below [`rows`](Self::rows).
    pub fn row(&self, row: usize) -> impl Iterator<Item = i64> {
        let (start, step) = if self.is_fortran { (row, self.rows) } else { (row * self.columns, 1) };
        self.values.iter().skip(start).step_by(step.max(1)).take(self.columns).copied()
    }
}

/// The text of the header, and the offset of the first element.
fn header_text(bytes: &[u8]) -> Result<(&[u8], usize)> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(Error::Format(format!(
            "begins with '{}', not with the magic of npy",
            shown_start(bytes)
        )));
    };
    let short = || Error::Format(format!("{} bytes, too short for the header of an npy", bytes.len()));
    let (&[major, minor], rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (len, rest) = match (major, minor) {
        (1, 0) => {
            let (len, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
            (u32::from(u16::from_le_bytes(*len)), rest)
        }
        (2 | 3, 0) => {
            let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            (u32::from_le_bytes(*len), rest)
        }
        _ => return Err(Error::Format(format!("npy version {major}.{minor}, want 1.0, 2.0 or 3.0"))),
    };
    if len as usize > MAX_HEADER {
        return Err(Error::TooLarge { what: "npy header length", got: len.into(), limit: MAX_HEADER as u64 });
    }
    let Some(text) = rest.get(..len as usize) else {
        return Err(Error::Format(format!("npy header of {len} bytes, file has {} there", rest.len())));
    };
    Ok((text, bytes.len() - rest.len() + text.len()))
}

fn shown_start(bytes: &[u8]) -> String {
    shown(&bytes[..bytes.len().min(MAGIC.len())])
}

fn dtype_of(descr: &[u8]) -> Result<Dtype> {
    match descr {
        b"<f4" => Ok(Dtype::F32),
        b"<f2" => Ok(Dtype::F16),
        b"<f8" => Ok(Dtype::F64),
        b"|i1" | b"<i1" => Ok(Dtype::I8),
        b"|u1" | b"<u1" => Ok(Dtype::U8),
        b"<i4" => Ok(Dtype::I32),
        [b'>', ..] => {
            Err(Error::Format(format!("dtype '{}' is big-endian, want little-endian", shown(descr))))
        }
        _ => Err(Error::Format(format!("dtype '{}', want <f4, <f2, <f8, |i1, |u1 or <i4", shown(descr)))),
    }
}

/// The name of an element type in a header; numpy has none for bf16.
pub(super) fn descr(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F32 => Some("<f4"),
        Dtype::F16 => Some("<f2"),
        Dtype::F64 => Some("<f8"),
        Dtype::I8 => Some("|i1"),
        Dtype::U8 => Some("|u1"),
        Dtype::I32 => Some("<i4"),
        Dtype::Bf16 => None,
    }
}

/// What the header says.
struct Header<'a> {
    descr: &'a [u8],
    fortran_order: bool,
    shape: Shape<'a>,
}

/// A shape of any length. Only two dimensions are ever used.
struct Shape<'a> {
    dims: [u64; 2],
    len: usize,
    text: &'a [u8],
}

impl Shape<'_> {
    /// One dimension is one row.
    fn rows_and_columns(&self) -> Result<(u64, u64)> {
        match (self.dims, self.len) {
            ([columns, _], 1) => Ok((1, columns)),
            ([rows, columns], 2) => Ok((rows, columns)),
            (_, len) => {
                let text = shown(self.text);
                Err(Error::Format(format!("shape {text} has {len} dimensions, want 1 or 2")))
            }
        }
    }
}

impl<'a> Header<'a> {
    fn parse(text: &'a [u8]) -> Result<Self> {
        let mut scan = Scan { text, at: 0 };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        scan.want(b'{')?;
        while !scan.eat(b'}') {
            let key = scan.string()?;
            scan.want(b':')?;
            let is_new = match key {
                b"descr" => descr.replace(scan.descr()?).is_none(),
                b"fortran_order" => fortran_order.replace(scan.boolean()?).is_none(),
                b"shape" => shape.replace(scan.shape()?).is_none(),
                _ => return Err(scan.error(&format!("unknown key '{}'", shown(key)))),
            };
            if !is_new {
                return Err(scan.error(&format!("key '{}' twice", shown(key))));
            }
            if !scan.eat(b',') {
                scan.want(b'}')?;
                break;
            }
        }
        scan.skip_space();
        if scan.at != text.len() {
            return Err(scan.error("text after the closing }"));
        }
        let missing = |key: &str| Error::Format(format!("npy header: no key '{key}'"));
        Ok(Self {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// A place in the header's text. Every method but `error` begins by skipping white space.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn error(&self, what: &str) -> Error {
        Error::Format(format!("npy header: {what} at byte {}", self.at))
    }

    fn skip_space(&mut self) {
        self.take_while(|byte| byte.is_ascii_whitespace());
    }

    fn take_while(&mut self, belongs: impl Fn(&u8) -> bool) -> &'a [u8] {
        let rest = &self.text[self.at..];
        let len = rest.iter().position(|byte| !belongs(byte)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn want(&mut self, byte: u8) -> Result<()> {
        if self.eat(byte) { Ok(()) } else { Err(self.error(&format!("want '{}'", char::from(byte)))) }
    }

    /// A string without escapes.
    fn string(&mut self) -> Result<&'a [u8]> {
        let quote = match self.peek() {
            Some(quote @ (b'\'' | b'"')) => quote,
            _ => return Err(self.error("want a string")),
        };
        self.at += 1;
        let string = self.take_while(|&byte| byte != quote && byte != b'\\' && byte != b'\n');
        if self.text.get(self.at) != Some(&quote) {
            return Err(self.error("want the end of a string"));
        }
        self.at += 1;
        Ok(string)
    }

    fn descr(&mut self) -> Result<&'a [u8]> {
        match self.peek() {
            Some(b'[' | b'(') => Err(Error::Format("structured dtype, want plain numbers".into())),
            _ => self.string(),
        }
    }

    fn boolean(&mut self) -> Result<bool> {
        self.skip_space();
        match self.take_while(u8::is_ascii_alphabetic) {
            b"True" => Ok(true),
            b"False" => Ok(false),
            _ => Err(self.error("want True or False")),
        }
    }

    /// A decimal integer; Python 2 wrote a trailing L.
    fn integer(&mut self) -> Result<u64> {
        self.skip_space();
        let digits = self.take_while(u8::is_ascii_digit);
        if digits.is_empty() {
            return Err(self.error("want a length of 0 or more"));
        }
        let mut value = 0u64;
        for digit in digits {
            let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0')));
            value = next.ok_or_else(|| self.error(&format!("length {} is too large", shown(digits))))?;
        }
        if self.text.get(self.at) == Some(&b'L') {
            self.at += 1;
        }
        Ok(value)
    }

    /// A tuple of lengths: `()`, `(3,)`, `(3, 4)`.
    fn shape(&mut self) -> Result<Shape<'a>> {
        self.want(b'(')?;
        let start = self.at - 1;
        let mut dims = [0; 2];
        let mut len = 0;
        while !self.eat(b')') {
            let value = self.integer()?;
            if let Some(dim) = dims.get_mut(len) {
                *dim = value;
            }
            len += 1;
            if !self.eat(b',') {
                // One value in parentheses is a number, not a tuple.
                if len == 1 {
                    return Err(self.error("want ','"));
                }
                self.want(b')')?;
                break;
            }
        }
        Ok(Shape { dims, len, text: &self.text[start..self.at] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of version 1.0 with this header text and so many bytes of data.
    fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let len = u16::try_from(header.len()).unwrap().to_le_bytes();
        [MAGIC, &[1, 0], &len, header.as_bytes(), &vec![1; data_bytes]].concat()
    }

    fn plain(descr: &str, shape: &str, data_bytes: usize) -> Vec<u8> {
        file(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}   \n"), data_bytes)
    }

    fn parsed(bytes: &[u8]) -> Result<Layout> {
        layout(bytes, bytes.len() as u64, &Limits::default())
    }

    fn message(bytes: &[u8]) -> String {
        parsed(bytes).unwrap_err().to_string()
    }

    #[test]
    fn one_dimension_is_a_vector_and_two_are_rows() {
        let vector = parsed(&plain("<f4", "(3,)", 12)).unwrap();
        assert_eq!((vector.dtype, vector.rows, vector.dim), (Dtype::F32, 1, 3));
        let bytes = plain("<f4", "(2, 3)", 24);
        let rows = parsed(&bytes).unwrap();
        assert_eq!((rows.rows, rows.dim), (2, 3));
        assert_eq!(rows.row_range(1).end, bytes.len());
        assert_eq!(rows.row_range(0).start, bytes.len() - 24);
    }

    #[test]
    fn files_that_numpy_wrote_are_read() {
        for (set, dtype, dim, rows) in [
            ("minilm384", Dtype::F32, 384, 1000),
            ("glove100", Dtype::F32, 100, 2000),
            ("sift128", Dtype::U8, 128, 2000),
        ] {
            for (part, want) in
                [("base", (dtype, dim, rows)), ("query", (dtype, dim, 50)), ("gt", (Dtype::I32, 10, 50))]
            {
                let path = format!("{}/tests/data/{set}_{part}.npy", env!("CARGO_MANIFEST_DIR"));
                let bytes = std::fs::read(&path).unwrap();
                let layout = parsed(&bytes).unwrap();
                assert_eq!((layout.dtype, layout.dim, layout.rows), want, "{path}");
                let mut seen = 0;
                crate::format::validate(&layout, &bytes, true, |_, _| seen += 1).unwrap();
                assert_eq!(seen, want.2, "{path}");
            }
        }
    }

    #[test]
    fn every_accepted_dtype_is_known() {
        for (descr, dtype) in [
            ("<f4", Dtype::F32),
            ("<f2", Dtype::F16),
            ("<f8", Dtype::F64),
            ("|i1", Dtype::I8),
            ("|u1", Dtype::U8),
            ("<i1", Dtype::I8),
            ("<u1", Dtype::U8),
            ("<i4", Dtype::I32),
        ] {
            let layout = parsed(&plain(descr, "(2, 2)", 4 * dtype.size_bytes())).unwrap();
            assert_eq!(layout.dtype, dtype, "{descr}");
        }
    }

    #[test]
    fn row_numbers_are_read_in_every_width_and_order() {
        let rows = |numbers: &Numbers| -> Vec<Vec<i64>> {
            (0..numbers.rows()).map(|row| numbers.row(row).collect()).collect()
        };
        let header = |descr: &str, order: &str, shape: &str| {
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n")
        };
        let written = |descr, order, shape, data: &[u8]| {
            let mut bytes = file(&header(descr, order, shape), 0);
            bytes.extend_from_slice(data);
            npy_numbers(&bytes)
        };
        let four: Vec<u8> = [1i32, 2, 3, 4, 5, -6].iter().flat_map(|value| value.to_le_bytes()).collect();
        let eight: Vec<u8> = [1i64, 2, 3, 4, 5, -6].iter().flat_map(|value| value.to_le_bytes()).collect();
        let signed = [vec![1, 2, 3], vec![4, 5, -6]];
        assert_eq!(rows(&written("<i4", "False", "(2, 3)", &four).unwrap()), signed);
        assert_eq!(rows(&written("<i8", "False", "(2, 3)", &eight).unwrap()), signed);
        assert_eq!(rows(&written("<i8", "True", "(3, 2)", &eight).unwrap()), [[1, 4], [2, 5], [3, -6]]);
        assert_eq!(rows(&written("<u4", "False", "(1, 1)", &[0xff; 4]).unwrap()), [[0xffff_ffff]]);
        assert_eq!(rows(&written("<u8", "False", "(1,)", &[0xff; 8]).unwrap()), [[i64::MAX]]);
        let refused = |descr, shape, data: &[u8]| {
            written(descr, "False", shape, data).map(|_| ()).unwrap_err().to_string()
        };
        assert_eq!(refused("<f4", "(2, 3)", &four), "dtype '<f4', want <i4, <i8, <u4 or <u8");
        assert_eq!(refused("<i4", "(2, 4)", &four), "shape (2, 4) of 4 bytes each, file has 24");
        assert_eq!(
            refused("<i8", "(4611686018427387904, 4)", &eight),
            "shape (4611686018427387904, 4) of 8 bytes each, file has 48"
        );
        assert_eq!(refused("<i4", "(9, 0)", &[]), "shape (9, 0) of 4 bytes each, file has 0");
        assert_eq!(refused("<i4", "(1, 2, 3)", &four), "shape (1, 2, 3) has 3 dimensions, want 1 or 2");
    }

    #[test]
    fn other_dtypes_are_refused_by_name() {
        assert_eq!(message(&plain(">f4", "(1,)", 4)), "dtype '>f4' is big-endian, want little-endian");
        for descr in ["|O", "<i8", "=f4", "f4", "|f4", "<f4 ", "|b1", "<c8", "|V2", "<U3", ""] {
            let want = format!("dtype '{descr}', want <f4, <f2, <f8, |i1, |u1 or <i4");
            assert_eq!(message(&plain(descr, "(1,)", 4)), want);
        }
        for descr in ["[('x', '<f4')]", "('<f4', (2,))"] {
            let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,)}}");
            assert_eq!(message(&file(&header, 4)), "structured dtype, want plain numbers");
        }
    }

    #[test]
    fn headers_of_other_writers_are_read() {
        for header in [
            "{'shape':(2,3),'fortran_order':False,'descr':'<f4'}",
            "{\"descr\": \"<f4\", \"fortran_order\": False, \"shape\": (2, 3)}",
            " \t{ 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 2 , 3 , ) , } \n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }\n",
        ] {
            let layout = parsed(&file(header, 24)).unwrap_or_else(|error| panic!("{header:?}: {error}"));
            assert_eq!((layout.rows, layout.dim), (2, 3));
        }
    }

    #[test]
    fn versions_2_and_3_have_a_longer_length() {
        let header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        for major in [2, 3] {
            let len = u32::try_from(header.len()).unwrap().to_le_bytes();
            let bytes = [MAGIC, &[major, 0], &len, header, &[0; 24]].concat();
            assert_eq!(parsed(&bytes).unwrap().offset, bytes.len() as u64 - 24);
        }
        for version in [[0, 0], [1, 1], [4, 0], [255, 255]] {
            let bytes = [MAGIC, &version, &[0; 64]].concat();
            let want = format!("npy version {}.{}, want 1.0, 2.0 or 3.0", version[0], version[1]);
            assert_eq!(message(&bytes), want);
        }
    }

    #[test]
    fn fortran_order_is_accepted_where_it_makes_no_difference() {
        let fortran =
            |shape: &str| file(&format!("{{'descr':'<f4','fortran_order':True,'shape':{shape}}}"), 24);
        for (shape, rows, dim) in [("(6,)", 1, 6), ("(1, 6)", 1, 6), ("(6, 1)", 6, 1)] {
            let layout = parsed(&fortran(shape)).unwrap();
            assert_eq!((layout.rows, layout.dim), (rows, dim), "{shape}");
        }
        assert_eq!(
            message(&fortran("(2, 3)")),
            "shape (2, 3) in Fortran order, want C order (numpy.ascontiguousarray)"
        );
    }

    #[test]
    fn shapes_that_are_no_vectors_are_refused_by_name() {
        assert_eq!(message(&plain("<f4", "()", 4)), "shape () has 0 dimensions, want 1 or 2");
        assert_eq!(message(&plain("<f4", "(1, 1, 1)", 4)), "shape (1, 1, 1) has 3 dimensions, want 1 or 2");
        let many = format!("({})", "1, ".repeat(9000));
        let shown = "1, ".repeat(13);
        assert_eq!(
            message(&plain("<f4", &many, 4)),
            format!("shape ({shown}... has 9000 dimensions, want 1 or 2")
        );
        assert_eq!(message(&plain("<f4", "(0, 3)", 0)), "no rows");
        assert_eq!(message(&plain("<f4", "(3, 0)", 0)), "dimension 0, want at least 1");
        assert_eq!(message(&plain("<f4", "(0,)", 0)), "dimension 0, want at least 1");
        assert_eq!(message(&plain("<f4", "(16385,)", 0)), "dimension 16385, the limit is 16384");
        assert_eq!(
            message(&plain("|u1", "(4294967295, 1)", 0)),
            "number of rows 4294967295, the limit is 4294967294"
        );
    }

    #[test]
    fn data_that_is_shorter_or_longer_than_the_shape_is_refused() {
        let offset = plain("<f4", "(2, 3)", 0).len();
        for got in [0, 23, 25] {
            assert_eq!(
                message(&plain("<f4", "(2, 3)", got)),
                format!("header says 2 rows x 3 f32 = 24 bytes after offset {offset}, file has {got}")
            );
        }
    }

    #[test]
    fn headers_that_are_not_the_expected_dict_are_refused() {
        for (header, want) in [
            ("", "want '{' at byte 0"),
            ("{}", "no key 'descr'"),
            ("{'descr': '<f4', 'fortran_order': False}", "no key 'shape'"),
            ("{'descr': '<f4', 'shape': (1,)}", "no key 'fortran_order'"),
            ("{'descr': '<f4', 'descr': '<f4'}", "key 'descr' twice at byte 31"),
            ("{'x': 1}", "unknown key 'x' at byte 5"),
            ("{'shape': (1)}", "want ',' at byte 12"),
            ("{'shape': (1,,)}", "want a length of 0 or more at byte 13"),
            ("{'shape': (,)}", "want a length of 0 or more at byte 11"),
            ("{'shape': (-1,)}", "want a length of 0 or more at byte 11"),
            ("{'shape': (1.0,)}", "want ',' at byte 12"),
            ("{'shape': [1]}", "want '(' at byte 10"),
            ("{'shape': (1,", "want a length of 0 or more at byte 13"),
            ("{'shape': (18446744073709551616,)}", "length 18446744073709551616 is too large at byte 31"),
            ("{'descr': '<f4}", "want the end of a string at byte 15"),
            ("{'descr': '<\\x66'}", "want the end of a string at byte 12"),
            ("{'descr': None}", "want a string at byte 10"),
            ("{'fortran_order': 0}", "want True or False at byte 18"),
            ("{'fortran_order': Falsey}", "want True or False at byte 24"),
            ("{'descr' '<f4'}", "want ':' at byte 9"),
            ("{'descr': '<f4' 'shape': (1,)}", "want '}' at byte 16"),
            ("{descr: 1}", "want a string at byte 1"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x",
                "text after the closing } at byte 56",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}\0",
                "text after the closing } at byte 55",
            ),
        ] {
            assert_eq!(message(&file(header, 4)), format!("npy header: {want}"), "{header:?}");
        }
    }

    #[test]
    fn a_header_outside_the_file_or_too_long_is_refused() {
        let whole = plain("<f4", "(1,)", 4);
        let header_end = whole.len() - 4;
        for len in MAGIC.len()..10 {
            assert_eq!(message(&whole[..len]), format!("{len} bytes, too short for the header of an npy"));
        }
        for len in 10..header_end {
            let want = format!("npy header of {} bytes, file has {} there", header_end - 10, len - 10);
            assert_eq!(message(&whole[..len]), want);
        }
        let long = [MAGIC, &[2, 0], &65_537u32.to_le_bytes(), &[b' '; 70_000]].concat();
        assert_eq!(message(&long), "npy header length 65537, the limit is 65536");
        let longest = [MAGIC, &[2, 0], &u32::MAX.to_le_bytes()].concat();
        assert_eq!(message(&longest), "npy header length 4294967295, the limit is 65536");
        assert_eq!(message(b"\x93NUMPX\x01\x00"), "begins with '\\x93NUMPX', not with the magic of npy");
        assert_eq!(message(b"P"), "begins with 'P', not with the magic of npy");
    }
}
