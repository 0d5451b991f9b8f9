//! New recipients for an object that is encrypted already: its age header is written anew, its payload stays.
//!
//! An age header wraps one file key to each recipient and ends in a MAC under that key; the payload depends on the file
//! key and its own nonce alone (age-encryption.org/v1). So whoever can open an object can let others open it without
//! touching a byte of the payload.

use super::{Opener, Sealer, decrypt_error};
use crate::kind::{Error, Kind, Result};
use age::secrecy::ExposeSecret;
use age_core::format::{FileKey, Stanza, grease_the_joint, read};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The first line of a header.
const VERSION: &[u8] = b"age-encryption.org/v1\n";
/// What the MAC covers ends with this.
const MAC_TAG: &[u8] = b"---";
/// The length of a line of a stanza's body, in characters.
const COLUMNS: usize = 64;

/// Returns the header with which the recipients of `sealer` open the object that begins with `start`, and the length in
/// bytes of the header that it replaces. Fails with [`Kind::Config`] where no identity of `opener` opens it, with
/// [`Kind::Corrupt`] where there is no whole and valid header.
pub fn rewrap(start: &[u8], opener: &Opener, sealer: &Sealer) -> Result<(Vec<u8>, usize)> {
    if !sealer.encrypts() {
        return Err(Error::config("there is no recipient to wrap for"));
    }
    let old = Parsed::read(start)?;
    let file_key = old.file_key(opener)?;
    let mut stanzas = Vec::new();
    for recipient in &sealer.recipients {
        let (made, labels) = recipient
            .wrap_file_key(&file_key)
            .map_err(|error| Error::new(Kind::Config, format!("wrap for a recipient: {error}")))?;
        if !labels.is_empty() {
            return Err(Error::config("recipients of this type cannot stand beside others"));
        }
        stanzas.extend(made);
    }
    // What age itself does, so that readers get used to stanzas that they do not know.
    stanzas.push(grease_the_joint());
    let mut bytes = VERSION.to_vec();
    for stanza in &stanzas {
        write(stanza, &mut bytes);
    }
    bytes.extend_from_slice(MAC_TAG);
    let mac = mac(&file_key, &bytes).finalize().into_bytes();
    bytes.push(b' ');
    bytes.extend_from_slice(BASE64_STANDARD_NO_PAD.encode(mac).as_bytes());
    bytes.push(b'\n');
    Ok((bytes, old.length))
}

/// Returns what tells one set of recipients from another, whatever their order: the SHA-256 of their texts, in hexadecimal
/// digits.
pub fn recipients_id(recipients: &[String]) -> String {
    let mut texts: Vec<&str> = recipients.iter().map(|text| text.trim()).collect();
    texts.sort_unstable();
    texts.dedup();
    let hash = Sha256::digest(texts.join("\n"));
    hash.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A header as it was read.
struct Parsed<'a> {
    stanzas: Vec<Stanza>,
    covered: &'a [u8],
    mac: Vec<u8>,
    length: usize,
}

impl<'a> Parsed<'a> {
    fn read(start: &'a [u8]) -> Result<Self> {
        let broken = || Error::corrupt("it does not begin with a whole age header");
        let mut rest = start.strip_prefix(VERSION).ok_or_else(broken)?;
        let mut stanzas = Vec::new();
        while !rest.starts_with(MAC_TAG) {
            let (after, stanza) = read::age_stanza(rest).map_err(|_| broken())?;
            stanzas.push(Stanza::from(stanza));
            rest = after;
        }
        let covered = &start[..start.len() - rest.len() + MAC_TAG.len()];
        let rest = rest[MAC_TAG.len()..].strip_prefix(b" ").ok_or_else(broken)?;
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(broken)?;
        let mac = BASE64_STANDARD_NO_PAD.decode(&rest[..end]).map_err(|_| broken())?;
        Ok(Self { stanzas, covered, mac, length: covered.len() + 1 + end + 1 })
    }

    fn file_key(&self, opener: &Opener) -> Result<FileKey> {
        let unwrapped = opener.identities.iter().find_map(|identity| identity.unwrap_stanzas(&self.stanzas));
        let file_key = unwrapped.unwrap_or(Err(age::DecryptError::NoMatchingKeys)).map_err(decrypt_error)?;
        mac(&file_key, self.covered)
            .verify_slice(&self.mac)
            .map_err(|_| Error::corrupt("the MAC of its age header is wrong"))?;
        Ok(file_key)
    }
}

/// Returns the MAC of a header, over the bytes up to and with its `---`.
fn mac(file_key: &FileKey, covered: &[u8]) -> Hmac<Sha256> {
    let key = age_core::primitives::hkdf(&[], b"header", file_key.expose_secret());
    let mut mac = Hmac::<Sha256>::new_from_slice(&key)
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    mac.update(covered);
    mac
}

/// Appends a stanza: its body in lines of 64 characters, of which the last is shorter, if need be empty.
fn write(stanza: &Stanza, out: &mut Vec<u8>) {
    out.extend_from_slice(b"-> ");
    out.extend_from_slice(stanza.tag.as_bytes());
    for argument in &stanza.args {
        out.push(b' ');
        out.extend_from_slice(argument.as_bytes());
    }
    out.push(b'\n');
    let body = BASE64_STANDARD_NO_PAD.encode(&stanza.body);
    for line in body.as_bytes().chunks(COLUMNS) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    if body.len().is_multiple_of(COLUMNS) {
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{LZ4_AGE, generate_identity, header_length};

    fn opener(identity: &str) -> Opener {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), identity).unwrap();
        Opener::from_identity_file(file.path()).unwrap()
    }

    fn sealer(recipients: &[&str]) -> Sealer {
        Sealer::for_recipients(&recipients.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_new_recipients_open_it_the_old_one_does_not_and_the_payload_is_the_same() {
        let [(a, to_a), (b, to_b), (c, to_c)] = [(); 3].map(|()| generate_identity());
        let plaintext: Vec<u8> = (0..200_000_u32).map(|i| (i >> 3) as u8).collect();
        let object = sealer(&[&to_a, &to_b]).seal(&plaintext).unwrap();
        for holder in [&a, &b] {
            let (header, replaced) = rewrap(&object, &opener(holder), &sealer(&[&to_b, &to_c])).unwrap();
            assert_eq!(replaced as u64, header_length(&object).unwrap());
            assert_eq!(header.len() as u64, header_length(&header).unwrap());
            let made = [&header[..], &object[replaced..]].concat();
            for (identity, opens) in [(&a, false), (&b, true), (&c, true)] {
                let read = opener(identity).open_whole(LZ4_AGE, &made[..], 1 << 20);
                if opens {
                    assert!(read.unwrap() == plaintext);
                } else {
                    assert_eq!(read.unwrap_err().kind(), Kind::Config);
                }
            }
            // And on from there.
            rewrap(&made, &opener(&c), &sealer(&[&to_a])).unwrap();
        }
    }

    #[test]
    fn without_the_identity_or_a_whole_header_nothing_is_made() {
        let [(a, to_a), (other, _)] = [(); 2].map(|()| generate_identity());
        let to = sealer(&[&to_a]);
        let object = to.seal(b"abc").unwrap();
        let kind = |start: &[u8], opener: &Opener| rewrap(start, opener, &to).unwrap_err().kind();
        assert_eq!(kind(&object, &opener(&other)), Kind::Config);
        assert_eq!(kind(&object, &Opener::without_identity()), Kind::Config);
        let length = header_length(&object).unwrap() as usize;
        for cut in 0..length {
            assert_eq!(kind(&object[..cut], &opener(&a)), Kind::Corrupt, "{cut}");
        }
        for at in 0..length {
            let mut damaged = object.clone();
            damaged[at] ^= 1;
            assert!(rewrap(&damaged, &opener(&a), &to).is_err(), "{at}");
        }
        assert_eq!(rewrap(&object, &opener(&a), &Sealer::unencrypted()).unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn a_set_of_recipients_is_told_from_another() {
        let id =
            |list: &[&str]| recipients_id(&list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(id(&["a", "b"]), id(&["b", " a", "b"]));
        assert_ne!(id(&["a", "b"]), id(&["a"]));
        assert_eq!(id(&["a"]), "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb");
    }

    #[test]
    fn stanzas_of_every_length_are_read_back() {
        let body = |length: usize| Stanza { tag: "x".into(), args: vec!["y".into()], body: vec![7; length] };
        for length in [0, 1, 47, 48, 49, 95, 96, 97, 256] {
            let mut bytes = Vec::new();
            write(&body(length), &mut bytes);
            bytes.extend_from_slice(b"--- ");
            let (rest, read) = read::age_stanza(&bytes).unwrap();
            assert_eq!((rest, read.body()), (&b"--- "[..], vec![7; length]));
        }
    }
}
