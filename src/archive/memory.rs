//! How much memory the files of one call may take together, whatever their size and however many are archived at once.

use crate::parallel::lock;
use bytes::Bytes;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long a buffer is waited for that its last reader is about to let go.
const LETTING_GO: Duration = Duration::from_millis(20);

/// A number of bytes that several threads share.
#[derive(Debug)]
pub struct Memory {
    total: u64,
    free: Mutex<u64>,
    freed: Condvar,
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Memory {
    /// Returns so much memory.
    pub fn new(total: u64) -> Self {
        Self { total, free: Mutex::new(total), freed: Condvar::new(), spare: Mutex::default() }
    }

    /// Waits until so many bytes are free, and takes them until the value is dropped. A thread that holds some must not
    /// ask for more. Who asks for more than there is waits for all of it.
    pub fn take(&self, bytes: u64) -> Taken<'_> {
        let bytes = bytes.min(self.total);
        let free = lock(&self.free);
        let mut free =
            self.freed.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Taken { memory: self, bytes }
    }

    /// Returns an empty buffer, one that was given back if it is large enough.
    ///
    /// Buffers are kept because the allocator, given them back one by one, puts small things into their places and
    /// needs new ones: that was half as much again. And what is warm is faster.
    pub fn buffer(&self, capacity: usize) -> Vec<u8> {
        let mut spare = lock(&self.spare);
        let at = spare.iter().position(|buffer| buffer.capacity() >= capacity);
        at.map_or_else(|| Vec::with_capacity(capacity), |at| spare.swap_remove(at))
    }

    /// Takes a buffer back, unless somebody still reads it or there are enough.
    pub fn give_back(&self, mut object: Bytes) {
        object.truncate(0);
        for _ in 0..LETTING_GO.as_millis() {
            if object.is_unique() {
                let buffer = Vec::from(object);
                let mut spare = lock(&self.spare);
                let kept: usize = spare.iter().map(Vec::capacity).sum();
                if (kept + buffer.capacity()) as u64 <= self.total + self.total / 8 {
                    spare.push(buffer);
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A share of a [`Memory`].
#[derive(Debug)]
pub struct Taken<'a> {
    memory: &'a Memory,
    bytes: u64,
}

impl<'a> Taken<'a> {
    /// Returns where it comes from.
    pub fn memory(&self) -> &'a Memory {
        self.memory
    }

    /// Gives back what is not needed after all.
    pub fn shrink_to(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        *lock(&self.memory.free) += surplus;
        self.memory.freed.notify_all();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_buffer_comes_back_when_nobody_reads_it() {
        let memory = Memory::new(1000);
        let mut buffer = memory.buffer(500);
        let place = buffer.as_ptr();
        buffer.extend_from_slice(b"content");
        let object = Bytes::from(buffer);
        let reader = object.clone();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(5));
                drop(reader);
            });
            memory.give_back(object);
        });
        let again = memory.buffer(500);
        assert!(again.is_empty() && again.as_ptr() == place);
        let other = memory.buffer(500);
        assert!(other.as_ptr() != place);
        memory.give_back(Bytes::from(Vec::with_capacity(5000)));
        assert!(memory.spare.lock().unwrap().is_empty(), "too large to keep");
    }

    #[test]
    fn no_more_is_taken_than_there_is() {
        let memory = Memory::new(100);
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for bytes in [40, 30, 100, 60, 5000, 10] {
                let (memory, now, most) = (&memory, &now, &most);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let mut taken = memory.take(bytes);
                        most.fetch_max(
                            now.fetch_add(taken.bytes, Ordering::SeqCst) + taken.bytes,
                            Ordering::SeqCst,
                        );
                        std::thread::yield_now();
                        let rest = taken.bytes / 2;
                        now.fetch_sub(taken.bytes, Ordering::SeqCst);
                        taken.shrink_to(rest);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 100);
        assert_eq!(*memory.free.lock().unwrap(), 100);
    }
}
