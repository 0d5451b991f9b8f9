//! What `walden recover` says to people.

use super::super::output::{bytes, count};
use super::super::setup::shell_word;
use crate::recovery::estimate::Estimate;
use crate::recovery::plan::Plan;
use crate::recovery::restore::Restored;
use crate::recovery::scan::Commit;
use crate::recovery::settings::{Action, target_setting};
use crate::recovery::start::{Reached, StartOptions};
use crate::recovery::target::utc;
use indicatif::HumanDuration;
use std::path::Path;
use std::time::Duration;

/// Returns the plan in a screenful.
pub fn plan(plan: &Plan<'_>, estimate: &Estimate, without: &[String]) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("  {name:<14} {value}\n");
    line(
        "Target",
        format!("{}{}", plan.target, if plan.exclusive { ", stopping right before it" } else { "" }),
    );
    line(
        "Backup",
        format!(
            "{}, ended {}, {} ({} to fetch) from {}",
            plan.backup,
            utc(plan.summary.stop_time),
            bytes(plan.summary.size),
            bytes(plan.backup_bytes),
            plan.backup_repositories.join(" or ")
        ),
    );
    line("Chosen", plan.backup_reason.clone());
    let path: Vec<String> = plan.timeline_path.iter().map(|timeline| timeline.0.to_string()).collect();
    let way = if path.len() > 1 { format!(" (by way of {})", path.join(", ")) } else { String::new() };
    line("Timeline", format!("{}{way}", plan.timeline.0));
    line("WAL", wal(plan));
    let commit = |commit: &Commit| {
        format!("the commit of {}, transaction {}, at {}", utc(commit.time), commit.xid, commit.lsn)
    };
    if let Some(kept) = &plan.around.kept {
        line("Last kept", commit(kept));
    }
    if let Some(lost) = &plan.around.lost {
        line("First lost", commit(lost));
    }
    if let Some(commit) = &plan.last_commit {
        line("Archived up to", format!("the commit of {}", utc(commit.latest)));
    }
    line("Expected time", expected(estimate));
    for name in without {
        line("Without", format!("repository \"{name}\": what only it holds is lost"));
    }
    for segment in &plan.through {
        line("Through", format!("{segment}: what follows on its timeline is not replayed"));
    }
    for timeline in &plan.missing_histories {
        line("Missing", crate::recovery::plan::history_name(*timeline));
    }
    for note in &plan.notes {
        line("Note", note.clone());
    }
    format!("Plan for cluster \"{}\", system identifier {}\n{text}", plan.cluster, plan.system_identifier)
}

fn wal(plan: &Plan<'_>) -> String {
    let held = plan.wal_repositories.iter().filter(|share| share.segments > 0).map(|share| {
        if share.segments == plan.segments {
            share.repository.clone()
        } else {
            format!("{} ({} of them)", share.repository, share.segments)
        }
    });
    format!(
        "{}{} ({}) from {} on, from {}; archived up to {}",
        if plan.stop_lsn.is_none() { "up to " } else { "" },
        count(plan.segments, "segment"),
        bytes(plan.wal_bytes),
        plan.first_segment,
        held.collect::<Vec<_>>().join(" or "),
        plan.last_segment
    )
}

fn expected(estimate: &Estimate) -> String {
    let basis = |measured: bool| if measured { "measured here" } else { "assumed" };
    format!(
        "{}: restore {} at {}/s ({}), replay {} at {}/s ({})",
        HumanDuration(estimate.total()),
        HumanDuration(Duration::from_secs(estimate.restore_seconds)),
        bytes(estimate.restore_rate),
        basis(estimate.restore_measured),
        HumanDuration(Duration::from_secs(estimate.replay_seconds)),
        bytes(estimate.replay_rate),
        basis(estimate.replay_measured)
    )
}

/// Returns what the restore of the files did.
pub fn restored(restored: &Restored, plan: &Plan<'_>, data_dir: &Path) -> String {
    let mut text = format!("Restored backup {} into {}", plan.backup, data_dir.display());
    if restored.over_existing {
        text += &format!(
            ": wrote {} of {} in {}, removed {}",
            bytes(restored.bytes),
            bytes(plan.summary.size),
            count(restored.files, "file"),
            restored.removed
        );
    }
    text + "\n"
}

/// Returns what the server did, and how to go on.
pub fn reached(reached: &Reached, options: &StartOptions, plan: &Plan<'_>) -> String {
    let mut text = match &reached.last_transaction {
        Some(time) => format!("Reached the target. The last transaction replayed ended at {time}\n"),
        // The server that shut down cannot be asked any more, and does not always say it in its log.
        None if options.action == Action::Shutdown => "Reached the target\n".to_owned(),
        None => "Reached the target. No transaction was replayed after the backup\n".to_owned(),
    };
    if let Some(says) = &reached.stopped {
        text += &format!("The server says: {says}\n");
    }
    if let Some(connection) = &reached.connection {
        text += &format!("Connect with: psql \"{connection}\"\n");
    }
    match options.action {
        Action::Promote => text += "The server is promoted and accepts writes.\n",
        Action::Pause => {
            text += "Replay is paused, and the server answers queries: look whether this is the moment.\n\
                     If it is: SELECT pg_wal_replay_resume() ends recovery and promotes.\n";
            if let Some((name, _)) = target_setting(&plan.stop).filter(|(name, _)| *name != "recovery_target")
            {
                text += &format!(
                    "To step further: ALTER SYSTEM SET {name} = '...' to a later one, then: {} -D {} restart\n",
                    options.bin_dir.join("pg_ctl").display(),
                    shell_word(&options.data_dir.to_string_lossy())
                );
            }
            text += "To an earlier one: stop the server, and recover again with --delta.\n";
        }
        Action::Shutdown => {
            text += "The server has shut down at the target; recovery.signal is still there.\n";
        }
    }
    text + &format!("The server's log is {}\n", reached.log.display())
}
