//! Looking after what is archived. `status` says what there is and what can be recovered; `sync` copies what a repository
//! lacks from one that has it; `resolve` settles which of two contents of one name is right.

pub mod resolve;
pub mod status;
pub mod sync;
mod unarchived;
