//! A push whose archiver died goes on while the server, told by another call that the segment is archived, recycles the
//! file under it: renames it and writes over it.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::segment::{name, segment};
use crate::site::Site;

const ROUNDS: u32 = 60;
const PAGE: usize = 8192;

/// Gives the file its next name and writes the next content over it page by page, as the server does.
fn recycle(from: &Path, to: &Path, content: &[u8]) {
    fs::rename(from, to).unwrap();
    let mut file = fs::File::options().write(true).open(to).unwrap();
    for (page, number) in content.chunks(PAGE).zip(0u64..) {
        file.seek(SeekFrom::Start(number * PAGE as u64)).unwrap();
        file.write_all(page).unwrap();
    }
}

#[test]
fn a_file_recycled_under_the_reader_is_never_archived_as_what_it_was() {
    let site = Site::new(1, 1);
    let longest = time_of_a_push(&site);
    let mut archived = 0;
    for round in 0..ROUNDS {
        let (old, new) = (name(1000 + 2 * round), name(2000 + 2 * round));
        let (old_content, new_content) =
            (segment(&old, u64::from(round)), segment(&new, u64::from(round) + 10_000));
        let path = site.add(&old, &old_content);
        thread::scope(|scope| {
            let push = scope.spawn(|| site.push(&old));
            thread::sleep(longest.mul_f64(fastrand::f64()));
            recycle(&path, &site.pg_wal().join(&new), &new_content);
            archived += u32::from(push.join().unwrap().is_ok());
        });
        for content in site.held(&old).iter().flatten() {
            assert!(*content == old_content, "round {round}: {old} holds other content");
        }
        fs::remove_file(site.pg_wal().join(format!("archive_status/{old}.ready"))).unwrap();
        // The next call may archive it, and then it is the new one.
        site.add(&new, &new_content);
        site.push(&new).unwrap();
        site.assert_archived(&new, &new_content, "the next segment");
    }
    assert!((1..ROUNDS).contains(&archived), "rounds in which the push came first: {archived}");
}

/// The same for a neighbour that the call takes along.
#[test]
fn a_neighbour_recycled_under_the_reader_is_dropped() {
    let site = Site::new(1, 1);
    let longest = time_of_a_push(&site) * 2;
    let mut archived = 0;
    for round in 0..ROUNDS {
        let own = name(3000 + round);
        let (old, new) = (name(4000 + round), name(5000 + round));
        let (old_content, new_content) =
            (segment(&old, u64::from(round)), segment(&new, u64::from(round) + 10_000));
        site.add_segment(&own, 1);
        let path = site.add(&old, &old_content);
        thread::scope(|scope| {
            let push = scope.spawn(|| site.push(&own));
            thread::sleep(longest.mul_f64(fastrand::f64()));
            fs::remove_file(site.pg_wal().join(format!("archive_status/{old}.ready"))).unwrap();
            recycle(&path, &site.pg_wal().join(&new), &new_content);
            push.join().unwrap().unwrap();
        });
        for content in site.held(&old).iter().flatten() {
            assert!(*content == old_content, "round {round}: {old} holds other content");
        }
        archived += u32::from(site.held(&old).iter().any(|held| !held.is_empty()));
        fs::remove_file(site.pg_wal().join(&new)).unwrap();
    }
    assert!((1..ROUNDS).contains(&archived), "rounds in which the neighbour was archived: {archived}");
}

/// A file that is written over in place, without a new name, is refused or archived whole, before or after.
#[test]
fn a_file_written_over_in_place_is_never_archived_half_and_half() {
    let site = Site::new(1, 1);
    let longest = time_of_a_push(&site);
    let mut archived = 0;
    for round in 0..ROUNDS {
        let own = name(6000 + round);
        let (first, second) = (segment(&own, u64::from(round)), segment(&own, u64::from(round) + 10_000));
        let path = site.add(&own, &first);
        let inode = fs::metadata(&path).unwrap().ino();
        thread::scope(|scope| {
            let push = scope.spawn(|| site.push(&own));
            thread::sleep(longest.mul_f64(fastrand::f64()));
            recycle(&path, &path, &second);
            archived += u32::from(push.join().unwrap().is_ok());
        });
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        for content in site.held(&own).iter().flatten() {
            assert!(*content == first || *content == second, "round {round}: {own} holds a mixture");
        }
        fs::remove_file(site.pg_wal().join(format!("archive_status/{own}.ready"))).unwrap();
    }
    assert!(archived > 0);
}

/// Returns about how long the part of a push takes that a change of the file can fall into.
fn time_of_a_push(site: &Site) -> Duration {
    let began = std::time::Instant::now();
    site.add_segment(&name(1), 1);
    site.push(&name(1)).unwrap();
    fs::remove_file(site.pg_wal().join(format!("archive_status/{}.ready", name(1)))).unwrap();
    began.elapsed()
}
