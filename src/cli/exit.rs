//! Exit codes, and the failures that end a command.

use std::io;
use std::process::ExitCode;

use crate::Error;

/// What the program's exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// Done.
    Ok = 0,
    /// A search found nothing.
    NoResult = 1,
    /// The command line is wrong.
    Usage = 2,
    /// There is no VexFS mount, or a dead one.
    NotMounted = 3,
    /// The input is wrong: a vector, a request, a directory.
    Invalid = 4,
    /// Not now: busy with something that ends, or a deadline.
    NotReady = 5,
    /// The store is damaged.
    Damaged = 6,
}

impl Code {
    /// The same number as for a search without a result: "it did not work out", without a nearer reason.
    pub(super) const FAILED: Code = Code::NoResult;
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        ExitCode::from(code as u8)
    }
}

/// Why a command ends, for the person who typed it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    /// Lower case, without a full stop, naming the thing. Empty when it was said already.
    pub(super) message: String,
}

/// What a command comes to.
pub(super) type Outcome = Result<Code, Failure>;

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// An error of a system call on a path.
    pub(super) fn io(path: &std::path::Path, error: &io::Error) -> Self {
        Self::new(code_of_io(error), format!("{}: {error}", path.display()))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(code_of(&error), error.to_string())
    }
}

/// The exit code for an error of the library.
pub(super) fn code_of(error: &Error) -> Code {
    match error {
        Error::NotFound
        | Error::NotDirectory
        | Error::IsDirectory
        | Error::NameTooLong { .. }
        | Error::Invalid(_)
        | Error::Unsupported(_)
        | Error::Dimension { .. }
        | Error::CrossDimension { .. }
        | Error::Format(_)
        | Error::NotFinite { .. }
        | Error::Norm { .. }
        | Error::ZeroVector { .. }
        | Error::TooLarge { .. }
        | Error::Config(_)
        | Error::Request(_)
        | Error::NotAVector { .. }
        | Error::Missing { .. }
        | Error::NoEmbedder
        | Error::Version { .. }
        | Error::Store { .. } => Code::Invalid,
        Error::Busy | Error::Deadline { .. } | Error::StoreLocked { .. } => Code::NotReady,
        Error::Corrupt { .. } => Code::Damaged,
        Error::Exists
        | Error::NotEmpty
        | Error::PermissionDenied
        | Error::NotPermitted
        | Error::ReadOnly
        | Error::TooManyLinks
        | Error::NoAttribute
        | Error::AttributeRange { .. }
        | Error::AttributeTooBig { .. }
        | Error::NoSpace
        | Error::OverBudget { .. }
        | Error::FileTooBig { .. }
        | Error::BadHandle
        | Error::NoSuchOffset
        | Error::Interrupted
        | Error::Poisoned { .. }
        | Error::Catalog(_) => Code::FAILED,
        Error::Io(error) => code_of_io(error),
    }
}

/// The exit code for an error of a system call, also one that a mount answered.
pub(super) fn code_of_io(error: &io::Error) -> Code {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EDOM | libc::EMSGSIZE | libc::EOPNOTSUPP) => Code::Invalid,
        Some(libc::EAGAIN | libc::EBUSY | libc::ETIMEDOUT) => Code::NotReady,
        Some(libc::EUCLEAN) => Code::Damaged,
        // The daemon died.
        Some(libc::ENOTCONN) => Code::NotMounted,
        _ => Code::FAILED,
    }
}

/// The exit code for the `code` of an error in an answer.
pub(super) fn code_of_answer(code: &str) -> Code {
    match code {
        "EINVAL" | "EDOM" | "EMSGSIZE" | "EOPNOTSUPP" | "ENOENT" => Code::Invalid,
        "EAGAIN" | "EBUSY" | "ETIMEDOUT" => Code::NotReady,
        "EUCLEAN" => Code::Damaged,
        _ => Code::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_documentation() {
        let codes = [
            Code::Ok,
            Code::NoResult,
            Code::Usage,
            Code::NotMounted,
            Code::Invalid,
            Code::NotReady,
            Code::Damaged,
        ];
        assert_eq!(codes.map(|code| code as u8), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn damage_bad_input_and_bad_timing_differ() {
        let corrupt = Error::Corrupt { file: "seg".into(), offset: 0, what: "sum".into() };
        assert_eq!(code_of(&corrupt), Code::Damaged);
        assert_eq!(code_of(&Error::Dimension { expected: 4, got: 3 }), Code::Invalid);
        assert_eq!(code_of(&Error::Deadline { limit_ms: 1 }), Code::NotReady);
        let locked = Error::StoreLocked { path: "/s".into(), holder: "process 1".into() };
        assert_eq!(code_of(&locked), Code::NotReady);
        assert_eq!(code_of(&Error::Poisoned { reason: "fsync".into() }), Code::FAILED);
    }

    #[test]
    fn an_answer_and_a_system_call_say_the_same() {
        for (name, number) in [
            ("EINVAL", libc::EINVAL),
            ("EDOM", libc::EDOM),
            ("EMSGSIZE", libc::EMSGSIZE),
            ("EOPNOTSUPP", libc::EOPNOTSUPP),
            ("EAGAIN", libc::EAGAIN),
            ("EBUSY", libc::EBUSY),
            ("ETIMEDOUT", libc::ETIMEDOUT),
            ("EUCLEAN", libc::EUCLEAN),
            ("EIO", libc::EIO),
        ] {
            assert_eq!(code_of_answer(name), code_of_io(&io::Error::from_raw_os_error(number)), "{name}");
        }
        assert_eq!(code_of_io(&io::Error::from_raw_os_error(libc::ENOTCONN)), Code::NotMounted);
    }
}
