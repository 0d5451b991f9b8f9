//! What `walden init` asks on a terminal: four questions at most, each with a proposal, and each repository tried out as it is
//! entered.

use super::found::{self, Found};
use super::{Args, probe};
use crate::kind::{Context, Error, Result};
use crate::server::Server;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Where state is kept, unless said otherwise.
const STATE_DIR: &str = "/var/lib/walden";
/// What is proposed for the first repository.
const REPOSITORY: &str = "file:///srv/walden/primary";

/// Returns whether somebody sits there whom one can ask, and who has not said it all.
pub fn wanted(args: &Args) -> bool {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    terminal && (args.data_dir.is_none() || args.repository.is_empty())
}

/// Asks for what the flags leave open. Returns the arguments as if all had been given, and the cluster that was chosen.
pub fn ask(path: &Path, args: &Args) -> Result<(Args, Option<Found>)> {
    let mut asked = args.clone();
    let mut input = std::io::stdin().lock();
    let mut talk = Talk { input: &mut input, output: &mut std::io::stdout() };
    let chosen = match &args.data_dir {
        Some(_) => None,
        None => Some(talk.cluster(&found::clusters())?),
    };
    if let Some(cluster) = &chosen {
        asked.data_dir = Some(cluster.data_dir.clone());
        asked.connection.get_or_insert_with(|| cluster.connection());
    }
    asked.state_dir.get_or_insert_with(|| STATE_DIR.into());
    if asked.repository.is_empty() {
        let question =
            "Where is the archive to be kept? file:///directory, or s3://bucket/prefix region=REGION";
        talk.repository(path, &mut asked, "primary", question, Some(REPOSITORY))?;
        let question = "A second place, written at the same time? As above, or Enter for none";
        talk.repository(path, &mut asked, "replica", question, None)?;
    }
    if !asked.apply && chosen.as_ref().is_some_and(|cluster| cluster.running) {
        // Who cannot reach the server now is not asked, but told the settings.
        let connection = asked.connection.clone().unwrap_or_default();
        match Server::connect(&connection) {
            Ok(_) => {
                let question =
                    "Set archive_mode, archive_command and restore_command in the server now? y or n";
                asked.apply = talk.answer(question, Some("y"))?.to_lowercase().starts_with('y');
            }
            Err(error) => talk.say(&format!("The server is not asked to change its settings: {error}"))?,
        }
    }
    Ok((asked, chosen))
}

/// A conversation: lines that come in, questions that go out.
struct Talk<'a> {
    input: &'a mut dyn BufRead,
    output: &'a mut dyn Write,
}

impl Talk<'_> {
    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.output, "{line}").context("write")
    }

    /// Asks, and returns the answer, or the proposal where there was none.
    fn answer(&mut self, question: &str, proposal: Option<&str>) -> Result<String> {
        let shown = proposal.map(|proposal| format!(" [{proposal}]")).unwrap_or_default();
        write!(self.output, "{question}{shown}: ").context("write")?;
        self.output.flush().context("write")?;
        let mut line = String::new();
        if self.input.read_line(&mut line).context("read the answer")? == 0 {
            self.say("")?;
            return Err(Error::usage("the questions were not answered; nothing was changed in the server")
                .with_hint("give the answers as flags: walden init --help"));
        }
        let line = line.trim();
        Ok(if line.is_empty() { proposal.unwrap_or_default().to_owned() } else { line.to_owned() })
    }

    fn cluster(&mut self, found: &[Found]) -> Result<Found> {
        for (number, cluster) in found.iter().enumerate() {
            self.say(&format!("  {}  {}", number + 1, cluster.describe()))?;
        }
        let question = if found.is_empty() {
            "No cluster was found here. Which data directory is to be archived?"
        } else {
            "Which cluster is to be archived? A number, or a data directory"
        };
        loop {
            let answer = self.answer(question, (!found.is_empty()).then_some("1"))?;
            let number = answer.parse::<usize>().ok();
            let chosen = match number.and_then(|number| found.get(number.checked_sub(1)?)) {
                Some(cluster) => cluster.clone(),
                None => by_directory(found, &answer),
            };
            match super::setup::control_file(&chosen.data_dir) {
                Ok(_) => return Ok(chosen),
                Err(error) => self.say(&format!("That does not go: {error}"))?,
            }
        }
    }

    /// Asks for a repository until one is good, or none is wanted where there is no proposal.
    fn repository(
        &mut self,
        path: &Path,
        args: &mut Args,
        name: &str,
        question: &str,
        proposal: Option<&str>,
    ) -> Result<()> {
        loop {
            let answer = self.answer(question, proposal)?;
            let mut words = answer.split_whitespace();
            let Some(url) = words.next() else { return Ok(()) };
            let mut tried = args.clone();
            // A path by itself is a directory.
            let url = if url.starts_with('/') { format!("file://{url}") } else { url.to_owned() };
            tried.repository.push(format!("{name}={url}"));
            tried.repository_option.extend(words.map(|option| format!("{name}.{option}")));
            match probe(path, &tried, name) {
                Ok(lines) => {
                    for line in lines {
                        self.say(&line)?;
                    }
                    *args = tried;
                    return Ok(());
                }
                Err(error) => self.say(&format!("That does not go: {error}"))?,
            }
        }
    }
}

fn by_directory(found: &[Found], answer: &str) -> Found {
    let data_dir = PathBuf::from(answer);
    found.iter().find(|cluster| cluster.data_dir == data_dir).cloned().unwrap_or(Found {
        data_dir,
        port: 5432,
        socket_dir: None,
        debian: None,
        running: false,
    })
}
