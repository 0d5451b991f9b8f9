//! Writing an object in parts, for what is too large to be held in memory.

use super::{Put, Result};
use bytes::Bytes;

/// The length of every part of an upload but the last, in bytes. S3 takes no part below 5 MiB but the last, and no
/// more than 10,000 of them; some stores want all of one length.
pub const PART_SIZE: usize = 8 << 20;

/// An object that is being written in parts ([`super::Storage::upload_new`]). Nothing is to be seen under its key
/// before [`Upload::complete`]; dropped without that, nothing is left.
///
/// Parts come in their order. A call that failed may be repeated, whether or not it had its effect.
pub trait Upload: Send {
    /// Sends part number `index`, counted from 0: [`PART_SIZE`] bytes, or fewer if it is the last. The same part may be
    /// sent again, as long as its bytes are the same.
    fn part(&mut self, index: u32, bytes: &Bytes) -> Result<()>;

    /// Makes the object of its parts and returns only when it is durable. Never overwrites, as
    /// [`super::Storage::put_new`].
    fn complete(&mut self) -> Result<Put>;
}
