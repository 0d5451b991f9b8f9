//! What is seen of a backup while it runs.

use crate::support::{Background, PATIENCE, Site, live_test, run, user, wait_until};
use nix::sys::signal::Signal;

live_test!(
    [15]
    fn off_a_terminal_a_line_every_ten_seconds_tells_how_far_it_is(pg: Installation) {
        let site = Site::new(&pg);
        let backup: Background = site.walden.spawn(&["base-backup", "--fast", "--max-rate", "1M"]);
        let line = |text: String| text.lines().find(|line| line.contains("copy files")).map(str::to_owned);
        wait_until("a line is logged", || line(backup.stderr()).is_some());
        let line = line(backup.stderr()).unwrap();
        for words in ["base backup: copy files, ", " MiB of ", "/s, ", " left"] {
            assert!(line.contains(words), "{line}");
        }
        // Whoever ends it leaves nothing on the server.
        backup.signal(Signal::SIGTERM);
        assert_eq!(backup.wait(PATIENCE).code, 128 + 15);
        crate::backup::stored::wait_for_no_session(&site.cluster);
    }
);

live_test!(
    [15]
    fn on_a_terminal_a_bar_tells_bytes_rate_and_time_left(pg: Installation) {
        let site = Site::new(&pg);
        let line = site.walden.command_line("base-backup --fast --max-rate 15M");
        // `script` gives the command a terminal and keeps what it writes there.
        let mut command = user::command("script");
        let shown = run(command.env("TERM", "xterm").args(["-qec", &line, "/dev/null"])).ok().output();
        for words in ["base backup: copy files", "MiB/s", " left", "is complete in primary, replica"] {
            assert!(shown.contains(words), "{shown}");
        }
    }
);
