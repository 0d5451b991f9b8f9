//! The most memory that a program had in use at any moment of its life.

use std::time::Duration;

use super::Walden;
use super::tools::Finished;

/// Runs a command of Walden; returns with what it left the peak of its resident memory, in bytes.
///
/// The kernel keeps the peak while the process lives (`VmHWM`), so it is read again and again until the end: what the
/// parent is told after that (`ru_maxrss`) would include the parent's own memory, from before the program was loaded.
#[track_caller]
pub fn peak_of(walden: &Walden, arguments: &[&str]) -> (Finished, u64) {
    let mut running = walden.spawn(arguments);
    let path = format!("/proc/{}/status", running.pid());
    let mut peak = 0;
    while running.is_running() {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
        };
        if field("Name").is_some_and(|name| name.starts_with("walden")) {
            let kilobytes = field("VmHWM").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
            peak = peak.max(kilobytes.unwrap_or(0) << 10);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (running.wait(Duration::from_secs(1)), peak)
}
