//! Looking after what is archived. `status` says what there is and what can be recovered; `sync` copies what a repository
//! lacks from one that has it; `expire` removes what the policy of `retention` does not keep; `events` says when something
//! was lost, `deep` reads what the index has not read, and `digest` keeps in the repositories what the index found out;
//! `holdings` is what the repositories hold, by the index and by what is new; `names` gives tables their names; `notify`
//! tells somebody what happened; `rebuild` makes an index anew; `resolve` settles which of two contents of one name is
//! right; `rewrap` copies a repository for other keys; `bad_pages` is what backups found in the database; `verdict` judges what `status` found, and `metrics` are the
//! same for Prometheus; `check` says whether all is as it must be,
//! `verify` whether everything is still there and still what it was.

pub mod bad_pages;
pub mod check;
pub mod deep;
pub mod digest;
pub mod events;
pub mod expire;
mod flow;
pub mod holdings;
pub mod metrics;
pub mod names;
pub mod notify;
pub mod rebuild;
pub mod resolve;
pub mod retention;
pub mod rewrap;
pub mod status;
pub mod sync;
mod unarchived;
pub mod verdict;
pub mod verify;
mod windows;
