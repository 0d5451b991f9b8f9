//! Looking after what is archived. `status` says what there is and what can be recovered.

pub mod status;
