//! What `status` and `metrics` share: finding the status out, judging it, and telling whom it concerns.

use super::{operation, setup};
use crate::config::Config;
use crate::index::IndexHandle;
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use crate::repository::Repository;
use crate::upkeep::notify::EventKind;
use crate::upkeep::status::{Status, status};
use crate::upkeep::verdict::{Circumstances, Level, Promises, Verdict, judge};
use jiff::Timestamp;
use serde::Serialize;

/// A status with what it comes to.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// What was found.
    #[serde(flatten)]
    pub status: Status,
    /// What it comes to.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Disks, verifications, and what `expire` left.
    pub circumstances: Circumstances,
}

/// Finds out the status and judges it at `now`.
pub fn look(
    config: &Config,
    repositories: &[Repository],
    given: Option<SystemIdentifier>,
    index: &IndexHandle,
    now: Timestamp,
) -> Result<Judged> {
    // A host that only archives has no identity, and one that is named but not readable is no reason to say nothing.
    let opener = setup::opener(config).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        crate::codec::Opener::without_identity()
    });
    let sysid = setup::cluster_identifier(config, repositories, given)?;
    let status = status(&config.cluster, sysid, &config.data_dir, repositories, &opener, index)?;
    let promises = promises(config);
    let places = (config.state_dir.as_path(), config.data_dir.as_path());
    let circumstances = Circumstances::gather(&status, repositories, places, &promises, index, now);
    let verdict = judge(&status, &circumstances, &promises, now);
    Ok(Judged { status, verdict, circumstances })
}

fn promises(config: &Config) -> Promises<'_> {
    Promises { thresholds: &config.status, retention: &config.retention, acknowledge: acknowledge(config) }
}

/// Returns how many repositories must hold a segment.
pub fn acknowledge(config: &Config) -> usize {
    config.archive.acknowledge.count(config.repositories.len())
}

/// Queues a notification if the verdict is another than the last time, and delivers what waits.
pub fn tell(config: &Config, index: &IndexHandle, judged: &Judged) {
    // Without an index nobody knows what the last verdict was.
    if config.notify.is_empty() || !config.index_path().exists() {
        return;
    }
    let verdict = &judged.verdict;
    // Ages in the texts change with each look; the rules and the level do not.
    let mark = format!("{} {}", verdict.verdict.word(), verdict.rules().join(" "));
    let former =
        index.run(|index| index.verdict_changed(judged.status.system_identifier, mark.trim_end())).flatten();
    // The first verdict of all is no news if it is good.
    if let Some(former) = former.filter(|former| !former.is_empty() || verdict.verdict > Level::Ok) {
        let level = match verdict.verdict {
            Level::Critical => "critical",
            Level::Warning => "warning",
            _ => "ok",
        };
        let word = former.split(' ').next().unwrap_or_default();
        let was = if word.is_empty() || word == verdict.verdict.word() {
            String::new()
        } else {
            format!(" (was {word})")
        };
        let details =
            serde_json::json!({ "verdict": verdict.verdict, "former": word, "reasons": verdict.reasons });
        operation::event(config, index, EventKind::VerdictChanged, level, format!("{verdict}{was}"), details);
    }
    operation::deliver(config, index);
}
