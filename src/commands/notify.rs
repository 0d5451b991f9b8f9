//! `walden notify`: whether notifications arrive.

use super::output::{Format, json};
use super::{Global, operation, setup};
use crate::config::Config;
use crate::kind::{Context, Error, Result};
use crate::upkeep::notify::send;

/// Try the channels of [notify]
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Send a test event through each channel now, and say what came of it
    #[command(after_help = "Example:\n  walden notify test")]
    Test(Test),
}

#[derive(Debug, clap::Args)]
struct Test {
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let What::Test(args) = &args.what;
    let config = Config::load(global.config.as_deref())?;
    if config.notify.is_empty() {
        return Err(Error::config(
            "nobody is to be notified: there is no [notify] with a command or a webhook",
        )
        .with_hint("see docs/monitoring.md"));
    }
    let index = setup::index(&config);
    let channels = config.notify.names().join(" ");
    operation::run(&config, &index, "notify test", &channels, |_| test(&config, args))
}

fn test(config: &Config, args: &Test) -> Result<()> {
    let event = operation::made(config, "test", "ok", "this is a test", serde_json::json!({}));
    let body = serde_json::to_string(&event).context("write JSON")?;
    let mut failed = None;
    let mut list = Vec::new();
    for channel in config.notify.names() {
        let result = send(&config.notify, channel, &body);
        match (&result, args.output) {
            (Ok(()), Format::Text) => println!("{channel}: delivered"),
            (Err(error), Format::Text) => println!("{channel}: FAILED: {error}"),
            (_, Format::Json) => list.push(
                serde_json::json!({ "channel": channel, "delivered": result.is_ok(), "error": result.as_ref().err() }),
            ),
        }
        if let Err(error) = result {
            failed = failed.or(Some(Error::other(format!("could not notify by {channel}: {error}"))));
        }
    }
    if args.output == Format::Json {
        json(&list)?;
    }
    failed.map_or(Ok(()), Err)
}
