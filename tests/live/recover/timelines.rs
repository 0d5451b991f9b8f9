//! Branches: each promotion makes a timeline, and every moment of every branch can be reached as long as its WAL is
//! archived.

use std::fs;
use std::path::PathBuf;

use crate::support::{Cluster, Entry, Installation, Ledger, Site, Stop, live_test};

/// A cluster that was recovered into production, and what it does there.
struct Branches {
    site: Site,
    pg: Installation,
    /// The server that is in production now.
    live: Option<Cluster>,
}

impl Branches {
    fn new(pg: &Installation) -> Self {
        let site = Site::new(pg);
        Ledger::create(&site.cluster);
        Self { site, pg: pg.clone(), live: None }
    }

    fn live(&self) -> &Cluster {
        self.live.as_ref().unwrap_or(&self.site.cluster)
    }

    fn commit(&self) -> Entry {
        Ledger::add(self.live())
    }

    fn back_up(&self) -> String {
        self.site.walden.run(&["base-backup", "--fast"]).ok();
        let list = self.site.walden.run(&["list", "--output", "json"]).ok();
        let list: serde_json::Value = serde_json::from_str(&list.stdout).expect("JSON");
        list.as_array().and_then(|list| list.last()?["id"].as_str().map(str::to_owned)).expect("a backup")
    }

    fn archive(&self) {
        let segment = self.live().switch_wal();
        self.live().wait_archived(&segment);
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.site.work.join(name)
    }

    /// Recovers into production, in the place of the server that was there.
    fn take_over(&mut self, name: &str, until: &str) {
        match &mut self.live {
            Some(cluster) => cluster.stop(Stop::Fast),
            None => self.site.cluster.stop(Stop::Fast),
        }
        let dir = self.dir(name).display().to_string();
        self.site
            .walden
            .run(&["recover", "--until", until, "--data-dir", &dir, "--take-over", "--start"])
            .ok();
        self.live = Some(Cluster::adopt(&self.pg, &self.dir(name)));
        let text = fs::read_to_string(&self.site.config).expect("read");
        let others = text.lines().filter(|line| !line.starts_with("data_dir "));
        let text: String = others.flat_map(|line| [line, "\n"]).collect();
        fs::write(&self.site.config, format!("data_dir = {dir:?}\n{text}")).expect("write");
    }

    /// Recovers a copy, and returns what is in its ledger.
    #[track_caller]
    fn ids(&self, arguments: &[&str]) -> Vec<i64> {
        let dir = self.dir("copy").display().to_string();
        self.site
            .walden
            .run(&[&["recover", "--start", "--delta", "--data-dir", &dir], arguments].concat())
            .ok();
        let mut cluster = Cluster::adopt(&self.pg, &self.dir("copy"));
        let ids = Ledger::ids(&cluster);
        cluster.stop(Stop::Fast);
        ids
    }
}

live_test!(
    fn every_moment_of_every_branch_can_be_reached(pg: Installation) {
        let mut story = Branches::new(&pg);
        let first_backup = story.back_up();
        let (one, two, three) = (story.commit(), story.commit(), story.commit());
        story.archive();
        // The first attempt: timeline 2 forks off before the third entry, and is backed up.
        story.take_over("second", &two.after);
        let four = story.commit();
        let second_backup = story.back_up();
        let (five, six) = (story.commit(), story.commit());
        story.archive();
        assert_eq!(Ledger::ids(story.live()), [one.id, two.id, four.id, five.id, six.id]);

        assert_eq!(
            story.ids(&["--until", &three.after]),
            [one.id, two.id, three.id],
            "the branch that was live then"
        );
        assert_eq!(
            story.ids(&["--until", "latest", "--timeline", "1"]),
            [one.id, two.id, three.id],
            "abandoned"
        );
        assert_eq!(story.ids(&["--until", &five.after]), [one.id, two.id, four.id, five.id]);
        assert_eq!(
            story.ids(&["--until", &five.after, "--backup", &first_backup]),
            [one.id, two.id, four.id, five.id],
            "from a backup before the fork, through it"
        );
        assert_eq!(
            story.ids(&["--until", "latest", "--timeline", "current", "--backup", &first_backup]),
            [one.id, two.id, three.id],
            "the backup's own timeline"
        );
        let refused = story.site.walden.run(&[
            "recover",
            "--until",
            "latest",
            "--timeline",
            "1",
            "--backup",
            &second_backup,
            "--plan",
        ]);
        assert_eq!(refused.expect_code(8).stdout, "");

        // The second attempt: timeline 3 forks off earlier than timeline 2 did.
        story.take_over("third", &one.after);
        let seven = story.commit();
        story.commit();
        story.archive();
        assert_eq!(story.ids(&["--until", &seven.after]), [one.id, seven.id]);
        assert_eq!(
            story.ids(&["--until", &five.after]),
            [one.id, two.id, four.id, five.id],
            "live at that time"
        );
        assert_eq!(story.ids(&["--until", &two.after, "--timeline", "1"]), [one.id, two.id]);
        assert_eq!(
            story.ids(&["--until", &five.after, "--timeline", "2"]),
            [one.id, two.id, four.id, five.id]
        );
        assert_eq!(
            story.ids(&["--until", &five.after, "--timeline", "latest"]),
            [one.id],
            "timeline 3 had nothing of its own by then"
        );
        let plan = story.site.walden.run(&["recover", "--until", &five.after, "--plan"]).ok();
        assert!(
            plan.stdout.contains("the newest that ended before the target, on the way to timeline 2"),
            "{plan}"
        );
        assert!(
            plan.stdout.contains("timeline 2 was live at the target; timeline 3 was made later"),
            "{plan}"
        );
        assert!(plan.stdout.contains(&second_backup), "{plan}");
        if let Some(cluster) = &mut story.live {
            cluster.stop(Stop::Fast);
        }
    }
);
