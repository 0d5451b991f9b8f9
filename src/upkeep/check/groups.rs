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
    /// What sort of failure it is then.
    pub kind: Kind,
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
    for Group { name, limit, kind, work } in groups {
        let (sender, receiver) = channel();
        let shared = Arc::clone(shared);
        let thread = std::thread::spawn(move || {
            work(&shared, &mut |item| {
                let _ = sender.send(item);
            });
        });
        running.push((name, limit, kind, receiver, thread));
    }
    for (name, limit, kind, receiver, thread) in running {
        let failure = loop {
            match receiver.recv_timeout(limit.saturating_sub(began.elapsed())) {
                Ok(item) => {
                    show(&item);
                    items.push(item);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    break thread.join().is_err().then(|| "it panicked, which is a bug of walden".to_owned());
                }
                Err(RecvTimeoutError::Timeout) => {
                    break Some(format!("no answer within {} s", limit.as_secs()));
                }
            }
        };
        if let Some(failure) = failure {
            let item = Item::failed(&name, &Error::new(kind, failure));
            show(&item);
            items.push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexHandle;
    use crate::upkeep::check::Subject;
    use std::path::PathBuf;

    fn shared() -> Arc<Shared> {
        Arc::new(Shared::new(Subject {
            config_path: PathBuf::new(),
            default_config_path: PathBuf::new(),
            cluster: String::new(),
            data_dir: PathBuf::new(),
            state_dir: PathBuf::new(),
            cluster_state_dir: PathBuf::new(),
            index_path: PathBuf::new(),
            connection: String::new(),
            recipients: Vec::new(),
            identity_file: None,
            targets: Vec::new(),
            deadline: Duration::from_secs(1),
            round_trip: false,
            open_index: Box::new(IndexHandle::absent),
        }))
    }

    #[test]
    fn one_that_hangs_or_panics_hides_no_other() {
        let (never, hung) = channel::<()>();
        let group =
            |name: &str, limit, work: Work| Group { name: name.into(), limit, kind: Kind::Server, work };
        let long = Duration::from_mins(5);
        let groups = vec![
            group(
                "hangs",
                Duration::from_millis(100),
                Box::new(move |_, say| {
                    say(Item::ok("before", ""));
                    let _ = hung.recv();
                }),
            ),
            group("panics", long, Box::new(|_, _| panic!("on purpose"))),
            group("ends", long, Box::new(|_, say| say(Item::ok("after", "")))),
        ];
        let (mut items, mut shown) = (Vec::new(), Vec::new());
        run_together(&shared(), groups, &mut |item| shown.push(item.name.clone()), &mut items);
        assert_eq!(shown, ["before", "hangs", "panics", "after"]);
        assert!(items[1].found.starts_with("no answer within") && items[1].kind == Some(Kind::Server));
        assert!(items[2].found.contains("panicked"));
        drop(never);
    }
}
