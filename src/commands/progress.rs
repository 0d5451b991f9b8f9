//! Drawing the progress of long work: a bar on a terminal, a line every ten seconds elsewhere.

use crate::progress::Progress;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the bar is drawn.
const DRAW: Duration = Duration::from_millis(100);
/// How often a line is logged off a terminal.
const LOG: Duration = Duration::from_secs(10);

/// Runs `work` while its progress is shown.
pub fn while_shown<T>(progress: &Progress, what: &str, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let drawer = scope.spawn(|| draw(progress, what, &done));
        let result = work();
        done.store(true, Ordering::Relaxed);
        drawer.thread().unpark();
        result
    })
}

fn draw(progress: &Progress, what: &str, done: &AtomicBool) {
    // Waiting for a checkpoint says nothing about the rate.
    let mut began = Instant::now();
    if std::io::stderr().is_terminal() {
        let bar = ProgressBar::new(0);
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
        {
            bar.set_style(style);
        }
        while !done.load(Ordering::Relaxed) {
            bar.set_length(progress.total());
            bar.set_position(progress.done());
            bar.set_message(format!("{what}: {}", progress.phase()));
            std::thread::park_timeout(DRAW);
        }
        bar.finish_and_clear();
        return;
    }
    let mut said = Instant::now();
    while !done.load(Ordering::Relaxed) {
        std::thread::park_timeout(DRAW);
        if progress.done() == 0 {
            began = Instant::now();
        }
        if said.elapsed() >= LOG {
            said = Instant::now();
            tracing::info!("{}", line(progress, what, began.elapsed()));
        }
    }
}

fn line(progress: &Progress, what: &str, elapsed: Duration) -> String {
    let (bytes, total) = (progress.done(), progress.total());
    let rate = bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let left = total.saturating_sub(bytes) as f64 / rate.max(1.0);
    let left = if bytes == 0 {
        "unknown time".to_owned()
    } else {
        HumanDuration(Duration::from_secs_f64(left.min(1e9))).to_string()
    };
    format!(
        "{what}: {}, {} of {}, {}/s, {left} left",
        progress.phase(),
        HumanBytes(bytes),
        HumanBytes(total),
        HumanBytes(rate as u64)
    )
}
