//! `walden completions`: what a shell needs to complete walden's command lines.

use crate::kind::{Context, Result};
use clap_complete::Shell;
use std::io::Write;

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    walden completions bash >/usr/share/bash-completion/completions/walden\n  \
    walden completions zsh >/usr/share/zsh/vendor-completions/_walden\n  \
    walden completions fish >/usr/share/fish/vendor_completions.d/walden.fish")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let mut text = Vec::new();
    let whole = super::command();
    // Shells would offer what is hidden.
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut command = clap::Command::new("walden").args(whole.get_arguments().cloned()).subcommands(shown);
    clap_complete::generate(args.shell, &mut command, "walden", &mut text);
    std::io::stdout().write_all(&text).context("write completions")
}
