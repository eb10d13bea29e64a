//! A query in one system call: the `ioctl` of the `query` file, both sides of it.
//!
//! `_IOWR('V', 'q', SIZE)` takes a request in a buffer of `SIZE` bytes and leaves its answer in the same buffer; what it
//! returns is how much of that is the answer. A `write` and a `read` ask the daemon twice, and the caller sleeps and is
//! woken each time, which together takes as long as searching a small collection.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOWR('V', 'q', 0)`.
const COMMAND: u32 = 0xc000_5671;

/// Where a command says how long its buffer is.
const SIZE_SHIFT: u32 = 16;

/// The longest buffer that a command can have, in bytes.
pub const MAX_BYTES: u16 = 0x3fff;

/// Whether a command is this one, whatever the size.
pub(super) fn is_ask(command: u32) -> bool {
    command & !(u32::from(MAX_BYTES) << SIZE_SHIFT) == COMMAND
}

/// Asks an open `query` file: `buffer` begins with a request for one vector, then zero bytes, and then begins with the
/// answer, whose length is returned.
///
/// # Errors
///
/// `InvalidInput` for a buffer of more than [`MAX_BYTES`]; those of the request and of the search.
#[expect(unsafe_code, reason = "there is no safe call for a command of one's own")]
pub fn ask(query: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let size = u16::try_from(buffer.len()).ok().filter(|size| *size <= MAX_BYTES);
    let Some(size) = size else {
        let message = format!("buffer of {} bytes, the limit is {MAX_BYTES}", buffer.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    };
    let command = COMMAND | u32::from(size) << SIZE_SHIFT;
    // SAFETY: the kernel reads and writes as many bytes as the command says, which are the buffer's.
    let done = unsafe { libc::ioctl(query.as_raw_fd(), command as libc::Ioctl, buffer.as_mut_ptr()) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_known_with_every_size_and_no_other_is() {
        let of_size = |size: u16| COMMAND | u32::from(size) << SIZE_SHIFT;
        assert_eq!(libc::Ioctl::from(of_size(1000)), nix::request_code_readwrite!(b'V', b'q', 1000));
        assert!(is_ask(of_size(0)) && is_ask(of_size(1)) && is_ask(of_size(MAX_BYTES)));
        for other in [of_size(9) ^ 1, of_size(9) ^ 1 << 8, of_size(9) ^ 1 << 30, of_size(9) ^ 1 << 31, 0] {
            assert!(!is_ask(other), "{other:x}");
        }
    }

    #[test]
    fn a_longer_buffer_is_refused_with_both_numbers() {
        let file = tempfile::tempfile().unwrap();
        let error = ask(&file, &mut vec![0; usize::from(MAX_BYTES) + 1]).unwrap_err();
        assert_eq!(error.to_string(), "buffer of 16384 bytes, the limit is 16383");
        assert_eq!(ask(&file, &mut [0; 8]).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
