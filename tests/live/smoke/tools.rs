//! The judges and tools are there and of the right version.

use crate::support::tools::{age, lz4, pg_verifybackup, pg_waldump, run_program, run_script, tar};

#[test]
fn judges_tell_their_versions() {
    for major in [15, 16, 17, 18] {
        for judge in [pg_waldump(major), pg_verifybackup(major)].into_iter().flatten() {
            let finished = run_program(&judge, ["--version"]).ok();
            assert!(finished.stdout.contains(&format!("(PostgreSQL) {major}.")), "{finished}");
        }
    }
}

#[test]
fn age_and_lz4_and_tar_undo_each_other() {
    let (Some(_), Some(_), Some(_)) = (age(), lz4(), tar()) else { return };
    let finished = run_script(
        "cd \"$(mktemp -d)\"; age-keygen -o key 2>/dev/null; echo something >file
         tar c file | lz4 -q | age -r \"$(age-keygen -y key)\" >object; rm file
         age -d -i key object | lz4 -dq | tar x; cat file; rm -r \"$PWD\"",
    )
    .ok();
    assert_eq!(finished.stdout, "something\n");
}
