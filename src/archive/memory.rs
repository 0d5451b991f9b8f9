//! How much memory the files of one call may take together, whatever their size and however many are archived at once.

use std::sync::{Condvar, Mutex, PoisonError};

/// A number of bytes that several threads share.
#[derive(Debug)]
pub struct Memory {
    total: u64,
    free: Mutex<u64>,
    freed: Condvar,
}

impl Memory {
    /// Returns so much memory.
    pub fn new(total: u64) -> Self {
        Self { total, free: Mutex::new(total), freed: Condvar::new() }
    }

    /// Waits until so many bytes are free, and takes them until the value is dropped. A thread that holds some must not
    /// ask for more. Who asks for more than there is waits for all of it.
    pub fn take(&self, bytes: u64) -> Taken<'_> {
        let bytes = bytes.min(self.total);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.freed.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Taken { memory: self, bytes }
    }
}

/// A share of a [`Memory`].
#[derive(Debug)]
pub struct Taken<'a> {
    memory: &'a Memory,
    bytes: u64,
}

impl Taken<'_> {
    /// Gives back what is not needed after all.
    pub fn shrink_to(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        *self.memory.free.lock().unwrap_or_else(PoisonError::into_inner) += surplus;
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
