//! `walden keys rewrap`: the rotation of keys as docs/security.md tells it, with `age` as the judge.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::restored::start_and_promote;
use crate::support::tools::run_script;
use crate::support::walden::Walden;
use crate::support::{Ledger, Site, live_test, site, user};

/// Makes a new identity and the configuration of the new repository beside the old ones.
pub fn new_keys(site: &Site) -> (PathBuf, PathBuf) {
    let identity = site.work.join("new-identity.txt");
    let recipient = run_script(&format!(
        "umask 077; age-keygen -o {id} 2> {id}.log; age-keygen -y {id}",
        id = identity.display()
    ))
    .ok()
    .stdout
    .trim()
    .to_owned();
    let text = format!(
        "cluster = \"main\"\ndata_dir = \"{}\"\nstate_dir = \"{}\"\n[server]\nconnection = \"{}\"\n\
         [[repository]]\nname = \"new\"\nurl = \"file://{}\"\n\
         [encryption]\nrecipients = [\"{recipient}\"]\nidentity_file = \"{}\"\n",
        site.cluster.data_dir().display(),
        site.work.join("state").display(),
        site.cluster.connection_string(),
        site.work.join("new").display(),
        identity.display()
    );
    user::give(&site.work.create_dir("new"));
    let config = site.work.write("new.toml", &text);
    user::give(&config);
    (config, identity)
}

/// Returns the content of every file below a directory, by path.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    site::walk(dir, &mut files);
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("read"))).collect()
}

live_test!(
    [15]
    fn a_rotation_leaves_the_old_repository_alone_and_the_new_one_opens_with_the_new_key(pg: Installation) {
        let site = Site::with_backup(&pg);
        let name = site.fill(1).remove(0);
        let before = contents(&site.repository("primary"));
        let (config, identity) = new_keys(&site);
        let into = config.display().to_string();

        let plan = site.walden.run(&["keys", "rewrap", "--into", &into, "--dry-run"]).ok();
        assert!(plan.stdout.contains(&name) && plan.stdout.contains("backup.json"), "{plan}");
        assert!(contents(&site.work.join("new")).is_empty(), "--dry-run writes nothing");
        site.walden.run(&["keys", "rewrap", "--into", &into]).ok();
        assert!(contents(&site.repository("primary")) == before, "the old one is as it was");

        // The same payload under another header: the new key opens it, the old one does not.
        let object = site.wal_objects("new", &name).remove(0);
        let old_object = site.wal_objects("primary", &name).remove(0);
        assert_eq!(object.file_name(), old_object.file_name());
        let payload = |path: &Path| {
            let body = fs::read(path).expect("read");
            let mac = body.windows(5).position(|five| five == b"\n--- ").expect("a header") + 5;
            let end = mac + body[mac..].iter().position(|byte| *byte == b'\n').expect("its end");
            body[end..].to_vec()
        };
        assert!(payload(&object) == payload(&old_object));
        let [new_key, old_key] = [identity.display().to_string(), site.work.join("identity.txt").display().to_string()];
        let (object, old_object) = (object.display(), old_object.display());
        run_script(&format!(
            "cmp <(age -d -i {new_key} {object}) <(age -d -i {old_key} {old_object}); ! age -d -i {old_key} {object} > /dev/null"
        ))
        .ok();

        // What is archived until the switch comes by the second run; then the new configuration is on its own.
        site.fill(1);
        let again = site.walden.run(&["keys", "rewrap", "--into", &into, "--output", "json"]).ok();
        let again: serde_json::Value = serde_json::from_str(&again.stdout).expect("JSON");
        assert!((1..5).contains(&again[0]["outcome"]["copied"].as_u64().expect("a number")), "{again}");
        let all = Ledger::ids(&site.cluster);
        let log = site.walden.run(&["log"]).ok();
        assert!(log.stdout.contains("keys rewrap"), "{log}");
        fs::remove_file(site.work.join("identity.txt")).expect("remove");
        fs::rename(site.repository("primary"), site.work.join("away")).expect("rename");
        let walden = Walden::new(&config);
        walden.run(&["verify", "--deep"]).ok();
        let status = walden.run(&["status"]).ok();
        assert!(status.stdout.contains("any moment from"), "{status}");
        let dir = site.work.join("restored");
        walden.run(&["recover", "--until", "latest", "--data-dir", &dir.display().to_string()]).ok();
        assert_eq!(Ledger::ids(&start_and_promote(&pg, &dir)), all);
    }
);

live_test!(
    [15]
    fn what_does_not_fit_together_is_refused_before_anything_is_written(pg: Installation) {
        let site = Site::with_backup(&pg);
        let (config, _) = new_keys(&site);
        let text = fs::read_to_string(&config).expect("read");
        let primary = format!("file://{}", site.repository("primary").display());
        let new = format!("file://{}", site.work.join("new").display());
        let rewrap = |text: &str, more: &[&str]| {
            let path = site.work.write("tried.toml", text);
            user::give(&path);
            let path = path.display().to_string();
            site.walden.run(&[&["keys", "rewrap", "--into", &path], more].concat())
        };
        let cases = [
            (text.replace(&new, &primary), 3, "never rewritten"),
            (text.replace("cluster = \"main\"", "cluster = \"other\""), 3, "of cluster \"other\""),
            (format!("encryption = \"none\"\n{}", &text[..text.find("[encryption]").expect("a section")]), 3, "recipients"),
        ];
        for (text, code, says) in cases {
            let refused = rewrap(&text, &[]).expect_code(code);
            assert!(refused.stderr.contains(says), "{refused}");
            assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
        }
        let refused = rewrap(&text, &["--from", "nobody"]).expect_code(2);
        assert!(refused.stderr.contains("configured are primary, replica"), "{refused}");
        fs::remove_file(site.work.join("identity.txt")).expect("remove");
        let refused = rewrap(&text, &[]).expect_code(3);
        assert!(refused.stderr.contains("identity"), "{refused}");
        assert!(contents(&site.work.join("new")).is_empty());
    }
);

live_test!(
    [15]
    fn what_is_wrong_in_one_system_identifier_keeps_no_other_from_being_copied(pg: Installation) {
        let site = Site::with_backup(&pg);
        let (config, _) = new_keys(&site);
        let into = config.display().to_string();
        // As after pg_upgrade: an older system identifier, which is listed first, with an object that is none.
        let cluster = site.repository("primary").join("main");
        let live = fs::read_dir(&cluster).expect("read").flatten().next().expect("a folder").path();
        let old = cluster.join("1");
        let bad = old.join("wal/00000001/00000000/000000010000000000000001-00000001.lz4.age");
        fs::create_dir_all(bad.parent().expect("a folder")).expect("create");
        fs::copy(live.join("cluster.json"), old.join("cluster.json")).expect("copy");
        fs::write(&bad, "age-encryption.org/v1\nnonsense").expect("write");
        user::give_tree(&cluster);
        let run = || site.walden.run(&["keys", "rewrap", "--into", &into]).expect_code(6);
        let first = run();
        assert!(first.stdout.contains("LEFT OUT, damaged: main/1/wal/"), "{first}");
        assert!(!first.stdout.contains("Next:"), "it is not done: {first}");
        let name = live.file_name().expect("a name").to_string_lossy().into_owned();
        let again = run();
        assert!(again.stdout.contains(&format!("of system identifier {name}")) && again.stdout.contains("has everything"), "{again}");
        let backups = fs::read_dir(site.work.join("new/main").join(&name).join("backup")).expect("read").count();
        assert_eq!(backups, 1);
    }
);
