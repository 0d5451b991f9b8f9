//! Temporary files, and what becomes of them when the process is told to end.
//!
//! PostgreSQL ends its archive command by SIGTERM to the whole process group and wants to see it die by that
//! signal (facts: `wait_error.c`); turning it into an exit code would be counted as a failed archiving. So the
//! handler removes the temporary files that are registered here and then lets the signal have its default effect.

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, raise, signal, sigprocmask};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

static TEMPORARY: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// What else is to be done before the process dies.
static BEFORE_DYING: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

fn registry() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    TEMPORARY.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A file that is removed when this value is dropped or the process is told to end.
#[derive(Debug)]
pub struct TempFile {
    path: PathBuf,
}

impl TempFile {
    /// Has `create` make the file at `path`, and registers it. The end of the process cannot come in between, and none
    /// is made once it has begun.
    pub fn create<T>(path: PathBuf, create: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<(T, Self)> {
        let mut registry = registry();
        let made = create(&path)?;
        registry.insert(path.clone());
        Ok((made, Self { path }))
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the file alone from now on: it was renamed.
    pub fn forget(self) {
        registry().remove(&self.path);
        std::mem::forget(self);
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        registry().remove(&self.path);
    }
}

/// Removes every temporary file now; the process is about to end.
pub fn remove_temporary_files() {
    remove_all(&mut registry());
}

fn remove_all(registry: &mut BTreeSet<PathBuf>) {
    for path in std::mem::take(registry) {
        let _ = std::fs::remove_file(path);
    }
}

/// Has `action` run on the thread of [`watch_signals`] when the process is told to end, before it dies. It must come
/// to an end, and it replaces the one that was registered before.
pub fn before_dying(action: impl FnOnce() + Send + 'static) {
    *BEFORE_DYING.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Box::new(action));
}

/// Starts the thread that waits for SIGTERM, SIGINT or SIGHUP, removes temporary files and dies by that signal.
/// Must be called before any other thread is started, since it blocks these signals for all of them.
pub fn watch_signals() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    // The server starts its commands with SIGINT ignored; a terminal does not.
    set.add(Signal::SIGINT);
    set.add(Signal::SIGHUP);
    if sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).is_err() {
        return;
    }
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        let Ok(received) = set.wait() else { return };
        remove_temporary_files();
        let action = BEFORE_DYING.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(action) = action {
            action();
        }
        // The other threads go on until the process is dead. Held to the end, the registry keeps them from making another
        // file, and from reporting a failure of their own because theirs is gone.
        let mut registry = registry();
        remove_all(&mut registry);
        reset_and_die(received, set);
    });
}

fn reset_and_die(received: Signal, set: SigSet) {
    #[allow(unsafe_code)]
    // SAFETY: installing SIG_DFL runs no code of ours in signal context.
    let _ = unsafe { signal(received, SigHandler::SigDfl) };
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&set), None);
    let _ = raise(received);
    std::process::exit(128 + received as i32);
}
