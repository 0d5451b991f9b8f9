//! Walden: a WAL archiver and point-in-time-recovery agent for PostgreSQL.
//!
//! This is a map of the code. It follows one WAL segment out to the repositories and back; a base backup and a
//! recovery go the same way through the levels.
//!
//! **Out.** PostgreSQL runs `walden archive-push pg_wal/000000010000000000000001`.
//!
//! 1. [`commands`] parses the command line (`archive_push`), [`config`] the configuration; `commands/setup` makes from it
//!    what an engine takes: repositories, a sealer, the index.
//! 2. [`archive`] checks the file's name and header (`source`; the words are those of [`postgres`]) and asks the [`index`]
//!    whether an earlier call has archived this very file. If so, this is the end.
//! 3. It asks every [`repository`] what it holds under this name (`targets`), and takes other waiting segments along
//!    (`ready`).
//! 4. It reads the file (`batch`). [`codec`] compresses and encrypts it, once for all repositories; [`repository`] makes the key and
//!    sends the object; [`storage`] makes it durable, in a directory (through [`durable`]) or in S3.
//! 5. It looks once more for other content of the same name, writes the index's row, and returns. [`error`] makes the exit
//!    code.
//!
//! **Back.** [`recovery`] has planned and restored, and PostgreSQL runs
//! `walden archive-get 000000010000000000000001 pg_wal/RECOVERYXLOG`.
//!
//! 6. [`archive`] (`get`) asks every repository for the name and what follows it. A copy is read through [`storage`] and
//!    [`codec`], checked to the end, and renamed into place.
//! 7. If no repository has one, `absence` says whether that is proven. If it is not, [`error`] makes 200 of it, and recovery stops.
//!
//! **Beside it.** [`backup`] takes base backups over the [`server`]'s connection; [`upkeep`] reports; [`kind`] holds the
//! error that all levels speak; [`progress`] counts for whoever draws it; [`shutdown`] removes temporary files when the
//! process is told to end; [`log`] prints in PostgreSQL's style.
//!
//! A module uses only modules of its own level or above it in this list; `tests/layers.rs` enforces it.
//!
//! | level | modules |
//! |---|---|
//! | vocabulary | [`postgres`], [`kind`], [`progress`] |
//! | mechanisms | [`codec`], [`durable`], [`parallel`], [`shutdown`], [`storage`], [`index`], [`server`] |
//! | repository | [`repository`] |
//! | engines | [`archive`], [`backup`], [`recovery`], [`upkeep`] |
//! | shell | [`config`], [`error`], [`manual`], [`log`], [`commands`] |

pub mod archive;
pub mod backup;
pub mod codec;
pub mod commands;
pub mod config;
pub mod durable;
pub mod error;
pub mod index;
pub mod kind;
pub mod log;
pub mod manual;
pub mod parallel;
pub mod postgres;
pub mod progress;
pub mod recovery;
pub mod repository;
pub mod server;
pub mod shutdown;
pub mod storage;
pub mod upkeep;
