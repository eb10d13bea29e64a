//! What a file is, by its final name, or by its first bytes where the name says nothing.

use super::{Dtype, FileKind, npy};

/// What the final name of a file says about its content; `None` for an ordinary file.
///
/// `name` is one path component. Suffixes are lower case and compared byte by byte. Temporary names, those that
/// begin with `.` or end in `~`, `.tmp`, `.part` or `.swp`, and `#name#`, are ordinary files.
#[must_use]
pub fn recognise(name: &[u8]) -> Option<FileKind> {
    // A temporary name of the other forms ends in something that is no suffix below.
    if name.starts_with(b".") {
        return None;
    }
    let dot = name.iter().rposition(|&byte| byte == b'.')?;
    match &name[dot + 1..] {
        b"f32" => Some(FileKind::Raw(Dtype::F32)),
        b"f16" => Some(FileKind::Raw(Dtype::F16)),
        b"bf16" => Some(FileKind::Raw(Dtype::Bf16)),
        b"f64" => Some(FileKind::Raw(Dtype::F64)),
        b"i8" => Some(FileKind::Raw(Dtype::I8)),
        b"u8" => Some(FileKind::Raw(Dtype::U8)),
        b"vec" => Some(FileKind::Text),
        b"npy" => Some(FileKind::Npy),
        b"fvecs" => Some(FileKind::Vecs(Dtype::F32)),
        b"bvecs" => Some(FileKind::Vecs(Dtype::U8)),
        b"ivecs" => Some(FileKind::Vecs(Dtype::I32)),
        b"fbin" => Some(FileKind::Bin(Dtype::F32)),
        b"f16bin" => Some(FileKind::Bin(Dtype::F16)),
        b"u8bin" => Some(FileKind::Bin(Dtype::U8)),
        b"i8bin" => Some(FileKind::Bin(Dtype::I8)),
        _ => None,
    }
}

/// What a query file without a recognised name holds, by its bytes: `.npy`, or text numbers.
///
/// `None` where neither fits; the caller then takes the bytes for raw f32 rows. Bytes are text when all of them
/// are printable ASCII or white space and the first that is not white space can begin a number or a list.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Option<FileKind> {
    if bytes.starts_with(npy::MAGIC) {
        return Some(FileKind::Npy);
    }
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace())?;
    let begins_as_text = matches!(first, b'[' | b'0'..=b'9' | b'+' | b'-' | b'.');
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    (begins_as_text && bytes.iter().all(is_text)).then_some(FileKind::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suffix_is_recognised() {
        let table = [
            ("f32", FileKind::Raw(Dtype::F32)),
            ("f16", FileKind::Raw(Dtype::F16)),
            ("bf16", FileKind::Raw(Dtype::Bf16)),
            ("f64", FileKind::Raw(Dtype::F64)),
            ("i8", FileKind::Raw(Dtype::I8)),
            ("u8", FileKind::Raw(Dtype::U8)),
            ("vec", FileKind::Text),
            ("npy", FileKind::Npy),
            ("fvecs", FileKind::Vecs(Dtype::F32)),
            ("bvecs", FileKind::Vecs(Dtype::U8)),
            ("ivecs", FileKind::Vecs(Dtype::I32)),
            ("fbin", FileKind::Bin(Dtype::F32)),
            ("f16bin", FileKind::Bin(Dtype::F16)),
            ("u8bin", FileKind::Bin(Dtype::U8)),
            ("i8bin", FileKind::Bin(Dtype::I8)),
        ];
        for (suffix, kind) in table {
            for stem in ["a", "a.b", "a.tmp", "#a", "~", "a b", "\u{e4}", "a..", "\\"] {
                let name = format!("{stem}.{suffix}");
                assert_eq!(recognise(name.as_bytes()), Some(kind), "{name:?}");
            }
            let temporary = ["~", ".tmp", ".part", ".swp", "#", ".bak", " ", ".", "\n", "\0"];
            for name in temporary.map(|end| format!("a.{suffix}{end}")) {
                assert_eq!(recognise(name.as_bytes()), None, "{name:?}");
            }
            for name in [
                format!(".{suffix}"),
                format!("..{suffix}"),
                format!(".a.{suffix}"),
                format!(".~lock.a.{suffix}#"),
                format!("#a.{suffix}#"),
                format!("a{suffix}"),
                suffix.to_string(),
                format!("a.{}", suffix.to_uppercase()),
            ] {
                assert_eq!(recognise(name.as_bytes()), None, "{name:?}");
            }
        }
    }

    #[test]
    fn names_that_are_no_text_or_no_names_are_ordinary() {
        for name in [&b""[..], b".", b"..", b"a", b"a.", b"\xff\xfe", b"a.\xff32", b"a.json5", b"x.txt"] {
            assert_eq!(recognise(name), None, "{name:?}");
        }
        assert_eq!(recognise(b"\xff.f32"), Some(FileKind::Raw(Dtype::F32)));
    }

    #[test]
    fn a_query_without_a_name_is_known_by_its_bytes() {
        assert_eq!(sniff(b"\x93NUMPY\x01\x00"), Some(FileKind::Npy));
        for text in ["[1, 2]", " \n\t-1 2", "+.5", ".5,1", "1e-3\r\n", "0"] {
            assert_eq!(sniff(text.as_bytes()), Some(FileKind::Text), "{text:?}");
        }
        let one = 1f32.to_le_bytes();
        // A single whose low bytes happen to be digits has a byte that is no text.
        let digits = f32::from_bits(0x3f31_3131).to_le_bytes();
        let long = [digits, one].concat();
        for raw in [&b""[..], b" \n", &one, &long, b"\x93NUMP", b"nan", b"{}", b"1\x000", b"1 \xc2\xa0"] {
            assert_eq!(sniff(raw), None, "{raw:?}");
        }
    }
}
