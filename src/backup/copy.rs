//! The threads of a backup: one plans pieces, some build and send them, and the caller's thread keeps account.

use super::Sink;
use super::files::Tree;
use super::journal::Journal;
use super::pieces::{Builder, Built, PartDone};
use super::plan::{self, First, Layout, Limits, Piece};
use super::record::Recorder;
use super::resume::Paths;
use crate::kind::{Error, Result};
use crate::postgres::Lsn;
use crate::repository::backup::StoredObject;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The largest piece before compression (design: "Repository layout").
const LARGEST_PIECE: u64 = 32 << 20;
/// What all pieces that are being built may take together. More workers get smaller pieces.
const ALL_PIECES: u64 = 128 << 20;
/// The smallest piece; many more objects would make a bucket slow to list.
const SMALLEST_PIECE: u64 = 2 << 20;
/// The most workers.
pub const MOST_WORKERS: usize = 64;

/// The most files of a piece.
const MOST_FILES: usize = 4096;
/// Descriptors that the process needs for other things.
const OTHER_DESCRIPTORS: u64 = 192;

/// How often somebody looks whether the server is still there.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Returns how large pieces may be with so many workers. Raises the process's limit of open files as far as it may.
pub fn limits(workers: usize) -> Limits {
    let bytes = (ALL_PIECES / workers as u64).clamp(SMALLEST_PIECE, LARGEST_PIECE) >> 20 << 20;
    let descriptors = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() => hard,
        Ok((soft, _)) => soft,
        Err(_) => 1024,
    };
    // Planned: one piece in the making, one waiting; built: one for each worker, and as many waiting for the account.
    let pieces = 2 * workers as u64 + 3;
    let items = descriptors.saturating_sub(OTHER_DESCRIPTORS) / pieces;
    Limits { bytes, items: (items as usize).clamp(8, MOST_FILES) }
}

/// What has been stored so far.
pub struct Copy<'a> {
    /// How pieces are built.
    pub builder: Builder<'a>,
    /// Where they go.
    pub sink: &'a dyn Sink,
    /// How large they are.
    pub limits: Limits,
    account: Account<'a>,
}

/// What is noted of each piece.
struct Account<'a> {
    /// The manifest.
    recorder: Recorder,
    /// Where pieces are noted for a later attempt; the number in a name is so much higher than its place.
    journal: Option<&'a mut Journal>,
    names_ahead: u32,
    /// The pieces by place; those that are not stored yet are missing.
    pieces: Vec<Option<StoredObject>>,
}

/// A piece that was stored.
struct Stored {
    number: u32,
    object: StoredObject,
    parts: Vec<PartDone>,
}

impl<'a> Copy<'a> {
    /// Returns a copy of which the `pieces` are done and accounted for.
    pub fn new(
        builder: Builder<'a>,
        sink: &'a dyn Sink,
        limits: Limits,
        recorder: Recorder,
        journal: Option<&'a mut Journal>,
        pieces: Vec<StoredObject>,
    ) -> Self {
        let (pieces, names_ahead) = (pieces.into_iter().map(Some).collect(), builder.names_ahead);
        Self { builder, sink, limits, account: Account { recorder, journal, names_ahead, pieces } }
    }

    /// Returns the manifest.
    pub fn recorder(&mut self) -> &mut Recorder {
        &mut self.account.recorder
    }

    /// Stores everything that a walk through `tree` finds and that is not in `present`, with so many workers. Calls
    /// `heartbeat` now and then; its failure ends the copy, and it returns how far WAL has come.
    pub fn files(
        &mut self,
        tree: &Tree,
        workers: usize,
        present: &Paths,
        first_item: u64,
        heartbeat: &mut dyn FnMut() -> Result<Lsn>,
    ) -> Result<()> {
        let first = First { piece: self.account.pieces.len() as u32, item: first_item };
        let (plan, planned) = mpsc::sync_channel::<Piece>(1);
        let (store, stored) = mpsc::sync_channel::<Result<Stored>>(workers);
        let planned = Arc::new(Mutex::new(planned));
        let Self { builder, sink, limits, account } = self;
        let (builder, sink, limits) = (&*builder, *sink, *limits);
        std::thread::scope(move |scope| {
            let failures = store.clone();
            scope.spawn(move || {
                // A closed channel means that somebody else failed first.
                let mut emit = |piece| plan.send(piece).map_err(|_| Error::other("the backup was given up"));
                if let Err(error) = plan::lay_out(tree, limits, first, present, &mut emit) {
                    let _ = failures.send(Err(error));
                }
            });
            for _ in 0..workers {
                let (planned, store) = (Arc::clone(&planned), store.clone());
                scope.spawn(move || work(builder, sink, &planned, &store));
            }
            // From here on only the threads hold the channels' ends: when they end, the channels close.
            drop((planned, store));
            let result = account.keep(&stored, heartbeat);
            // After a failure, whoever still has something to report finds nobody there and ends.
            drop(stored);
            result
        })
    }

    /// Stores what `add` lays out, one piece after the other, in this thread.
    pub fn tail(&mut self, add: impl FnOnce(&mut Layout<'_>) -> Result<()>) -> Result<()> {
        let Self { builder, sink, limits, account } = self;
        // The end is made anew by each attempt.
        account.journal = None;
        let first = First { piece: account.pieces.len() as u32, item: 0 };
        let mut emit = |piece| {
            let stored = store_piece(builder, *sink, piece)?;
            account.note(stored)
        };
        let mut layout = Layout::new(*limits, first, &mut emit);
        add(&mut layout)?;
        layout.finish().map(drop)
    }

    /// Returns the pieces in order.
    pub fn pieces(&mut self) -> Result<Vec<StoredObject>> {
        let pieces: Option<Vec<StoredObject>> =
            std::mem::take(&mut self.account.pieces).into_iter().collect();
        pieces.ok_or_else(|| Error::other("a piece of the backup is missing"))
    }
}

fn work(
    builder: &Builder<'_>,
    sink: &dyn Sink,
    planned: &Mutex<Receiver<Piece>>,
    store: &SyncSender<Result<Stored>>,
) {
    loop {
        let piece = planned.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(piece) = piece else { return };
        let stored = store_piece(builder, sink, piece);
        let failed = stored.is_err();
        if store.send(stored).is_err() || failed {
            return;
        }
    }
}

fn store_piece(builder: &Builder<'_>, sink: &dyn Sink, piece: Piece) -> Result<Stored> {
    let Built { number, object, body, parts } = builder.build(piece)?;
    sink.put(&object.name, body)?;
    Ok(Stored { number, object, parts })
}

impl Account<'_> {
    /// Notes what is stored until all is.
    fn keep(
        &mut self,
        stored: &Receiver<Result<Stored>>,
        heartbeat: &mut dyn FnMut() -> Result<Lsn>,
    ) -> Result<()> {
        let mut last_beat = Instant::now();
        loop {
            match stored.recv_timeout(HEARTBEAT.saturating_sub(last_beat.elapsed())) {
                Ok(stored) => self.note(stored?)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if last_beat.elapsed() >= HEARTBEAT {
                self.recorder.settle_up_to(heartbeat()?)?;
                last_beat = Instant::now();
            }
        }
    }

    fn note(&mut self, stored: Stored) -> Result<()> {
        let at = stored.number as usize;
        if self.pieces.len() <= at {
            self.pieces.resize(at + 1, None);
        }
        if let Some(journal) = &mut self.journal {
            journal.add(stored.number + self.names_ahead, &stored.object, &stored.parts);
        }
        self.pieces[at] = Some(stored.object);
        stored.parts.into_iter().try_for_each(|part| self.recorder.add(part))
    }
}
