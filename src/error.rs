//! What can go wrong, with the data needed to act on it.
//!
//! Variants are about VexFS's own notions; the number that a system call returns for each is chosen in
//! one place, `fuse::errno`. Messages are lower case, without a full stop, and name both numbers.

use std::path::PathBuf;

/// The result of every fallible function of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that a VexFS operation can report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such name, inode or handle's target.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// A path component or operand is not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// The operation wants something other than a directory.
    #[error("is a directory")]
    IsDirectory,
    /// A directory to be removed or replaced has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// A name is longer than 255 bytes.
    #[error("name of {got} bytes, the limit is 255")]
    NameTooLong {
        /// Length of the name in bytes.
        got: usize,
    },
    /// The caller's permissions do not allow it.
    #[error("permission denied")]
    PermissionDenied,
    /// The operation is not permitted to anybody, or only to the owner or root.
    #[error("operation not permitted")]
    NotPermitted,
    /// The object is read-only by nature (results, rows) or the volume refuses changes.
    #[error("read-only")]
    ReadOnly,
    /// A reserved name or a directory in use cannot be changed.
    #[error("resource busy")]
    Busy,
    /// A hard link or rename would put one inode into two collections that disagree.
    #[error("dimension {got}, the target collection has {expected}")]
    CrossDimension {
        /// Dimension of the target collection.
        expected: u32,
        /// Dimension of the file.
        got: u32,
    },
    /// The inode has as many links as it can have.
    #[error("too many links")]
    TooManyLinks,
    /// No extended attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// The caller's buffer is too small for the attribute.
    #[error("attribute of {need} bytes, the buffer has {got}")]
    AttributeRange {
        /// Size of the value in bytes.
        need: usize,
        /// Size of the caller's buffer in bytes.
        got: usize,
    },
    /// An attribute's value is larger than an attribute can be.
    #[error("attribute of {got} bytes, the limit is {limit}")]
    AttributeTooBig {
        /// Size asked for, in bytes.
        got: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// No space in the store's filesystem.
    #[error("no space left in the store")]
    NoSpace,
    /// A file would be larger than the limit.
    #[error("file of {got} bytes, the limit is {limit}")]
    FileTooBig {
        /// Size asked for, in bytes.
        got: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The handle is not open, or not open for this.
    #[error("bad file handle")]
    BadHandle,
    /// A seek for data or a hole found none.
    #[error("no data or hole beyond the offset")]
    NoSuchOffset,
    /// An argument has no meaning for this operation.
    #[error("{0}")]
    Invalid(&'static str),
    /// A feature that VexFS, or this object, does not have.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// A vector's length differs from its collection's.
    #[error("dimension {got}, collection has {expected}")]
    Dimension {
        /// Dimension of the collection.
        expected: u32,
        /// Dimension of the vector.
        got: u32,
    },
    /// The bytes of a vector file do not follow its format.
    #[error("{0}")]
    Format(String),
    /// A vector has a NaN, an infinity, or a number that f32 does not reach.
    #[error("row {row}, column {column}: value is {value:e}, {}", match value.is_finite() {
        true => "beyond the range of f32",
        false => "want a finite number",
    })]
    NotFinite {
        /// Row within the file.
        row: u64,
        /// Column within the row.
        column: u32,
        /// The value found.
        value: f64,
    },
    /// A vector is too long for distances to be finite, or too short for cosine.
    #[error("row {row}: norm {norm:.1e}, {} {bound:.1e}", match *norm > f64::from(*bound) {
        true => "want at most",
        false => "cosine wants at least",
    })]
    Norm {
        /// Row within the file.
        row: u64,
        /// Its Euclidean norm.
        norm: f64,
        /// The norm that it is above or below.
        bound: f32,
    },
    /// A zero vector has no direction, so no cosine distance.
    #[error("row {row}: the zero vector has no cosine distance")]
    ZeroVector {
        /// Row within the file.
        row: u64,
    },
    /// Something from outside is larger than its limit.
    #[error("{what} {got}, the limit is {limit}")]
    TooLarge {
        /// What is too large: "dimension", "k", "request of bytes".
        what: &'static str,
        /// The size asked for.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// A user holds more in memory than it may.
    #[error("{what} {got} are held for this user, the limit is {limit}")]
    OverBudget {
        /// What is too much: "requests and answers of bytes".
        what: &'static str,
        /// What would be held.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// A configuration key is unknown or its value is refused.
    #[error("config: {0}")]
    Config(String),
    /// A search request cannot be understood.
    #[error("request: {0}")]
    Request(String),
    /// A search names a file that is not there.
    #[error("{path}: no such file or directory")]
    Missing {
        /// The path asked for, relative to the directory asked.
        path: String,
    },
    /// A search names a file that has no vector.
    #[error("{path}: {why}")]
    NotAVector {
        /// The path asked for, relative to the directory asked.
        path: String,
        /// Its status.
        why: String,
    },
    /// A text query where no embedder is set.
    #[error("no embedder is set: text queries are not supported")]
    NoEmbedder,
    /// A search ran into its deadline.
    #[error("deadline of {limit_ms} ms exceeded")]
    Deadline {
        /// The deadline in milliseconds.
        limit_ms: u64,
    },
    /// Nobody waits for the answer of a search any more.
    #[error("interrupted")]
    Interrupted,
    /// Bytes in the store contradict their checksum or structure.
    #[error("{file}: offset {offset}: {what}")]
    Corrupt {
        /// File within the store.
        file: String,
        /// Byte offset of the damage.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The store was written by a format version that this program does not know.
    #[error("{}: format version {got}, this program reads {expected}", path.display())]
    Version {
        /// The store directory.
        path: PathBuf,
        /// Version this program reads.
        expected: u32,
        /// Version found.
        got: u32,
    },
    /// Another process has the store open.
    #[error("{}: store is in use by {holder}", path.display())]
    StoreLocked {
        /// The store directory.
        path: PathBuf,
        /// Who holds it: process id and mount point.
        holder: String,
    },
    /// The store directory cannot be trusted or used.
    #[error("{}: {why}", path.display())]
    Store {
        /// The store directory.
        path: PathBuf,
        /// Why it is refused.
        why: String,
    },
    /// A commit or sync of ground state failed, so the volume refuses changes until it is reopened.
    #[error("volume is read-only after a failed write: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// The catalog engine failed.
    #[error("catalog: {0}")]
    Catalog(String),
    /// A system call on the store failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    /// Whether it says that a file's content is no vector for its collection. Such content is kept, and the
    /// message becomes the file's status.
    #[must_use]
    pub fn is_about_content(&self) -> bool {
        matches!(
            self,
            Error::Format(_)
                | Error::Dimension { .. }
                | Error::NotFinite { .. }
                | Error::Norm { .. }
                | Error::ZeroVector { .. }
                | Error::TooLarge { .. }
        )
    }
}

impl Error {
    /// The POSIX name of the error that a system call returns for it. Answers show the name; its number is the
    /// business of `fuse`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Error::NotFound | Error::Missing { .. } => "ENOENT",
            Error::Exists => "EEXIST",
            Error::NotDirectory => "ENOTDIR",
            Error::IsDirectory => "EISDIR",
            Error::NotEmpty => "ENOTEMPTY",
            Error::NameTooLong { .. } => "ENAMETOOLONG",
            Error::PermissionDenied => "EACCES",
            Error::NotPermitted => "EPERM",
            // Poisoned: a remount is needed, and reads go on, as on a kernel filesystem after errors=remount-ro.
            Error::ReadOnly | Error::Poisoned { .. } => "EROFS",
            Error::Busy | Error::StoreLocked { .. } => "EBUSY",
            // Two collections that disagree are two filesystems as far as a name is concerned: mv then copies.
            Error::CrossDimension { .. } => "EXDEV",
            Error::TooManyLinks => "EMLINK",
            // The kernel's word for a missing attribute; ENOATTR is another system's.
            Error::NoAttribute => "ENODATA",
            Error::AttributeRange { .. } => "ERANGE",
            Error::AttributeTooBig { .. } => "E2BIG",
            Error::NoSpace => "ENOSPC",
            Error::FileTooBig { .. } => "EFBIG",
            Error::BadHandle => "EBADF",
            // What lseek(2) says for SEEK_DATA and SEEK_HOLE.
            Error::NoSuchOffset => "ENXIO",
            Error::Invalid(_)
            | Error::Dimension { .. }
            | Error::Format(_)
            | Error::Config(_)
            | Error::Request(_)
            | Error::NotAVector { .. } => "EINVAL",
            Error::Unsupported(_) | Error::NoEmbedder => "EOPNOTSUPP",
            // The shape is right, the value has no distance: distinct from EINVAL, so that a script can tell.
            Error::NotFinite { .. } | Error::Norm { .. } | Error::ZeroVector { .. } => "EDOM",
            // Not EFBIG or E2BIG, which would speak of the file or of an argument list.
            Error::TooLarge { .. } => "EMSGSIZE",
            // Not ENOMEM, which nobody can do anything about: reading an answer or closing a handle helps here.
            Error::OverBudget { .. } => "EDQUOT",
            Error::Deadline { .. } => "ETIMEDOUT",
            Error::Interrupted => "EINTR",
            // "Structure needs cleaning", as ext4 and xfs say of a damaged image.
            Error::Corrupt { .. } => "EUCLEAN",
            // These come up when a store is opened, before anybody can ask the kernel.
            Error::Version { .. } | Error::Store { .. } => "EINVAL",
            Error::Catalog(_) => "EIO",
            Error::Io(error) => match error.raw_os_error() {
                Some(libc::ENOSPC) => "ENOSPC",
                Some(libc::EDQUOT) => "EDQUOT",
                Some(libc::EACCES) => "EACCES",
                Some(libc::EMFILE) => "EMFILE",
                Some(libc::ENOMEM) => "ENOMEM",
                _ => "EIO",
            },
        }
    }
}
