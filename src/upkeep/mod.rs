//! Looking after what is archived. `status` says what there is and what can be recovered; `sync` copies what a repository
//! lacks from one that has it; `expire` removes what the
//! policy of `retention` does not keep; `resolve` settles which of two contents of one name is right.

pub mod expire;
pub mod resolve;
pub mod retention;
pub mod status;
pub mod sync;
mod unarchived;
