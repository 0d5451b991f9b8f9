//! An object's bytes as a blocking reader.

use super::client::runtime;
use super::errors::chain;
use super::watch::Watch;
use crate::storage::{Deadline, Error};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_types::byte_stream::error::Error as StreamError;
use bytes::{Buf, Bytes};
use std::io::{self, Read};
use std::sync::Arc;

/// Reads the body of an answer. Each read waits for as long as the deadline lets a call stall. Its errors carry a
/// [`crate::storage::Error`].
pub(super) struct Body {
    /// The call, for messages.
    pub(super) what: String,
    pub(super) stream: ByteStream,
    pub(super) watch: Arc<Watch>,
    pub(super) deadline: Deadline,
    /// How many bytes are still to come, and how many there were to be.
    pub(super) left: u64,
    pub(super) size: u64,
    pub(super) chunk: Bytes,
}

impl Body {
    /// Fetches the next bytes. Returns false at the end.
    fn next(&mut self) -> io::Result<bool> {
        let Self { what, stream, watch, deadline, .. } = self;
        let waited =
            runtime().and_then(|runtime| runtime.block_on(watch.wait(deadline, what, stream.next())));
        match waited {
            Err(Error::TimedOut(text)) => Err(io::Error::new(io::ErrorKind::TimedOut, Error::TimedOut(text))),
            Err(error) => Err(io::Error::other(error)),
            Ok(Some(Ok(chunk))) => {
                self.left = self.left.checked_sub(chunk.len() as u64).ok_or_else(|| {
                    io::Error::other(Error::Unreachable(format!(
                        "{what}: more than the promised {} bytes",
                        self.size
                    )))
                })?;
                self.chunk = chunk;
                Ok(true)
            }
            Ok(Some(Err(error))) => {
                let broken = self.broken(&error);
                // The SDK found other bytes than the store's own checksum tells.
                let is_mismatch = broken.to_string().contains("checksum mismatch");
                let kind = if is_mismatch { io::ErrorKind::InvalidData } else { io::ErrorKind::Other };
                Err(io::Error::new(kind, broken))
            }
            Ok(None) if self.left > 0 => {
                let text = format!("{what}: ended {} bytes short of {}", self.left, self.size);
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, Error::Unreachable(text)))
            }
            Ok(None) => Ok(false),
        }
    }

    fn broken(&self, error: &StreamError) -> Error {
        let read = self.size - self.left;
        Error::Unreachable(format!(
            "{}: broke off after {read} of {} bytes: {}",
            self.what,
            self.size,
            chain(error)
        ))
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.chunk.is_empty() {
            if !self.next()? {
                return Ok(0);
            }
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
