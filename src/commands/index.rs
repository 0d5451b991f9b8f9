//! `walden index`: the local index.

use super::output::{Format, count, json};
use super::{Global, setup};
use crate::config::Config;
use crate::error::exit_code;
use crate::index::{Index, is_damaged};
use crate::kind::{Context, Result};
use crate::repository::Repository;
use crate::upkeep::rebuild::rebuild;

/// Make the local index anew from the repositories
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Take over what the repositories hold
    ///
    /// By listings alone; with the identity also commits, events and names, which are kept there encrypted. What the index
    /// knows already stays. A damaged index is put aside.
    #[command(after_help = "Example:\n  walden index rebuild")]
    Rebuild(Rebuild),
}

#[derive(Debug, clap::Args)]
struct Rebuild {
    /// Leave this repository out (may be given several times)
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let What::Rebuild(args) = &args.what;
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories_without(&config, &args.without)?;
    let opener = setup::opener(&config)?;
    let index = open(&config)?;
    let all: Vec<&Repository> = repositories.iter().collect();
    let operation = index.log_start("index rebuild", "")?;
    let result = rebuild(&config.cluster, &all, &opener, &index);
    index.log_end(operation, &result.as_ref().map_or_else(ToString::to_string, |_| "done".to_owned()))?;
    let code = result.as_ref().err().map_or(0, |error| exit_code(error.kind()));
    let details =
        result.as_ref().map(|done| serde_json::json!({ "files": done.files, "digests": done.digests }));
    index.log_details(operation, code, &details.unwrap_or_default().to_string())?;
    setup::give_to(&config.cluster_state_dir(), setup::owner_for(&config.data_dir))?;
    let done = result?;
    if let Some(reason) = &done.without_digests {
        tracing::warn!(
            "commits, events and names are not read: {reason}; hint: they are encrypted; run this where the identity is"
        );
    }
    match args.output {
        Format::Json => json(&done),
        Format::Text => {
            println!(
                "The index \"{}\" knows {} in {}, and {} of what was in them.",
                config.index_path().display(),
                count(done.files, "WAL file"),
                if all.len() == 1 {
                    "1 repository".to_owned()
                } else {
                    format!("{} repositories", all.len())
                },
                count(done.digests, "digest")
            );
            Ok(())
        }
    }
}

/// Opens the index; one that is damaged is put aside, and a new one made.
fn open(config: &Config) -> Result<Index> {
    let path = config.index_path();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).context("create the directory of the index")?;
    }
    Index::open(&path).or_else(|error| {
        if !is_damaged(&path) {
            return Err(error);
        }
        let aside = path.with_extension(format!("sqlite.damaged-{}", jiff::Timestamp::now().as_second()));
        std::fs::rename(&path, &aside).context("put the old index aside")?;
        for ending in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{ending}", path.display()));
        }
        tracing::warn!("the index is damaged: {error}; put aside as \"{}\"", aside.display());
        Index::open(&path)
    })
}
