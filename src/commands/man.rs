//! `walden man`: manual pages, one a command.

use crate::durable;
use crate::kind::{Context, Result};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use std::path::{Path, PathBuf};

/// Write the manual pages into a directory
///
/// One page for walden and one for each command, as walden-recover.1. The directory is created if it is not there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walden man /usr/local/share/man/man1")]
pub struct Args {
    /// Where to write them
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.dir).map_err(durable::at(&args.dir)).context("create directory")?;
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    write_pages(command, &args.dir)
}

fn write_pages(command: clap::Command, dir: &Path) -> Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        write_pages(inner.clone(), dir)?;
    }
    // The text after the options is examples, whose lines must stay lines.
    let examples = command.get_after_help().map(ToString::to_string);
    let man = Man::new(command.after_help(None::<&str>).version(env!("CARGO_PKG_VERSION")))
        .source(concat!("walden ", env!("CARGO_PKG_VERSION")))
        .manual("Walden");
    let mut page = Vec::new();
    man.render(&mut page).context("make a manual page")?;
    if let Some(examples) = examples {
        let mut roff = Roff::new();
        roff.control("SH", ["NOTES AND EXAMPLES"]).control("nf", []);
        for line in examples.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []).to_writer(&mut page).context("make a manual page")?;
    }
    let path = dir.join(man.get_filename());
    std::fs::write(&path, page).map_err(durable::at(&path)).context("write a manual page")
}
