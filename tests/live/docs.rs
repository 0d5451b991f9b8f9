//! The commands of the documentation, run as they stand: a block with a name belongs to the test that asks for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::markdown::blocks;
use crate::support::cluster::Stop;
use crate::support::site::SiteOptions;
use crate::support::tools::{self, Finished};
use crate::support::user::WorkDir;
use crate::support::{
    Cluster, Ledger, Moto, Postgres, S3Client, Site, Walden, free_port, live_test, require, run, user,
};

/// Returns the blocks of a page that have this name, one after the other.
fn commands(page: &str, name: &str) -> String {
    let script = named(page, name);
    assert!(!script.is_empty(), "{page} has no block {name}");
    script
}

fn named(page: &str, name: &str) -> String {
    let dir = if page == "README.md" { "" } else { "docs" };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join(page);
    let text = fs::read_to_string(&path).expect("read");
    let found = blocks(&text).into_iter().filter(|block| block.name.as_deref() == Some(name));
    found.map(|block| block.text).collect()
}

/// A shell in which the commands of a page run: `walden` is this build, the client programs are found, and what the page tells
/// its reader to put in is set.
#[derive(Clone)]
pub struct Shell {
    walden: Walden,
    variables: Vec<(String, String)>,
    dir: Option<PathBuf>,
    _work: Arc<WorkDir>,
}

impl Shell {
    pub fn new(site: &Site) -> Self {
        let work = WorkDir::new();
        std::os::unix::fs::symlink(Walden::binary(), work.join("walden")).expect("symlink");
        let installation = &site.cluster.installation;
        let clients = Postgres::client("psql");
        let clients = clients.parent().expect("a directory");
        let path = std::env::var("PATH").expect("PATH");
        let path =
            format!("{}:{}:{}:{path}", work.path().display(), installation.bin.display(), clients.display());
        let cluster = &site.cluster;
        let variables = [
            ("PATH", path),
            ("WALDEN_CONFIG", site.config.display().to_string()),
            ("PGDATA", cluster.data_dir().display().to_string()),
            ("PGHOST", cluster.socket_dir().display().to_string()),
            ("PGPORT", cluster.port().to_string()),
            ("PGUSER", "postgres".to_owned()),
            ("PGDATABASE", "postgres".to_owned()),
            ("COPY", site.work.join("copy").display().to_string()),
            ("COPY_PORT", free_port().to_string()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Self { walden: site.walden.clone(), variables, dir: None, _work: Arc::new(work) }
    }

    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.variables.push((name.to_owned(), value.to_string()));
    }

    /// Returns the same shell, at work in `dir`.
    pub fn in_dir(&self, dir: &Path) -> Self {
        Self { dir: Some(dir.to_owned()), ..self.clone() }
    }

    /// Runs the blocks of a page that have this name, in one shell that ends at the first failure. What the page's block
    /// "values" sets gets this shell's values.
    #[track_caller]
    pub fn run(&self, page: &str, name: &str) -> Finished {
        self.try_run(page, name).ok()
    }

    /// The same, of what may fail.
    pub fn try_run(&self, page: &str, name: &str) -> Finished {
        let word = |value: &str| format!("'{}'", value.replace('\'', r"'\''"));
        let set = |(name, value): &(String, String)| format!("export {name}={}\n", word(value));
        let own: String = self.variables.iter().map(set).collect();
        self.try_bash(&(named(page, "values") + &own + &commands(page, name)))
    }

    #[track_caller]
    pub fn bash(&self, script: &str) -> Finished {
        self.try_bash(script).ok()
    }

    fn try_bash(&self, script: &str) -> Finished {
        let mut command = user::command("bash");
        command.args(["-euo", "pipefail", "-c", script]);
        command.current_dir(self.dir.as_deref().unwrap_or(Path::new("/")));
        let environment = self.walden.command(["--version"]);
        command.envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
        run(command.envs(self.variables.iter().map(|(name, value)| (name, value))))
    }

    /// Opens a server that the commands have started.
    pub fn server(&self, site: &Site, dir: &Path) -> Cluster {
        Cluster::adopt(&site.cluster.installation, dir)
    }
}

/// Returns whether the programs that the runbook uses are here for this server: pg_dump takes no newer server than itself.
fn has_pg_dump(major: u32) -> bool {
    let client = Postgres::client("pg_dump");
    let version = client.is_file().then(|| run(user::command(&client).arg("--version")).ok().stdout);
    let newest =
        version.and_then(|text| text.split_whitespace().nth(2)?.split('.').next()?.parse::<u32>().ok());
    require(newest, "pg_dump").is_some_and(|newest| newest >= major)
}

live_test!(
    [14, 15]
    fn runbook_a_table_was_dropped(pg: Installation) {
        if !has_pg_dump(pg.major) {
            return;
        }
        let site = Site::new(&pg);
        let orders = "SELECT count(*), sum(id) FROM orders";
        site.cluster.psql("CREATE TABLE orders AS SELECT id FROM generate_series(1, 7000) id");
        site.walden.run(&["base-backup", "--fast"]).ok();
        let before = site.cluster.psql(orders);
        site.cluster.psql("DROP TABLE orders");
        site.cluster.psql("CREATE TABLE later (a int)");
        site.archive_a_segment();
        let found = site.walden.run(&["events", "--output", "json"]).ok();
        let found: serde_json::Value = serde_json::from_str(&found.stdout).expect("JSON");
        let command = found[0]["recover"].as_str().unwrap_or_else(|| panic!("{found}"));
        let until = command.split("--until ").nth(1).and_then(|rest| rest.split(' ').next()).expect("--until");
        let mut shell = Shell::new(&site);
        shell.set("UNTIL", until);
        shell.set("TABLE", "public.orders");
        let finished = shell.run("runbook.md", "table-dropped");
        assert!(finished.stdout.contains("public.orders"), "{finished}");
        assert_eq!(site.cluster.psql(orders), before);
        assert_eq!(site.cluster.psql("SELECT count(*) FROM later"), "0", "what came later is still there");
        assert!(!site.work.join("copy").exists());
    }
);

live_test!(
    [14, 17]
    fn runbook_a_bad_deployment(pg: Installation) {
        let mut site = Site::with_backup(&pg);
        let shell = Shell::new(&site);
        site.fill(2);
        let good = Ledger::ids(&site.cluster);
        shell.run("runbook.md", "deployment-before");
        site.cluster.psql("DELETE FROM ledger");
        site.fill(1);
        let data_dir = site.cluster.data_dir().to_owned();
        let finished = shell.run("runbook.md", "bad-deployment");
        let mut back = shell.server(&site, &data_dir);
        assert_eq!(Ledger::ids(&back), good, "{finished}");
        // Production again: it archives.
        let segment = back.switch_wal();
        back.wait_archived(&segment);
        back.stop(Stop::Fast);
        assert!(!site.cluster.is_running());
    }
);

live_test!(
    [15, 18]
    fn runbook_the_disk_is_lost(pg: Installation) {
        let mut site = Site::with_backup(&pg);
        site.fill(2);
        let ids = Ledger::ids(&site.cluster);
        let shell = Shell::new(&site);
        let data_dir = site.cluster.data_dir().to_owned();
        // A crash leaves the server's socket behind, which must not pass for a running server.
        site.cluster.kill();
        fs::remove_dir_all(&data_dir).expect("remove");
        fs::remove_dir_all(site.work.join("state")).expect("remove");
        shell.run("runbook.md", "disk-lost");
        let mut back = shell.server(&site, &data_dir);
        assert_eq!(Ledger::ids(&back), ids);
        let segment = back.switch_wal();
        back.wait_archived(&segment);
        back.stop(Stop::Fast);
    }
);

live_test!(
    [16]
    fn runbook_a_region_is_lost(pg: Installation) {
        let mut site = Site::with_backup(&pg);
        site.fill(2);
        let ids = Ledger::ids(&site.cluster);
        let shell = Shell::new(&site);
        let data_dir = site.cluster.data_dir().to_owned();
        site.cluster.stop(Stop::Immediate);
        fs::remove_dir_all(&data_dir).expect("remove");
        fs::rename(site.repository("primary"), site.work.join("away")).expect("rename");
        let refused = site.walden.run(&["recover", "--until", "latest", "--plan"]).expect_code(4);
        assert!(refused.stderr.contains("--without primary"), "{refused}");
        shell.run("runbook.md", "region-lost");
        let mut back = shell.server(&site, &data_dir);
        assert_eq!(Ledger::ids(&back), ids);
        let segment = back.switch_wal();
        back.wait_archived(&segment);
        fs::rename(site.work.join("away"), site.repository("primary")).expect("rename");
        shell.run("runbook.md", "region-back");
        assert!(!site.wal_objects("primary", &segment).is_empty(), "what it missed has been copied");
        back.stop(Stop::Fast);
    }
);

live_test!(
    [17]
    fn runbook_ransomware(pg: Installation) {
        let Some(moto) = Moto::start() else { return };
        moto.create_locked_bucket("locked");
        let options = ["endpoint", "path_style", "region"].iter().zip([&moto.endpoint, "true", "us-east-1"]);
        let init = options
            .flat_map(|(key, value)| ["--repository-option".to_owned(), format!("primary.{key}={value}")]);
        let mut site = Site::with_backup_and(&pg, &SiteOptions {
            repositories: vec!["primary=s3://locked/prod".to_owned()],
            init: init.collect(),
            env: moto.env(),
            ..SiteOptions::default()
        });
        let good = Ledger::add(&site.cluster);
        site.fill(1);
        site.cluster.psql("DELETE FROM ledger");
        site.archive_a_segment();

        // Whoever was on the host encrypted it, and deleted what its role let it.
        site.cluster.stop(Stop::Immediate);
        fs::remove_dir_all(site.work.join("state")).expect("remove");
        let s3 = S3Client::new(&moto.endpoint, &moto.access_key, &moto.secret_key, None);
        let listed = s3.wait(s3.client.list_objects_v2().bucket("locked").send()).expect("list");
        for object in listed.contents() {
            let key = object.key().expect("a key");
            s3.wait(s3.client.delete_object().bucket("locked").key(key).send()).expect("a marker");
        }
        site.walden.run(&["recover", "--until", "latest", "--plan"]).expect_code(4);

        // Step 3: the markers come off.
        let versions = s3.wait(s3.client.list_object_versions().bucket("locked").send()).expect("versions");
        assert_eq!(versions.delete_markers().len(), listed.contents().len());
        for marker in versions.delete_markers() {
            let (key, version) = (marker.key().expect("a key"), marker.version_id().expect("a version"));
            s3.wait(s3.client.delete_object().bucket("locked").key(key).version_id(version).send()).expect("gone");
        }
        let mut shell = Shell::new(&site);
        shell.set("UNTIL", format!("lsn:{}", good.lsn));
        shell.run("runbook.md", "ransomware");
        let copy = site.work.join("copy");
        let mut back = shell.server(&site, &copy);
        assert_eq!(Ledger::ids(&back).last(), Some(&good.id));
        back.stop(Stop::Fast);
    }
);

live_test!(
    [16]
    fn check_as_its_page_shows_it(pg: Installation) {
        let site = Site::new(&pg);
        let finished = Shell::new(&site).run("check.md", "check");
        assert!(finished.stdout.contains("round trip"), "{finished}");
    }
);

live_test!(
    [15]
    fn the_monthly_test(pg: Installation) {
        if !has_pg_dump(pg.major) {
            return;
        }
        let site = Site::with_backup(&pg);
        site.fill(1);
        Shell::new(&site).run("policies.md", "monthly-test");
        assert!(!site.work.join("copy").exists());
    }
);

live_test!(
    [15]
    fn migration_side_by_side_and_the_switch(pg: Installation) {
        let site = Site::new(&pg);
        let mut shell = Shell::new(&site);
        // The old tool is one that keeps copies; what it gets, and what Walden gets, is the same.
        let old = site.work.create_dir("old-archive");
        user::give(&old);
        shell.set("OLD", format!("cp %p {}/%f", old.display()));
        shell.set("WALDEN", site.walden.command_line("").trim());
        shell.run("migration.md", "side-by-side");
        let segment = site.archive_a_segment();
        assert!(old.join(&segment).exists() && !site.wal_objects("primary", &segment).is_empty());
        shell.run("migration.md", "switch");
        let segment = site.archive_a_segment();
        assert!(!old.join(&segment).exists() && !site.wal_objects("primary", &segment).is_empty());
    }
);

live_test!(
    [15]
    fn security_rewraps_for_new_recipients(pg: Installation) {
        let site = Site::new(&pg);
        site.archive_a_segment();
        let (new, _) = crate::keys::new_keys(&site);
        let mut shell = Shell::new(&site);
        shell.set("OLD", site.config.display());
        shell.set("NEW", new.display());
        shell.run("security.md", "switch");
        let finished = shell.run("security.md", "rewrap");
        assert!(finished.stdout.contains("to copy from") && finished.stdout.contains("has everything"), "{finished}");
    }
);

live_test!(
    [17]
    fn security_the_ceremony_and_a_rotation(pg: Installation) {
        if tools::age().is_none() {
            return;
        }
        let mut site = Site::with_backup(&pg);
        let ceremony = WorkDir::new();
        let shell = Shell::new(&site);
        let script = format!("cd {}\n{}", ceremony.path().display(), commands("security.md", "ceremony"));
        let finished = shell.bash(&script);
        assert_eq!(finished.stdout.matches("the ceremony").count(), 2, "{finished}");

        // Rotation: the new recipients instead of the old one, both identities where recovery is.
        site.fill(1);
        let old = fs::read_to_string(site.work.join("identity.txt")).expect("read");
        let config = fs::read_to_string(&site.config).expect("read");
        let recipients = finished.stdout.lines().filter(|line| line.starts_with("age1"));
        let recipients: Vec<String> = recipients.take(2).map(|line| format!("\"{line}\"")).collect();
        assert_eq!(recipients.len(), 2, "{finished}");
        let line = config.lines().find(|line| line.starts_with("recipients")).expect("recipients");
        let rotated = config.replace(line, &format!("recipients = [{}]", recipients.join(", ")));
        fs::write(&site.config, rotated).expect("write");
        site.fill(1);
        let ids = Ledger::ids(&site.cluster);
        let operations = fs::read_to_string(ceremony.join("operations.txt")).expect("read");
        for (identity, code) in [(old.clone(), 4), (format!("{old}\n{operations}"), 0)] {
            fs::write(site.work.join("identity.txt"), identity).expect("write");
            let dir = site.work.join(format!("restored-{code}"));
            let target = dir.display().to_string();
            let finished = site.walden.run(&["recover", "--until", "latest", "--data-dir", &target, "--start"]);
            if code != 0 {
                assert_ne!(finished.code, 0, "the old identity alone does not open what is new: {finished}");
                continue;
            }
            let mut back = shell.server(&site, &dir);
            assert_eq!(Ledger::ids(&back), ids, "{finished}");
            back.stop(Stop::Fast);
        }
        // The escrow key alone opens a backup that was taken since.
        site.walden.run(&["base-backup", "--fast"]).ok();
        let escrow = fs::read_to_string(ceremony.join("escrow.txt")).expect("read");
        fs::write(site.work.join("identity.txt"), escrow).expect("write");
        site.restore("by-escrow", &["--until", "latest"]);
        site.cluster.stop(Stop::Fast);
    }
);
