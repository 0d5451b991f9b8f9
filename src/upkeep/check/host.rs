//! What this host alone tells: the configuration's file, the keys, the data directory, the state directory, the index.

use super::{Item, Shared};
use crate::backup::read_control_file;
use crate::codec::{Opener, Sealer};
use crate::durable::{at, disk_space};
use crate::index::{Index, is_damaged};
use crate::kind::{Context, Error, Kind, Result};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The least free space for the index and for the segments that archive-get keeps ready, in bytes.
const LEAST_FREE: u64 = 64 << 20;
/// What these may come to, in bytes.
const WANTED_FREE: u64 = 512 << 20;

/// What is encrypted and decrypted again.
const SAMPLE: &[u8] = b"walden check";

type Say<'a> = &'a mut dyn FnMut(Item);

/// The file's own rights; what it says is good, or nobody would come here.
pub(super) fn config(shared: &Shared, say: Say<'_>) {
    let subject = &shared.subject;
    let path = subject.config_path.display();
    let mode = std::fs::metadata(&subject.config_path).map_or(0, |meta| meta.mode());
    let item = if mode & 0o002 != 0 {
        Item::risk(
            "config",
            format!("\"{path}\" can be written by everybody on this host (mode {:04o})", mode & 0o7777),
            format!("chmod 640 {path}"),
        )
    } else if mode & 0o004 != 0 && subject.connection.contains("password") {
        Item::risk(
            "config",
            format!("\"{path}\" holds a password and can be read by everybody on this host"),
            format!("chmod 640 {path}"),
        )
    } else {
        let names: Vec<&str> = subject.targets.iter().map(|target| target.repository.name()).collect();
        Item::ok(
            "config",
            format!("\"{path}\": cluster \"{}\", repositories {}", subject.cluster, names.join(", ")),
        )
    };
    say(item);
}

/// The recipients, and whether the identity fits them.
pub(super) fn keys(shared: &Shared, say: Say<'_>) {
    let subject = &shared.subject;
    if subject.recipients.is_empty() {
        say(Item::risk(
            "keys",
            "objects are not encrypted: who reads a repository reads the database",
            "take encryption = \"none\" out, give [encryption] recipients, and take a base backup; objects that are \
             there stay as they are",
        ));
        return;
    }
    let sealer = match Sealer::for_recipients(&subject.recipients) {
        Ok(sealer) => sealer,
        Err(error) => return say(Item::failed("keys", &error)),
    };
    let count = match subject.recipients.len() {
        1 => "1 recipient".to_owned(),
        n => format!("{n} recipients"),
    };
    let Some(path) = &subject.identity_file else {
        return say(Item::ok(
            "keys",
            format!("{count}; no identity here: this host cannot read what it archives"),
        ));
    };
    match fits(&sealer, path) {
        Ok(()) => say(Item::ok("keys", format!("{count}; the identity reads what is encrypted to them"))),
        Err(error) => say(Item::failed("keys", &error)),
    }
    // Of one that is not there all is said.
    if path.exists() {
        say(identity(path, subject.data_dir.join("global/pg_control").exists()));
    }
}

/// Fails unless what is sealed can be opened with the identity.
fn fits(sealer: &Sealer, path: &Path) -> Result<()> {
    let opener = Opener::from_identity_file(path)?;
    let key = format!("sample{}", sealer.ending());
    let opened = opener.open_whole(&key, sealer.seal(SAMPLE)?.as_slice(), 1 << 10).map_err(|error| match error.kind() {
        Kind::Config => Error::config(format!(
            "the identity in \"{}\" belongs to none of the recipients: it cannot read what is archived now",
            path.display()
        ))
        .with_hint("age-keygen -y prints the recipient of an identity; put it into encryption.recipients, or the right file here"),
        _ => error,
    })?;
    if opened == SAMPLE {
        Ok(())
    } else {
        Err(Error::corrupt("what was decrypted is not what was encrypted"))
    }
}

fn identity(path: &Path, beside_the_data: bool) -> Item {
    let shown = path.display();
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.mode());
    if mode & 0o077 != 0 {
        return Item::risk(
            "identity",
            format!("\"{shown}\" can be read by others (mode {:04o}): it decrypts everything", mode & 0o7777),
            format!("chmod 600 {shown}"),
        );
    }
    if beside_the_data {
        return Item::risk(
            "identity",
            format!(
                "\"{shown}\" is on the host of the database: who takes this host can read all that it ever archived"
            ),
            "with a copy of it safe elsewhere, move it off this host and remove encryption.identity_file; recovery needs \
             it, archiving and backups do not",
        );
    }
    Item::ok("identity", format!("\"{shown}\" is for its owner only"))
}

/// The data directory.
pub(super) fn data_dir(shared: &Shared, say: Say<'_>) {
    match read_control_file(&shared.subject.data_dir) {
        Ok((_, control)) => {
            say(Item::ok(
                "data_dir",
                format!(
                    "\"{}\": system identifier {}, PostgreSQL {}, WAL segments of {} MB",
                    shared.subject.data_dir.display(),
                    control.system_identifier,
                    control
                        .major_version()
                        .map_or_else(|| "of an unknown version".to_owned(), |major| major.to_string()),
                    control.wal_segment_size.bytes() >> 20
                ),
            ));
            let _ = shared.control.set(control);
        }
        Err(error) => say(Item::failed("data_dir", &error)),
    }
}

/// The directory that the index and the spool are in.
pub(super) fn state_dir(shared: &Shared, say: Say<'_>) {
    say(match try_state_dir(shared) {
        Ok(item) => item,
        Err(error) => Item::failed("state_dir", &error),
    });
}

fn try_state_dir(shared: &Shared) -> Result<Item> {
    let subject = &shared.subject;
    let (state, own) = (&subject.state_dir, &subject.cluster_state_dir);
    let shown = state.display();
    if !state.is_dir() {
        return Err(Error::config(format!("state_dir \"{shown}\" does not exist")).with_hint(format!(
            "make it, and give it to the server's user: install -d -o postgres -g postgres -m 750 {shown}"
        )));
    }
    for path in [state, own, &subject.index_path] {
        check_owner(path, &subject.data_dir)?;
    }
    let dir = if own.is_dir() { own } else { state };
    write_a_little(dir).map_err(at(dir)).kind(Kind::Config, "state_dir cannot be written to").map_err(|error| {
        error.with_hint(
            "archiving goes on without it, but repositories are then asked for each file, and none can be kept ready; see \
             its rights, its space, and whether it is mounted read-only",
        )
    })?;
    let free = disk_space(dir).map_err(at(dir)).context("state_dir")?.free;
    let space = format!("{} MB free", free >> 20);
    if free < LEAST_FREE {
        let message = format!("state_dir \"{shown}\" has {space}, less than {} MB", LEAST_FREE >> 20);
        return Err(Error::other(message).with_hint("make room: the index and the spool are there"));
    }
    if free < WANTED_FREE {
        return Ok(Item::warning(
            "state_dir",
            format!("\"{shown}\" has {space}"),
            "the index and the segments that archive-get keeps ready may take more (archive.prefetch)",
        ));
    }
    Ok(Item::ok("state_dir", format!("\"{shown}\": writable, {space}")))
}

/// Fails if `path` is there and belongs to somebody else than the data directory, whose owner runs archive-push.
fn check_owner(path: &Path, data_dir: &Path) -> Result<()> {
    let (Ok(meta), Ok(data)) = (std::fs::metadata(path), std::fs::metadata(data_dir)) else { return Ok(()) };
    if meta.uid() == data.uid() {
        return Ok(());
    }
    let (owner, server) = (user(meta.uid()), user(data.uid()));
    Err(Error::config(format!("\"{}\" belongs to {owner}, and the server runs as {server}", path.display()))
        .with_hint(format!("chown -R {server} {}", path.display())))
}

/// Returns the name of a user, or its number.
pub(super) fn user(uid: u32) -> String {
    let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

fn write_a_little(dir: &Path) -> std::io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".walden-check-").tempfile_in(dir)?;
    file.write_all(SAMPLE)?;
    file.as_file().sync_all()
}

/// The index: whether it can be used. Opens it for those that follow.
pub(super) fn index(shared: &Shared, state_is_good: bool, say: Say<'_>) {
    const NAME: &str = "index";
    let path = &shared.subject.index_path;
    let shown = path.display();
    if !state_is_good {
        return say(Item::skipped(NAME, "state_dir is not as it must be"));
    }
    let is_new = !path.exists();
    if !is_new {
        let hint =
            "walden index rebuild makes a new one from the repositories; archiving and recovery do without";
        if is_damaged(path) {
            return say(Item::warning(NAME, format!("\"{shown}\" is damaged"), hint));
        }
        if let Err(error) = Index::open(path) {
            return say(Item::warning(NAME, error.message(), error.hint().unwrap_or(hint)));
        }
    }
    let index = (shared.subject.open_index)();
    say(match (index.is_present(), is_new) {
        (true, true) => Item::ok(NAME, format!("\"{shown}\": a new one")),
        (true, false) => Item::ok(NAME, format!("\"{shown}\": opens, and its pages are whole")),
        (false, _) => Item::warning(NAME, format!("\"{shown}\" cannot be made"), "see the warning above"),
    });
    let _ = shared.index.set(index);
}
