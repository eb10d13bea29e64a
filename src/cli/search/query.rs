//! The transaction file of a directory: a request line goes in, an answer line comes out.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::super::control::{self, ControlFile};
use super::super::exit::{Code, Failure};

/// Bytes asked for in one read.
const READ_BYTES: usize = 64 << 10;

/// Longest answer line that is taken: the most hits there can be, each with a path of 4096 bytes, escaped.
const LINE_MAX: usize = 512 << 20;

/// An open transaction file. Its requests and answers are nobody else's.
#[derive(Debug)]
pub(in crate::cli) struct QueryFile {
    file: File,
    path: PathBuf,
    dir: PathBuf,
}

impl QueryFile {
    /// Opens the one of `dir`, which every directory of a mount has.
    ///
    /// # Errors
    ///
    /// Those of [`control::open`].
    pub(in crate::cli) fn open(dir: &Path) -> Result<Self, Failure> {
        let ControlFile { file, path, dir } =
            control::open(dir, "query", File::options().read(true).write(true))?;
        Ok(Self { file, path, dir })
    }

    /// The directory, without symbolic links.
    pub(in crate::cli) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sends a request line and returns the answer line, without its end.
    ///
    /// # Errors
    ///
    /// What the mount answers to the system calls; `NotReady` when it gives no answer.
    pub(in crate::cli) fn ask(&mut self, request: &str) -> Result<String, Failure> {
        self.file.write_all(request.as_bytes()).map_err(|error| Failure::io(&self.path, &error))?;
        let line = read_line(&mut self.file).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Failure::new(Code::NotReady, format!("{}: no answer", self.path.display()))
            }
            _ => Failure::io(&self.path, &error),
        })?;
        String::from_utf8(line).map_err(|_| {
            Failure::new(Code::FAILED, format!("{}: the answer is not UTF-8", self.path.display()))
        })
    }
}

/// Reads up to a line end and nothing behind it: the next answer is made only after the next request.
fn read_line(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = vec![0; READ_BYTES];
    loop {
        let got = match from.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        line.extend_from_slice(&chunk[..got]);
        if line.last() == Some(&b'\n') {
            line.pop();
            return Ok(line);
        }
        if line.len() > LINE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_has_no_query_file() {
        let dir = tempfile::tempdir().unwrap();
        let failure = QueryFile::open(dir.path()).unwrap_err();
        assert_eq!(failure.code, Code::NotMounted);
        assert!(failure.message.ends_with("not in a VexFS mount"), "{}", failure.message);
        let failure = QueryFile::open(&dir.path().join("absent")).unwrap_err();
        assert_eq!(failure.code, Code::Invalid);
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let mut pieces = io::Cursor::new(b"{\"a\":".to_vec()).chain(io::Cursor::new(b"1}\n".to_vec()));
        assert_eq!(read_line(&mut pieces).unwrap(), b"{\"a\":1}");
        let error = read_line(&mut io::Cursor::new(b"cut off".to_vec())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
