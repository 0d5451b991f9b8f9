//! Messages on stderr in PostgreSQL's style: a level, a colon, one line. The server puts them into its log as they
//! are, without a prefix of its own.

use std::fmt::Write as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Starts logging: warnings always, information unless `quiet`, more with `verbose`.
pub fn start(verbose: bool, quiet: bool) {
    let level = match (verbose, quiet) {
        (true, _) => tracing::level_filters::LevelFilter::DEBUG,
        (false, false) => tracing::level_filters::LevelFilter::INFO,
        (false, true) => tracing::level_filters::LevelFilter::WARN,
    };
    // Only our own events: a library's are for its developers.
    let filter = tracing_subscriber::filter::Targets::new().with_target("walden", level);
    let layer = fmt::layer().with_writer(std::io::stderr).event_format(Line).with_filter(filter);
    let _ = tracing_subscriber::registry().with(layer).try_init();
}

struct Line;

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "LOG",
            _ => "DEBUG",
        };
        let mut message = Message::default();
        event.record(&mut message);
        let text = message.0.replace(['\n', '\r'], " ");
        writeln!(writer, "{level}: {text}")
    }
}
