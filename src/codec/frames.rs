//! LZ4 frames, written and read one after the other.
//!
//! The blocks are those of lz4_flex, the framing around them is ours: its own encoder copies every byte into a buffer
//! and clears a table for each block, half as much again as the compression takes (`cargo bench --bench codec`). The
//! format: [LZ4 frame format](https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md).

use lz4_flex::block::{compress_into, get_maximum_output_size};
use lz4_flex::frame::FrameDecoder;
use std::hash::Hasher;
use std::io::{self, BufRead, Read, Write};
use twox_hash::XxHash32;

/// The size of a block before compression, in bytes.
const BLOCK: usize = 64 * 1024;
const MAGIC: u32 = 0x184D_2204;
/// Version 1, blocks independent of each other.
const VERSION_AND_INDEPENDENT: u8 = 0b0110_0000;
const CONTENT_CHECKSUM: u8 = 0b0000_0100;
/// Blocks of at most 64 KiB.
const BLOCK_SIZE: u8 = 4 << 4;
/// Marks a block that is stored as it is.
const UNCOMPRESSED: u32 = 1 << 31;

/// Compresses what is written to it, frame by frame.
pub struct FrameWriter<W: Write> {
    out: W,
    /// How many bytes went to `out`.
    written: u64,
    /// Plaintext that does not fill a block yet.
    pending: Vec<u8>,
    compressed: Vec<u8>,
    checksum: bool,
    /// The hash of the frame's content so far, where a frame was begun.
    frame: Option<XxHash32>,
    ended_frames: u64,
}

impl<W: Write> FrameWriter<W> {
    /// Returns a writer to `out`; with `checksum` each frame ends with one of its content.
    pub fn new(out: W, checksum: bool) -> Self {
        Self {
            out,
            written: 0,
            pending: Vec::new(),
            compressed: vec![0; get_maximum_output_size(BLOCK)],
            checksum,
            frame: None,
            ended_frames: 0,
        }
    }

    /// Ends the current frame, none if nothing was written since the last end, and returns the offset in the LZ4 stream
    /// at which the next one begins, in bytes.
    pub fn end_frame(&mut self) -> io::Result<u64> {
        if self.frame.is_none() {
            return Ok(self.written);
        }
        if !self.pending.is_empty() {
            let block = std::mem::take(&mut self.pending);
            self.block(&block)?;
            self.pending = block;
            self.pending.clear();
        }
        self.put(&0u32.to_le_bytes())?;
        if let Some(hash) = self.frame.take()
            && self.checksum
        {
            self.put(&(hash.finish() as u32).to_le_bytes())?;
        }
        self.ended_frames += 1;
        Ok(self.written)
    }

    /// Ends the last frame, an empty one if there was none, and returns where all went.
    pub fn finish(mut self) -> io::Result<W> {
        if self.ended_frames == 0 {
            self.begin_frame()?;
        }
        self.end_frame()?;
        Ok(self.out)
    }

    fn begin_frame(&mut self) -> io::Result<()> {
        if self.frame.is_none() {
            let descriptor =
                [VERSION_AND_INDEPENDENT | if self.checksum { CONTENT_CHECKSUM } else { 0 }, BLOCK_SIZE];
            self.put(&MAGIC.to_le_bytes())?;
            self.put(&descriptor)?;
            self.put(&[(XxHash32::oneshot(0, &descriptor) >> 8) as u8])?;
            self.frame = Some(XxHash32::with_seed(0));
        }
        Ok(())
    }

    fn block(&mut self, plain: &[u8]) -> io::Result<()> {
        if self.checksum
            && let Some(hash) = &mut self.frame
        {
            hash.write(plain);
        }
        let len = compress_into(plain, &mut self.compressed).map_err(io::Error::other)?;
        if len < plain.len() {
            self.put(&(len as u32).to_le_bytes())?;
            self.out.write_all(&self.compressed[..len])?;
            self.written += len as u64;
            return Ok(());
        }
        self.put(&(plain.len() as u32 | UNCOMPRESSED).to_le_bytes())?;
        self.put(plain)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

impl<W: Write> Write for FrameWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.begin_frame()?;
        let mut rest = buf;
        while !rest.is_empty() {
            if self.pending.is_empty() && rest.len() >= BLOCK {
                let (block, after) = rest.split_at(BLOCK);
                self.block(block)?;
                rest = after;
                continue;
            }
            let (fits, after) = rest.split_at(rest.len().min(BLOCK - self.pending.len()));
            self.pending.extend_from_slice(fits);
            rest = after;
            if self.pending.len() == BLOCK {
                let block = std::mem::take(&mut self.pending);
                self.block(&block)?;
                self.pending = block;
                self.pending.clear();
            }
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads frame after frame. The decoder alone stops after each frame, and takes a stream that is cut between two
/// blocks for a good end: whoever reads must know the length that is to come.
pub struct FrameReader<R: Read> {
    decoder: FrameDecoder<R>,
}

impl<R: BufRead> FrameReader<R> {
    /// Returns a reader of the content of all frames.
    pub fn new(reader: R) -> Self {
        Self { decoder: FrameDecoder::new(reader) }
    }
}

impl<R: BufRead> Read for FrameReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let n = self.decoder.read(buf)?;
            if n > 0 || self.decoder.get_mut().fill_buf()?.is_empty() {
                return Ok(n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns bytes of which some repeat and some do not.
    fn mixed(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        (0..len)
            .map(|at| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if (at >> 13) % 2 == 0 { (at / 31) as u8 } else { (state >> 33) as u8 }
            })
            .collect()
    }

    fn read(stored: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        FrameReader::new(stored).read_to_end(&mut plain).unwrap();
        plain
    }

    proptest! {
        #[test]
        fn whatever_the_pieces_the_content_comes_back(
            pieces in prop::collection::vec((0usize..200_000, any::<bool>()), 0..6),
            seed: u64,
            checksum: bool,
        ) {
            let mut writer = FrameWriter::new(Vec::new(), checksum);
            let mut content = Vec::new();
            for (len, ends) in pieces {
                let piece = mixed(len, seed);
                writer.write_all(&piece).unwrap();
                content.extend(piece);
                if ends {
                    let offset = writer.end_frame().unwrap();
                    prop_assert_eq!(offset, writer.out.len() as u64);
                }
            }
            prop_assert!(read(&writer.finish().unwrap()) == content);
        }
    }

    #[test]
    fn an_object_without_content_is_one_empty_frame() {
        let frame = FrameWriter::new(Vec::new(), true).finish().unwrap();
        assert_eq!(frame.len(), 4 + 2 + 1 + 4 + 4);
        assert!(read(&frame).is_empty());
    }

    #[test]
    fn what_does_not_compress_is_stored_as_it_is() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        })
        .take(3 * BLOCK)
        .collect();
        let mut writer = FrameWriter::new(Vec::new(), false);
        writer.write_all(&noise).unwrap();
        let frame = writer.finish().unwrap();
        assert_eq!(frame.len(), 7 + 3 * (4 + BLOCK) + 4);
        assert!(read(&frame) == noise);
    }

    #[test]
    fn a_content_checksum_is_checked_when_read() {
        let mut writer = FrameWriter::new(Vec::new(), true);
        writer.write_all(&mixed(100, 3)).unwrap();
        let mut frame = writer.finish().unwrap();
        *frame.last_mut().unwrap() ^= 1;
        assert!(FrameReader::new(&frame[..]).read_to_end(&mut Vec::new()).is_err());
    }
}
