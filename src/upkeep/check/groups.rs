//! Running groups of items, each in a thread of its own and within its limit.

use super::{Item, Shared};
use crate::kind::{Error, Kind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Checks something and says one item after the other.
pub(super) type Work = Box<dyn FnOnce(&Shared, &mut dyn FnMut(Item)) + Send>;

/// Items that are found out one after the other.
pub(super) struct Group {
    /// What the item is called that says that the group did not come to its end.
    pub name: String,
    /// How long it may take.
    pub limit: Duration,
    pub work: Work,
}

/// Runs the groups at the same time and shows their items in order. One that takes too long fails and is left behind: what
/// it waits for (a dead disk, a stopped server) cannot be interrupted.
pub(super) fn run_together(
    shared: &Arc<Shared>,
    groups: Vec<Group>,
    show: &mut dyn FnMut(&Item),
    items: &mut Vec<Item>,
) {
    let began = Instant::now();
    let mut running = Vec::new();
    for Group { name, limit, work } in groups {
        let (sender, receiver) = channel();
        let shared = Arc::clone(shared);
        let thread = std::thread::spawn(move || {
            work(&shared, &mut |item| {
                let _ = sender.send(item);
            });
        });
        running.push((name, limit, receiver, thread));
    }
    for (name, limit, receiver, thread) in running {
        let mut thread = Some(thread);
        loop {
            let item = match receiver.recv_timeout(limit.saturating_sub(began.elapsed())) {
                Ok(item) => item,
                Err(RecvTimeoutError::Disconnected) => match thread.take().map(std::thread::JoinHandle::join)
                {
                    None | Some(Ok(())) => break,
                    Some(Err(_)) => unfinished(&name, "it panicked, which is a bug of walden".to_owned()),
                },
                Err(RecvTimeoutError::Timeout) => {
                    unfinished(&name, format!("no answer within {} s", limit.as_secs()))
                }
            };
            let last = item.kind == Some(Kind::Doubt);
            show(&item);
            items.push(item);
            if last {
                break;
            }
        }
    }
}

fn unfinished(name: &str, why: String) -> Item {
    Item::failed(name, &Error::new(Kind::Doubt, why))
}
