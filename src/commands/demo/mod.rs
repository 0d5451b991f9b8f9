//! `walden demo`: the whole story on a throwaway cluster.
//!
//! Lives here: what is told and done, step by step. `stage` owns the directory, the servers and everything that must
//! be gone at the end; `story` prints. A command line that is shown is what the shell is given, so that what a newcomer
//! reads is what he can type. Statements go through a connection of the demo's own: psql need not be there.

mod stage;
mod story;

use super::Global;
use crate::error::exit_code;
use crate::kind::{Context, Error, Kind, Result};
use crate::recovery::start;
use crate::server::Server;
use jiff::Timestamp;
use stage::{Ended, Stage};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use story::Story;

/// The versions that are looked for, in this order.
const MAJORS: [u32; 5] = [18, 17, 16, 15, 14];
/// The port of the original server. The socket's directory is the demo's own, so that it is always free.
const PORT: u16 = 5432;
/// How long a segment may take to be archived.
const ARCHIVE_LIMIT: Duration = Duration::from_mins(1);
/// Rows of one INSERT.
const BATCH: u32 = 100;
/// Inserts before and after the backup.
const BATCHES: [u32; 2] = [50, 20];

/// Show it all on a throwaway cluster: archive, back up, lose a table, get it back
///
/// Makes a PostgreSQL cluster and two repositories in a temporary directory, runs Walden's commands on them and shows
/// each with its output. At the end the servers are stopped and the directory is removed. Nothing else on the machine
/// is touched. As root, everything runs as the user postgres, or nobody.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  walden demo\n  walden demo --keep --bin-dir /usr/lib/postgresql/17/bin\n\n\
    It needs the programs of a PostgreSQL server, 14 to 18, and about ten seconds."
)]
pub struct Args {
    /// Leave the directory, with the servers stopped, and say how to look at it
    #[arg(long)]
    keep: bool,
    /// The directory of the server's programs [default: that of the newest version installed]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    if global.config.is_some() {
        return Err(Error::usage("--config does not go with demo: it writes a configuration of its own"));
    }
    let began = Instant::now();
    let bin_dir = find_programs(args.bin_dir.as_deref())?;
    let stage = Stage::new(&bin_dir, args.keep)?;
    let mut demo = Demo { story: Story::new(), stage };
    let result = demo.play().and_then(|ending| demo.end(&ending, began));
    // Not left to the destructor: what cannot be stopped or removed is to be heard of.
    let cleared = demo.stage.clear();
    match result {
        Err(error) if args.keep => {
            Err(error.with_hint(format!("the directory {} is kept", demo.stage.dir().display())))
        }
        result => result.and(cleared),
    }
}

/// Returns where the server's programs are.
fn find_programs(given: Option<&Path>) -> Result<PathBuf> {
    let given = given.map(crate::durable::absolute).transpose().context("--bin-dir")?;
    let Some(bin_dir) = MAJORS.iter().find_map(|major| start::find_bin_dir(given.as_deref(), *major).ok())
    else {
        return Err(match given {
            Some(dir) => Error::new(
                Kind::Server,
                format!("no PostgreSQL server, version 14 to 18, is in \"{}\"", dir.display()),
            )
            .with_hint("--bin-dir is the directory of initdb, pg_ctl and postgres"),
            None => Error::new(Kind::Server, "no PostgreSQL server, version 14 to 18, is installed here")
                .with_hint("`make demo` installs one; or say with --bin-dir where its programs are"),
        });
    };
    if !bin_dir.join("initdb").exists() {
        return Err(Error::new(Kind::Server, format!("\"{}\" has no initdb", bin_dir.display()))
            .with_hint("install the distribution's whole server package"));
    }
    Ok(bin_dir)
}

/// The rows of the table, as one looks at them before and after.
#[derive(Debug, PartialEq, Eq)]
struct Rows {
    count: String,
    checksum: String,
    last: String,
}

/// What the summary tells.
struct Ending {
    rows: Rows,
    /// Where recovery stopped, right before they were gone.
    until: String,
    /// When they were gone.
    dropped: Timestamp,
    /// The restored server's.
    port: u16,
}

struct Demo {
    story: Story,
    stage: Stage,
}

impl Demo {
    /// Tells the story but for its end.
    fn play(&mut self) -> Result<Ending> {
        self.introduce()?;
        self.start_cluster()?;
        self.set_up()?;
        let mut server = self.connect(PORT)?;
        self.first_orders(&mut server)?;
        self.back_up()?;
        let rows = self.more_orders(&mut server)?;
        let dropped = self.drop_table(&mut server)?;
        server.close();
        self.show_status()?;
        let until = self.find_the_moment()?;
        let port = self.recover(&until)?;
        self.compare(port, &rows)?;
        Ok(Ending { rows, until, dropped, port })
    }

    /// Stops everything and sums up.
    fn end(&mut self, ending: &Ending, began: Instant) -> Result<()> {
        self.story.step(if self.stage.keeps() { "Stop both servers" } else { "Clean up" })?;
        self.stage.clear()?;
        if self.stage.keeps() {
            self.how_to_look(ending.port)?;
        } else {
            self.story.say("Both servers are stopped and the directory is removed.")?;
        }
        self.story.summary(&format!(
            "{} orders, dropped at {}, are back by --until {} --exclusive. Total time: {:.1} s.",
            ending.rows.count,
            ending.dropped.strftime("%Y-%m-%d %H:%M:%S%.3f+00"),
            ending.until,
            began.elapsed().as_secs_f64()
        ))
    }

    fn introduce(&mut self) -> Result<()> {
        let version = self.stage.server_version()?;
        let user = self.stage.user().map(|name| format!(", as user {name}")).unwrap_or_default();
        self.story.heading("Walden demo: archive, back up, lose a table, find the moment, get it back")?;
        self.story.say(&format!("PostgreSQL {version} in {}{user}", self.stage.dir().display()))
    }

    fn start_cluster(&mut self) -> Result<()> {
        self.story.step("Start a PostgreSQL server")?;
        self.story.say("A throwaway cluster that listens on a Unix socket only.")?;
        self.story.command(&format!("cd {}", self.stage.dir().display()))?;
        self.story.command(&self.stage.exports())?;
        self.quiet("initdb -D data -U postgres -A trust -E UTF8 --locale=C --no-sync")?;
        self.quiet("echo \"listen_addresses = ''\" >> data/postgresql.conf")?;
        self.quiet("echo \"unix_socket_directories = '$PWD'\" >> data/postgresql.conf")?;
        self.quiet("pg_ctl -D data -l server.log -s start")
    }

    fn set_up(&mut self) -> Result<()> {
        self.story.step("Set up Walden")?;
        self.story.say("Two repositories, either of which may be lost. What they hold is encrypted.")?;
        self.loud(&format!(
            "walden init --data-dir data --state-dir state --apply \\\n\
             --repository primary=file://$PWD/primary --repository replica=file://$PWD/replica \\\n\
             --connection \"host=$PWD port={PORT} user=postgres\""
        ))?;
        // The prefetcher ends some moments after the server that it works for, and might write into the directory
        // while it is being removed.
        self.quiet(
            "sed -i 's/^.archive.$/&\\nprefetch = 0   # nothing runs on when the demo is over/' walden.toml",
        )?;
        self.quiet("pg_ctl -D data -l server.log -s -m fast restart")
    }

    fn first_orders(&mut self, server: &mut Server) -> Result<()> {
        self.story.step("Take orders")?;
        self.story
            .say("Every finished segment of the write-ahead log goes through `walden archive-push`.")?;
        self.story.command("psql -h $PWD -U postgres")?;
        self.sql(
            server,
            "CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text,\n\
             total numeric(8,2), placed timestamptz DEFAULT clock_timestamp());",
        )?;
        self.insert(server, BATCHES[0])?;
        self.switch_wal(server)
    }

    fn back_up(&mut self) -> Result<()> {
        self.story.step("Take a base backup")?;
        self.story.say("Recovery begins with a backup and replays the archived log from there on.")?;
        self.loud("walden base-backup --fast").map(drop)
    }

    fn more_orders(&mut self, server: &mut Server) -> Result<Rows> {
        self.story.step("Take more orders")?;
        self.story.say("They are younger than the backup: only the archived log will have them.")?;
        self.insert(server, BATCHES[1])?;
        self.rows(server)
    }

    /// Returns when the table was gone.
    fn drop_table(&mut self, server: &mut Server) -> Result<Timestamp> {
        self.story.step("Lose the table")?;
        self.story.say("The accident. Nobody looks at the clock.")?;
        self.sql(server, "DROP TABLE orders;")?;
        let dropped = server.clock()?;
        self.story.prompt("SELECT count(*) FROM orders;")?;
        match server.execute("SELECT count(*) FROM orders;") {
            Ok(()) => return Err(Error::other("the table is still there after DROP TABLE")),
            Err(error) => {
                let said = error.message().split(" (SQLSTATE").next().unwrap_or_default();
                self.story.output(&format!("ERROR:  {said}"))?;
            }
        }
        self.switch_wal(server)?;
        Ok(dropped)
    }

    fn show_status(&mut self) -> Result<()> {
        self.story.step("See what can be recovered")?;
        self.story.say("Every moment since the backup, up to what is archived.")?;
        self.loud("walden status").map(drop)
    }

    /// Asks when it happened, and returns the target that comes right before it.
    fn find_the_moment(&mut self) -> Result<String> {
        self.story.step("Find out when it happened")?;
        self.story.say("Walden has read the log that it archived. So it knows, to the record.")?;
        let shown = self.loud("walden events --kind drop --table orders")?;
        let words: Vec<&str> = shown.iter().flat_map(|line| line.split_whitespace()).collect();
        let until = words.iter().find(|word| word.starts_with("lsn:"));
        until
            .map(|until| (*until).to_owned())
            .ok_or_else(|| Error::other("walden events does not tell of the table"))
    }

    /// Recovers and returns the port of the restored server.
    fn recover(&mut self, until: &str) -> Result<u16> {
        self.story.step("Recover to just before the accident")?;
        self.story.say("Into a new directory. The damaged server goes on running beside it.")?;
        self.loud(&format!("walden recover --until {until} --exclusive --data-dir restored --start"))?;
        // The fourth line (miscinit.h, LOCK_FILE_LINE_PORT).
        let path = self.stage.dir().join("restored/postmaster.pid");
        let text = std::fs::read_to_string(&path)
            .map_err(crate::durable::at(&path))
            .kind(Kind::Server, "find the restored server")?;
        text.lines()
            .nth(3)
            .and_then(|line| line.trim().parse().ok())
            .ok_or_else(|| Error::new(Kind::Server, format!("\"{}\" has no port", path.display())))
    }

    fn compare(&mut self, port: u16, before: &Rows) -> Result<()> {
        self.story.step("Look at the recovered table")?;
        let mut server = self.connect(port)?;
        self.story.command(&format!("psql -h $PWD -p {port} -U postgres"))?;
        let after = self.rows(&mut server)?;
        if after != *before {
            return Err(Error::corrupt(format!(
                "the recovered table differs: {} rows, the last {}; before the accident {} rows, the last {}",
                after.count, after.last, before.count, before.last
            )));
        }
        self.story.say("The same count, the same checksum, the same last order.")
    }

    /// Says how to go on in the directory.
    fn how_to_look(&mut self, port: u16) -> Result<()> {
        let dir = self.stage.dir().display().to_string();
        let mut lines = vec![];
        if let Some(user) = self.stage.user() {
            lines.push(format!("runuser -u {user} -- sh"));
        }
        lines.push(format!("cd {dir}"));
        lines.push(self.stage.exports());
        let mut explained = |command: &str, what: &str| lines.push(format!("{command:<42} # {what}"));
        explained("walden status", "what is archived");
        explained(
            "pg_ctl -D data -l server.log start",
            &format!("the server that lost the table, port {PORT}"),
        );
        explained("pg_ctl -D restored -l restored.log start", &format!("the one that has it, port {port}"));
        explained(&format!("psql -h $PWD -p {port} -U postgres"), "look at it");
        explained("pg_ctl -D data stop", "stop the one");
        explained("pg_ctl -D restored stop", "and the other");
        explained(&format!("rm -r {dir}"), "remove everything");
        self.story.say(&format!("Both servers are stopped; {dir} is kept. To go on there:"))?;
        for line in lines {
            self.story.command(&line)?;
        }
        Ok(())
    }

    fn connect(&self, port: u16) -> Result<Server> {
        let dir = self.stage.dir().display();
        let mut server = Server::connect(&format!("host={dir} port={port} user=postgres dbname=postgres"))?;
        server.execute("SET search_path = public; SET datestyle = 'ISO'")?;
        Ok(server)
    }

    /// Runs SQL and shows it.
    fn sql(&mut self, server: &mut Server, sql: &str) -> Result<()> {
        self.story.prompt(sql)?;
        server.execute(sql)
    }

    fn insert(&mut self, server: &mut Server, times: u32) -> Result<()> {
        let sql = format!(
            "INSERT INTO orders (customer, total)\n\
             SELECT 'customer ' || n, 9.90 + n FROM generate_series(1, {BATCH}) n;"
        );
        self.story.prompt(&sql)?;
        for _ in 0..times {
            server.execute(&sql)?;
        }
        self.story.say(&format!("{times} transactions like this one, {} rows.", times * BATCH))
    }

    /// Ends the segment and waits until it is archived.
    fn switch_wal(&mut self, server: &mut Server) -> Result<()> {
        let sql = "SELECT pg_walfile_name(pg_switch_wal());";
        self.story.prompt(sql)?;
        let segment = server.query_one_text(sql)?;
        let began = Instant::now();
        let archived = format!(
            "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name = '{}.done'",
            segment.replace('\'', "''")
        );
        while server.query_one_text(&archived)? == "0" {
            if began.elapsed() > ARCHIVE_LIMIT {
                let log = self.stage.last_error_of("server.log").unwrap_or_default();
                return Err(Error::new(
                    Kind::Server,
                    format!("segment {segment} was not archived within {} s", ARCHIVE_LIMIT.as_secs()),
                )
                .with_hint(format!("the server's log says: {log}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.story.output(&segment)?;
        self.story.say(&format!("Archived {:.1} s later.", began.elapsed().as_secs_f64()))
    }

    /// Shows what is in the table.
    fn rows(&mut self, server: &mut Server) -> Result<Rows> {
        let mut ask = |sql: &str| -> Result<Vec<String>> {
            self.story.prompt(sql)?;
            let row = server.rows(sql)?.into_iter().next().unwrap_or_default();
            let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
            self.story.output(&row.join(" | "))?;
            Ok(row)
        };
        let mut sums =
            ask("SELECT count(*), md5(string_agg(o::text, '' ORDER BY id)) FROM orders o;")?.into_iter();
        let last = ask("SELECT * FROM orders ORDER BY id DESC LIMIT 1;")?.join(" | ");
        Ok(Rows { count: sums.next().unwrap_or_default(), checksum: sums.next().unwrap_or_default(), last })
    }

    /// Runs a command line of Walden's and shows it with its output.
    fn loud(&mut self, line: &str) -> Result<Vec<String>> {
        self.story.command(line)?;
        let (story, mut shown) = (&mut self.story, Vec::new());
        let ended = self.stage.run(line, &mut |text| {
            shown.push(text.to_owned());
            story.output(text)
        })?;
        self.check(line, &ended)?;
        Ok(shown)
    }

    /// Runs a command line and shows its output only in an error.
    fn quiet(&mut self, line: &str) -> Result<()> {
        self.story.command(line)?;
        let ended = self.stage.run(line, &mut |_| Ok(()))?;
        self.check(line, &ended)
    }

    fn check(&self, line: &str, ended: &Ended) -> Result<()> {
        if ended.code == 0 {
            return Ok(());
        }
        let what: Vec<&str> = line.split_whitespace().take(2).collect();
        let (program, what) = match what.as_slice() {
            ["walden", command] => ("walden", format!("walden {command}")),
            [program, ..] => (*program, (*program).to_owned()),
            [] => ("", String::new()),
        };
        let mut message = format!("{what} failed with exit code {}", ended.code);
        if let Some(said) = ended.said() {
            let _ = write!(message, ": {said}");
        }
        let kind = if program == "walden" { kind_of(ended.code) } else { Kind::Server };
        let error = Error::new(kind, message);
        Err(match (program, self.stage.last_error_of("server.log")) {
            ("pg_ctl", Some(log)) => error.with_hint(format!("the server's log says: {log}")),
            _ => error,
        })
    }
}

/// Returns the kind of failure that an exit code of Walden's stands for.
fn kind_of(code: i32) -> Kind {
    [Kind::Config, Kind::Repository, Kind::Conflict, Kind::Corrupt, Kind::Server, Kind::Target]
        .into_iter()
        .find(|kind| i32::from(exit_code(*kind)) == code)
        .unwrap_or(Kind::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_gives_its_exit_code_to_the_demo() {
        for code in 3..=8 {
            assert_eq!(i32::from(exit_code(kind_of(code))), code);
        }
        assert_eq!(kind_of(1), Kind::Other);
        assert_eq!(kind_of(143), Kind::Other);
    }

    #[test]
    fn a_directory_without_a_server_is_refused_politely() {
        let dir = tempfile::tempdir().unwrap();
        let error = find_programs(Some(dir.path())).unwrap_err();
        assert_eq!(error.kind(), Kind::Server);
        assert!(error.hint().is_some_and(|hint| hint.contains("--bin-dir")), "{error}");
    }
}
