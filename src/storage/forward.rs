//! Stores behind a pointer are stores, so that decorators stack on whatever a repository holds.

use super::{Deadline, Object, Put, Result, Storage, Upload};
use bytes::Bytes;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

macro_rules! forward {
    ($($pointer:ty),+) => {$(
        impl<S: Storage + ?Sized> Storage for $pointer {
            fn url(&self) -> &str {
                (**self).url()
            }

            fn put_new(&self, key: &str, body: &Bytes, deadline: &Deadline) -> Result<Put> {
                (**self).put_new(key, body, deadline)
            }

            fn upload_new<'a>(&'a self, key: &str, deadline: &Deadline) -> Result<Box<dyn Upload + 'a>> {
                (**self).upload_new(key, deadline)
            }

            fn get(
                &self,
                key: &str,
                range: Option<Range<u64>>,
                deadline: &Deadline,
            ) -> Result<Box<dyn Read + Send>> {
                (**self).get(key, range, deadline)
            }

            fn head(&self, key: &str, deadline: &Deadline) -> Result<Object> {
                (**self).head(key, deadline)
            }

            fn list(
                &self,
                prefix: &str,
                start_after: &str,
                limit: usize,
                deadline: &Deadline,
            ) -> Result<Vec<Object>> {
                (**self).list(prefix, start_after, limit, deadline)
            }

            fn list_folders(&self, prefix: &str, deadline: &Deadline) -> Result<Vec<String>> {
                (**self).list_folders(prefix, deadline)
            }

            fn delete(&self, key: &str, deadline: &Deadline) -> Result<()> {
                (**self).delete(key, deadline)
            }

            fn confirm(&self, key: &str, deadline: &Deadline) -> Result<()> {
                (**self).confirm(key, deadline)
            }

            fn tidy(&self, prefix: &str, deadline: &Deadline) -> Result<()> {
                (**self).tidy(prefix, deadline)
            }

            fn free_space(&self) -> Option<u64> {
                (**self).free_space()
            }

            fn writes_conditionally(&self) -> bool {
                (**self).writes_conditionally()
            }

            fn probe(&self, deadline: &Deadline) -> Result<()> {
                (**self).probe(deadline)
            }
        }
    )+};
}

forward!(&S, Box<S>, Arc<S>);
