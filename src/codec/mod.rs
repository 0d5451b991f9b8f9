//! Plaintext to what is stored and back: LZ4 frames, then age.
//!
//! An object is one or more LZ4 frames (64 KiB blocks, independent of each other) inside one age file, or the bare
//! frames where the configuration says `encryption = "none"`. The ending of the key tells which; a reader goes by
//! the ending, never by the configuration. Bare frames carry a content checksum; encrypted ones do not, since age
//! authenticates every byte.

mod frames;
mod rewrap;

pub use rewrap::{recipients_id, rewrap};

use crate::kind::{Context, Error, Kind, Result};
use age::{Identity, Recipient};
use frames::{FrameReader, FrameWriter};
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

/// The ending of a compressed object.
pub const LZ4: &str = ".lz4";
/// The ending of a compressed and encrypted object.
pub const LZ4_AGE: &str = ".lz4.age";

/// How much ciphertext is read at a time.
const READ_BUFFER: usize = 128 * 1024;

/// Turns plaintext into objects.
pub struct Sealer {
    recipients: Vec<Box<dyn Recipient + Send + Sync>>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer({} recipients)", self.recipients.len())
    }
}

impl Sealer {
    /// Returns a sealer that compresses only.
    pub fn unencrypted() -> Self {
        Self { recipients: Vec::new() }
    }

    /// Returns a sealer that encrypts to every one of `recipients`: `age1…`, `ssh-ed25519 …` or `ssh-rsa …`.
    /// Fails with [`Kind::Config`] on one that is none of these, and on an empty list.
    pub fn for_recipients(recipients: &[String]) -> Result<Self> {
        if recipients.is_empty() {
            return Err(Error::config("no recipient to encrypt to")
                .with_hint("give encryption.recipients, or write encryption = \"none\""));
        }
        Ok(Self { recipients: recipients.iter().map(|text| parse_recipient(text)).collect::<Result<_>>()? })
    }

    /// Returns whether objects are encrypted.
    pub fn encrypts(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// Returns the ending of the keys of objects made by this sealer.
    pub fn ending(&self) -> &'static str {
        if self.encrypts() { LZ4_AGE } else { LZ4 }
    }

    /// Returns the object for `plaintext`, as one frame.
    pub fn seal(&self, plaintext: &[u8]) -> Result<Vec<u8>> {
        let mut writer = self.writer(plaintext.len() / 2)?;
        writer.write_all(plaintext).context("compress")?;
        writer.finish()
    }

    /// Returns a writer of one object in memory, with room for `capacity` bytes.
    pub fn writer(&self, capacity: usize) -> Result<SealedWriter> {
        self.writer_to(Vec::with_capacity(capacity))
    }

    /// Returns a writer of one object that goes on to `out`.
    pub fn writer_to<W: Write>(&self, out: W) -> Result<SealedWriter<W>> {
        let sink = if self.encrypts() {
            let recipients = self.recipients.iter().map(|r| r.as_ref() as &dyn Recipient);
            let encryptor = age::Encryptor::with_recipients(recipients).kind(Kind::Config, "encrypt")?;
            Sink::Age(Box::new(encryptor.wrap_output(out).context("encrypt")?))
        } else {
            Sink::Plain(out)
        };
        Ok(SealedWriter { frames: FrameWriter::new(sink, !self.encrypts()) })
    }
}

/// Returns the length in bytes of the LZ4 stream that an object holds, whose plaintext `fill` writes.
pub fn stream_length(encrypted: bool, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<u64> {
    let mut frames = FrameWriter::new(Length(0), !encrypted);
    fill(&mut frames)?;
    Ok(frames.finish().context("compress")?.0)
}

/// Counts what is written to it.
struct Length(u64);

impl Write for Length {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0 += buf.len() as u64;
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the length in bytes of what follows age's header where the payload has `length` bytes: a nonce, and a tag for
/// each chunk, of which there is at least one (age-encryption.org/v1, "Payload").
pub fn sealed_length(length: u64) -> u64 {
    const NONCE: u64 = 16;
    const CHUNK: u64 = 64 << 10;
    const TAG: u64 = 16;
    NONCE + length + length.div_ceil(CHUNK).max(1) * TAG
}

/// Returns the length in bytes of the age header at the beginning of an object; none if there is no whole one.
pub fn header_length(start: &[u8]) -> Option<u64> {
    if !start.starts_with(b"age-encryption.org/v1\n") {
        return None;
    }
    let mac = start.windows(5).position(|five| five == b"\n--- ")? + 1;
    let end = start[mac..].iter().position(|byte| *byte == b'\n')?;
    Some((mac + end + 1) as u64)
}

fn parse_recipient(text: &str) -> Result<Box<dyn Recipient + Send + Sync>> {
    let text = text.trim();
    if text.starts_with("AGE-SECRET-KEY-") {
        return Err(Error::config("a secret key stands where a recipient belongs")
            .with_hint("recipients begin with age1; the secret key belongs in encryption.identity_file"));
    }
    if let Ok(recipient) = text.parse::<age::x25519::Recipient>() {
        return Ok(Box::new(recipient));
    }
    match text.parse::<age::ssh::Recipient>() {
        Ok(recipient) => Ok(Box::new(recipient)),
        Err(_) => Err(Error::config(format!("\"{text}\" is not an age or SSH recipient")).with_hint(
            "a recipient is age1… as age-keygen prints it, or an ssh-ed25519 or ssh-rsa public key",
        )),
    }
}

enum Sink<W: Write> {
    Plain(W),
    Age(Box<age::stream::StreamWriter<W>>),
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(buf),
            Self::Age(out) => out.write(buf),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Builds one object, in memory or on its way. Plaintext is written; [`SealedWriter::end_frame`] begins a new LZ4 frame.
pub struct SealedWriter<W: Write = Vec<u8>> {
    frames: FrameWriter<Sink<W>>,
}

impl<W: Write> SealedWriter<W> {
    /// Ends the current frame (none if nothing was written since the last end) and returns the offset in the LZ4
    /// stream at which the next one begins, in bytes.
    pub fn end_frame(&mut self) -> Result<u64> {
        self.frames.end_frame().context("compress")
    }

    /// Ends the object and returns what it was written to: its bytes, if that was memory.
    pub fn finish(self) -> Result<W> {
        match self.frames.finish().context("compress")? {
            Sink::Plain(out) => Ok(out),
            Sink::Age(out) => out.finish().context("encrypt"),
        }
    }
}

impl<W: Write> Write for SealedWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.frames.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Turns objects back into plaintext.
#[derive(Default)]
pub struct Opener {
    identities: Vec<Box<dyn Identity + Send + Sync>>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opener({} identities)", self.identities.len())
    }
}

impl Opener {
    /// Returns an opener without identities: it reads unencrypted objects only.
    pub fn without_identity() -> Self {
        Self::default()
    }

    /// Returns an opener with the identities in the file at `path`: an age identity file or an unencrypted SSH
    /// private key. Fails with [`Kind::Config`].
    pub fn from_identity_file(path: &Path) -> Result<Self> {
        let fail = |what: String| Error::config(format!("identity file \"{}\": {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| {
            let error = fail(error.to_string());
            if path.exists() {
                error.with_hint("it must be readable by the user that the server runs as")
            } else {
                error.with_hint(
                    "bring the identity from where it is kept and give its path as encryption.identity_file; a host that only \
                     archives needs none: take identity_file out",
                )
            }
        })?;
        if text.starts_with("-----BEGIN") {
            let identity = age::ssh::Identity::from_buffer(text.as_bytes(), Some(path.display().to_string()))
                .map_err(|error| fail(error.to_string()))?;
            return match identity {
                age::ssh::Identity::Unencrypted(_) => Ok(Self { identities: vec![Box::new(identity)] }),
                age::ssh::Identity::Encrypted(_) => Err(fail("the SSH key has a passphrase".into())
                    .with_hint("nobody can type it when the server asks for WAL; use a key without one")),
                age::ssh::Identity::Unsupported(_) => {
                    Err(fail("this type of SSH key cannot decrypt; ssh-ed25519 and ssh-rsa can".into()))
                }
            };
        }
        let file =
            age::IdentityFile::from_buffer(text.as_bytes()).map_err(|error| fail(error.to_string()))?;
        let identities = file.into_identities().map_err(|error| fail(error.to_string()))?;
        if identities.is_empty() {
            return Err(fail("no identity in it".into()));
        }
        Ok(Self { identities })
    }

    /// Returns whether there is an identity to decrypt with.
    pub fn has_identity(&self) -> bool {
        !self.identities.is_empty()
    }

    /// Returns a reader over the plaintext of the object `key`, whose stored bytes `stored` delivers. Fails with
    /// [`Kind::Config`] where the identity is missing or not among the recipients, with [`Kind::Corrupt`] where
    /// the object is not what its ending says. Errors of the returned reader are told apart by
    /// [`reading_failed`].
    pub fn open<'a>(&self, key: &str, stored: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
        let stored = BufReader::with_capacity(READ_BUFFER, stored);
        if key.ends_with(LZ4_AGE) {
            if !self.has_identity() {
                return Err(Error::config("the object is encrypted and no identity is configured")
                    .with_hint(
                        "set encryption.identity_file in the configuration of the machine that recovers",
                    ));
            }
            let decryptor = age::Decryptor::new_buffered(stored).map_err(decrypt_error)?;
            let identities = self.identities.iter().map(|i| i.as_ref() as &dyn Identity);
            let plain = decryptor.decrypt(identities).map_err(decrypt_error)?;
            Ok(Box::new(FrameReader::new(BufReader::with_capacity(READ_BUFFER, plain))))
        } else if key.ends_with(LZ4) {
            Ok(Box::new(FrameReader::new(stored)))
        } else {
            Err(Error::corrupt(format!("object \"{key}\" has an unknown ending")))
        }
    }

    /// Returns the plaintext of a whole object, at most `limit` bytes of it: more is [`Kind::Corrupt`].
    pub fn open_whole(&self, key: &str, stored: impl Read + Send, limit: u64) -> Result<Vec<u8>> {
        let mut reader = self.open(key, stored)?.take(limit + 1);
        let mut plaintext = Vec::new();
        reader.read_to_end(&mut plaintext).map_err(|error| reading_failed(&error))?;
        if plaintext.len() as u64 > limit {
            return Err(Error::corrupt(format!("object is longer than {limit} bytes")));
        }
        Ok(plaintext)
    }
}

fn decrypt_error(error: age::DecryptError) -> Error {
    match error {
        age::DecryptError::NoMatchingKeys => Error::config("no identity matches the object's recipients")
            .with_hint("the object was encrypted to other keys; give the identity of one of them"),
        age::DecryptError::Io(error) => reading_failed(&error),
        other => Error::corrupt(format!("decrypt: {other}")),
    }
}

/// Returns what a failed read of an opened object means: bad data is [`Kind::Corrupt`], all else
/// [`Kind::Repository`], since the store broke off.
pub fn reading_failed(error: &io::Error) -> Error {
    use io::ErrorKind as K;
    let kind = match error.kind() {
        K::InvalidData | K::UnexpectedEof | K::InvalidInput => Kind::Corrupt,
        // lz4_flex reports bad frames as "other", with its own error inside.
        K::Other
            if error
                .get_ref()
                .is_some_and(<dyn std::error::Error + Send + Sync>::is::<lz4_flex::frame::Error>) =>
        {
            Kind::Corrupt
        }
        _ => Kind::Repository,
    };
    Error::new(kind, error.to_string())
}

/// Returns a new identity and its recipient, as age-keygen would print them.
pub fn generate_identity() -> (String, String) {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    let secret = identity.to_string();
    (format!("# created: {now}\n# public key: {recipient}\n{}\n", secret.expose_secret()), recipient)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (Sealer, Opener) {
        let (identity, recipient) = generate_identity();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), identity).unwrap();
        (Sealer::for_recipients(&[recipient]).unwrap(), Opener::from_identity_file(file.path()).unwrap())
    }

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i / 7) ^ (i >> 9)) as u8).collect()
    }

    #[test]
    fn what_is_sealed_opens_to_the_same_bytes() {
        let (sealer, opener) = keys();
        for len in [0, 1, 65_535, 65_536, 65_537, 1_000_000] {
            let plaintext = sample(len);
            for (sealer, key) in [(&sealer, "x.lz4.age"), (&Sealer::unencrypted(), "x.lz4")] {
                let object = sealer.seal(&plaintext).unwrap();
                assert_eq!(opener.open_whole(key, &object[..], 1 << 30).unwrap(), plaintext, "{key} {len}");
            }
        }
    }

    #[test]
    fn frames_are_read_one_after_the_other_and_each_opens_alone() {
        let (sealer, opener) = keys();
        for (sealer, key) in [(&sealer, "x.lz4.age"), (&Sealer::unencrypted(), "x.lz4")] {
            let mut writer = sealer.writer(0).unwrap();
            let mut plaintext = Vec::new();
            let mut offsets = vec![0];
            for len in [10, 100_000, 0, 5] {
                writer.write_all(&sample(len)).unwrap();
                plaintext.extend(sample(len));
                offsets.push(writer.end_frame().unwrap());
            }
            assert_eq!(offsets[2], offsets[3], "nothing written, no frame");
            let object = writer.finish().unwrap();
            assert_eq!(opener.open_whole(key, &object[..], 1 << 30).unwrap(), plaintext);
            if key == "x.lz4" {
                let second = &object[offsets[1] as usize..offsets[2] as usize];
                assert_eq!(opener.open_whole(key, second, 1 << 30).unwrap(), sample(100_000));
            }
        }
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_corrupt_or_shorter_never_other_content() {
        let (sealer, opener) = keys();
        let plaintext = sample(200_000);
        for (sealer, key) in [(&sealer, "x.lz4.age"), (&Sealer::unencrypted(), "x.lz4")] {
            let object = sealer.seal(&plaintext).unwrap();
            for at in (0..object.len()).step_by(object.len() / 60) {
                let mut bad = object.clone();
                bad[at] ^= 0x10;
                if let Ok(read) = opener.open_whole(key, &bad[..], 1 << 30) {
                    assert_ne!(read.len(), 0);
                    assert!(read == plaintext, "byte {at} of {key}");
                }
                match opener.open_whole(key, &object[..at], 1 << 30) {
                    Ok(read) => {
                        assert!(read.len() < plaintext.len() && key == "x.lz4", "cut at {at} of {key}");
                    }
                    Err(error) => assert_ne!(error.kind(), Kind::Other, "{error}"),
                }
            }
        }
    }

    #[test]
    fn the_length_of_an_object_follows_from_its_content_and_its_header() {
        let (sealer, _) = keys();
        for len in [0, 1, 65_536, 200_000, 3_000_000] {
            let mut plaintext = sample(len);
            let mut random = fastrand::Rng::with_seed(len as u64);
            random.fill(&mut plaintext[len / 2..]);
            let stream = |encrypted| {
                stream_length(encrypted, |out| out.write_all(&plaintext).context("write")).unwrap()
            };
            // The header has a part of random length.
            for _ in 0..3 {
                let object = sealer.seal(&plaintext).unwrap();
                let header = header_length(&object).unwrap();
                assert_eq!(object.len() as u64, header + sealed_length(stream(true)), "{len}");
            }
            assert_eq!(Sealer::unencrypted().seal(&plaintext).unwrap().len() as u64, stream(false));
        }
        let object = sealer.seal(b"abc").unwrap();
        let header = header_length(&object).unwrap() as usize;
        for cut in [0, 10, 30, header - 1] {
            assert_eq!(header_length(&object[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn another_identity_is_a_matter_of_configuration() {
        let (sealer, _) = keys();
        let (_, other) = keys();
        let object = sealer.seal(b"abc").unwrap();
        let kind = |opener: &Opener| opener.open_whole("x.lz4.age", &object[..], 10).unwrap_err().kind();
        assert_eq!(kind(&other), Kind::Config);
        assert_eq!(kind(&Opener::without_identity()), Kind::Config);
    }

    #[test]
    fn a_wrong_recipient_is_named() {
        for bad in ["age1xyz", "", "hello", "ssh-ed25519 AAAA"] {
            let error = Sealer::for_recipients(&[bad.to_owned()]).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
        }
        let (identity, _) = generate_identity();
        let secret = identity.lines().last().unwrap().to_owned();
        let error = Sealer::for_recipients(&[secret]).unwrap_err().to_string();
        assert!(!error.contains("AGE-SECRET"), "a secret never reaches a log: {error}");
    }
}
