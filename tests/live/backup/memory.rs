//! Memory does not grow with the database.

use super::*;
use crate::support::peak::peak_of;
use crate::support::{Site, soak};

/// What the issue allows, in bytes.
pub const BOUND: u64 = 256_000_000;

/// Adds a file that cannot be compressed, of so many megabytes, to the data directory: pieces are as large as they get.
pub fn write_random(site: &Site, megabytes: usize) {
    let path = site.cluster.data_dir().join("random");
    let mut file = fs::File::create(&path).expect("create");
    let mut bytes = vec![0; 1 << 20];
    for _ in 0..megabytes {
        fastrand::fill(&mut bytes);
        file.write_all(&bytes).expect("write");
    }
    user::give(&path);
}

live_test!(
    [17]
    fn memory_is_bounded_with_many_small_files_and_a_large_one(pg: Installation) {
        let site = Site::new(&pg);
        let (files, gigabytes) = if soak() { (1_000_000, 20) } else { (30_000, 1) };
        let data = site.cluster.data_dir();
        for number in 0..files {
            let dir = data.join(format!("small/{}", number / 1000));
            if number % 1000 == 0 {
                fs::create_dir_all(&dir).expect("create");
            }
            fs::write(dir.join(number.to_string()), [7; 100]).expect("write");
        }
        let large = fs::File::create(data.join("small/large")).expect("create");
        large.set_len(gigabytes << 30).expect("a file with holes");
        write_random(&site, 192);
        user::give_tree(&data.join("small"));
        let (finished, peak) = peak_of(&site.walden, &["base-backup", "--fast"]);
        finished.ok();
        eprintln!("{files} files and {gigabytes} GB: {} MB at most", peak / 1_000_000);
        assert!(peak < BOUND, "{peak} bytes");
    }
);
