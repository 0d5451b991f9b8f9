//! `walden resolve`: which of two contents is right.

use super::{Global, operation, setup};
use crate::config::Config;
use crate::kind::{Error, Result};
use crate::postgres::{ArchiveFileName, SystemIdentifier};
use crate::upkeep::resolve::resolve;

/// Settle which of two contents archived under one name is the right one
///
/// The other is moved aside in each repository, and nothing is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walden resolve 000000010000000000000007 --keep 5f0c2a91")]
pub struct Args {
    /// The name of the WAL file
    name: String,
    /// The CRC-32 of the content to keep, as the error message shows it
    #[arg(long, value_name = "CRC")]
    keep: String,
    /// The system identifier, where the data directory is not here
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let name: ArchiveFileName = args
        .name
        .parse()
        .map_err(|_| Error::usage(format!("\"{}\" is not the name of a WAL file", args.name)))?;
    let keep = u32::from_str_radix(&args.keep, 16)
        .ok()
        .filter(|_| args.keep.len() == 8)
        .ok_or_else(|| Error::usage(format!("--keep {}: a CRC-32 is eight hexadecimal digits", args.keep)))?;
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let sysid = setup::cluster_identifier(&config, &repositories, args.system_identifier)?;
    let index = setup::index(&config);
    let subject = format!("{name} --keep {keep:08x}");
    let moved = operation::run(&config, &index, "resolve", &subject, |details| {
        let moved = resolve(&config.cluster, sysid, name, keep, &repositories)?;
        details.note("moved", moved.len());
        Ok(moved)
    })?;
    if moved.is_empty() {
        println!("\"{name}\" has this content only; nothing was to be done.");
    }
    for line in moved {
        println!("{line}");
    }
    println!("If a repository lacks it now, walden sync copies it there.");
    Ok(())
}
