//! Pages with wrong checksums: named, kept, said until a clean backup exists.

use super::stored::{complete, json};
use super::*;
use crate::support::{Installation, Site, SiteOptions};

live_test!(
    [15]
    fn a_bad_page_is_named_and_the_backup_kept(pg: Installation) {
        let mut scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let path = scene.cluster.psql("select pg_relation_filepath('plain')");
        scene.cluster.stop(Stop::Fast);
        let path = scene.cluster.data_dir().join(path);
        let mut file = fs::File::options().read(true).write(true).open(&path).expect("open relation");
        // One page with a flipped bit, and one with an LSN that lies far in the future.
        for (at, value) in [(2 * 8192 + 4000, None), (5 * 8192, Some(0x7f))] {
            let mut byte = [0];
            file.seek(SeekFrom::Start(at)).expect("seek");
            file.read_exact(&mut byte).expect("read");
            file.seek(SeekFrom::Start(at)).expect("seek");
            file.write_all(&[value.unwrap_or(byte[0] ^ 1)]).expect("write");
        }
        scene.cluster.start();
        let summary = scene.back_up().expect("backup");
        assert_eq!(summary.bad_pages, 2);
        let opener = Opener::from_identity_file(&scene.identity).expect("identity");
        let object = &summary.manifest;
        let stored = fs::read(scene.folder.dir.join(&object.name)).expect("manifest");
        let text = opener.open_whole(&object.name, &stored[..], 1 << 30).expect("open manifest");
        let bad: Vec<serde_json::Value> = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<serde_json::Value>(line).expect("json"))
            .filter(|line| line.get("bad_pages").is_some())
            .collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(path.ends_with(bad[0]["path"].as_str().expect("path")));
        assert_eq!(bad[0]["bad_pages"]["blocks"], serde_json::json!([2, 5]));
    }
);

/// A site with a table of some pages, in a database of its own and in a tablespace, of which two pages are damaged.
fn damaged(pg: &Installation, checksums: bool) -> (Site, String) {
    let options = SiteOptions {
        cluster: ClusterOptions { checksums, ..ClusterOptions::default() },
        ..SiteOptions::default()
    };
    let mut site = Site::with(pg, &options);
    let space = site.work.create_dir("space");
    site.cluster.psql(&format!(
        "create tablespace elsewhere location '{}'; create database \"Sales\"",
        space.display()
    ));
    let sales = |sql: &str| site.cluster.psql_in("Sales", sql).expect("psql");
    sales(
        "create schema orders; create table orders.line tablespace elsewhere as select g from generate_series(1, 5000) g",
    );
    sales("vacuum freeze orders.line");
    let path = sales("select pg_relation_filepath('orders.line')");
    site.walden.run(&["base-backup", "--fast"]).ok();
    site.cluster.stop(Stop::Fast);
    let file = site.cluster.data_dir().join(&path);
    flip(&file, 2 * 8192 + 4000);
    flip(&file, 7 * 8192 + 4000);
    site.cluster.start();
    (site, path)
}

/// Flips a bit; the next call for the same place flips it back.
fn flip(path: &Path, at: u64) {
    let mut file = fs::File::options().read(true).write(true).open(path).expect("open relation");
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut byte)).expect("read");
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&[byte[0] ^ 1])).expect("write");
}

live_test!(
    fn bad_pages_are_said_by_name_until_a_clean_backup_exists(pg: Installation) {
        let (mut site, path) = damaged(&pg, true);
        let taken = site.walden.run(&["base-backup", "--fast", "--output", "json"]).expect_code(6);
        let name = "Sales\".orders.line";
        assert!(taken.stderr.contains(name) && taken.stderr.contains(&path), "{taken}");
        assert!(taken.stderr.contains("2 pages have wrong checksums"), "{taken}");
        let report = json(&taken);
        assert_eq!((&report["bad_pages"], &report["bad_files"][0]["pages"]), (&2.into(), &2.into()));
        assert_eq!(report["bad_files"][0]["blocks"], serde_json::json!([2, 7]));
        // The backup is kept, and marked.
        let whole = complete(&site, "replica");
        assert_eq!(whole.iter().map(|(summary, _)| summary.bad_pages).collect::<Vec<_>>(), [0, 2]);
        for command in ["status", "list"] {
            let said = site.walden.run(&[command]).ok().stdout;
            assert!(said.contains("DAMAGED DATABASE: 2 wrong page checksums"), "{said}");
            assert!(said.contains(&format!("keep backup {}, the last clean one", whole[0].0.id)), "{said}");
            assert!(said.contains(name) && said.contains("block 2, 7"), "{said}");
            assert!(said.contains("2 BAD PAGES"), "{said}");
        }
        let status = json(&site.walden.run(&["status", "--output", "json"]).ok());
        assert_eq!(status["bad_pages"]["last_clean"], whole[0].0.id.as_str());
        // Mended, and backed up again: nobody complains any more.
        site.cluster.stop(Stop::Fast);
        for block in [2, 7] {
            flip(&site.cluster.data_dir().join(&path), block * 8192 + 4000);
        }
        site.cluster.start();
        site.walden.run(&["base-backup", "--fast"]).ok();
        for command in ["status", "list"] {
            let said = site.walden.run(&[command]).ok().stdout;
            assert!(!said.contains("DAMAGED"), "{said}");
        }
    }
);

live_test!(
    [14, 18]
    fn without_checksums_nothing_is_checked_and_nothing_is_said(pg: Installation) {
        let (site, _) = damaged(&pg, false);
        let report = json(&site.walden.run(&["base-backup", "--fast", "--output", "json"]).ok());
        assert_eq!((&report["data_checksums"], &report["bad_pages"]), (&false.into(), &0.into()));
        let said = site.walden.run(&["status"]).ok().stdout;
        assert!(!said.contains("DAMAGED"), "{said}");
    }
);

live_test!(
    [15]
    fn blocks_beyond_the_first_gigabyte_have_the_servers_numbers(pg: Installation) {
        let options = SiteOptions {
            cluster: ClusterOptions { checksums: true, ..ClusterOptions::default() },
            ..SiteOptions::default()
        };
        let mut site = Site::with(&pg, &options);
        site.cluster.psql("create table large as select g from generate_series(1, 1000) g");
        let path = site.cluster.psql("select pg_relation_filepath('large')");
        site.cluster.stop(Stop::Fast);
        // Pages of zeros are new pages; what is inserted then goes behind them.
        let file = site.cluster.data_dir().join(&path);
        fs::File::options().write(true).open(&file).and_then(|file| file.set_len(1 << 30)).expect("extend");
        site.cluster.start();
        site.cluster.psql("insert into large select g from generate_series(1, 5000) g; vacuum freeze large; checkpoint");
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.cluster.stop(Stop::Fast);
        flip(&file.with_extension("1"), 3 * 8192 + 4000);
        site.cluster.start();
        let report = json(&site.walden.run(&["base-backup", "--fast", "--output", "json"]).expect_code(6));
        let bad = &report["bad_files"][0];
        assert_eq!(bad["path"], format!("{path}.1"));
        assert_eq!((&bad["blocks"], &bad["pages"]), (&serde_json::json!([131_072 + 3]), &1.into()));
        let relation = bad["relation"].as_str().expect("its name");
        assert!(relation.ends_with("public.large"), "{report}");
        // The server says the same of the block.
        let error = site.cluster.try_psql("select count(*) from large").expect_err("the page is bad");
        assert!(error.contains("block 131075"), "{error}");
    }
);
