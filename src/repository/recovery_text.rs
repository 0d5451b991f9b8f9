//! `RECOVERY.md`: how to restore by hand, without Walden, written into each repository with the real names in it.

use super::ClusterKeys;
use crate::postgres::SystemIdentifier;

/// Returns the text for one repository. `url` is where the repository is; `ending` is the codec's; the commands in it
/// are run as they stand by a test.
pub fn recovery_text(cluster: &str, sysid: SystemIdentifier, url: &str, ending: &str) -> String {
    let root = ClusterKeys::new(cluster, sysid).root().to_owned();
    let local = match url.strip_prefix("file://") {
        Some(directory) => format!("export REPO='{directory}'"),
        None => format!(
            "export REPO=/srv/walden-copy\naws s3 sync '{}/{}' \"$REPO/{}\"",
            url.trim_end_matches('/'),
            root.trim_end_matches('/'),
            root.trim_end_matches('/')
        ),
    };
    let encrypted = ending.ends_with(".age");
    let open = if encrypted { "age -d -i \"$KEY\" \"$object\" | lz4 -dc" } else { "lz4 -dc \"$object\"" };
    let key = if encrypted {
        "\nThe identity (the file that begins with `AGE-SECRET-KEY-` after its comments) is needed; it is not in this \
         repository:\n\n```sh\nexport KEY=/path/to/identity.txt\n```\n"
    } else {
        "\nThe objects of this repository are not encrypted.\n"
    };
    TEMPLATE
        .replace("@CLUSTER@", cluster)
        .replace("@SYSID@", &sysid.to_string())
        .replace("@URL@", url)
        .replace("@ROOT@", root.trim_end_matches('/'))
        .replace("@LOCAL@", &local)
        .replace("@KEY@", key)
        .replace("@OPEN@", open)
        .replace("@TOOLS@", if encrypted { "`age`, `lz4` and `tar`" } else { "`lz4` and `tar`" })
        .replace("@ENDING@", ending)
}

const TEMPLATE: &str = r#"# How to restore cluster "@CLUSTER@" by hand

Repository @URL@, system identifier @SYSID@. With Walden at hand, `walden recover --until TARGET --data-dir DIR` does
all of this. Without it, @TOOLS@ and PostgreSQL of the version in `backup.json` are enough. Work as the user that
PostgreSQL is to run as.

## 1. Get at the objects

```sh
@LOCAL@
```
@KEY@
## 2. Choose a backup

```sh
ls "$REPO/@ROOT@/backup"
```

A folder counts only if it holds `backup.json`, which tells the times, the PostgreSQL version and the tablespaces. Take
the newest one whose `stop_time` lies before the moment you want. The commands below take the newest of all unless
`ID` is set:

```sh
export ID="${ID:-$(cd "$REPO/@ROOT@/backup" && ls -d */backup.json | sort | tail -n 1 | cut -d/ -f1)}"
```

## 3. Unpack it into an empty directory

```sh
export PGDATA="${PGDATA:-/var/lib/postgresql/restored}"
mkdir -p "$PGDATA" && chmod 700 "$PGDATA"
bash -c 'set -o pipefail
  for object in "$REPO/@ROOT@/backup/$ID"/data/*; do @OPEN@ || exit 1; done | tar -x -C "$PGDATA"'
```

`bash` with `pipefail` matters: a piece that fails must not go unnoticed. `pg_verifybackup -n "$PGDATA"` then checks
every file.

If `$PGDATA/tablespace_map` exists, the cluster had tablespaces: they lie in `$PGDATA/pg_tblspc/<oid>`. Move each to
where it is to live, remove the emptied directory, and write that path behind the oid in `tablespace_map`; the server
makes the links when it starts.

If the folder of the backup holds `config.tar@ENDING@`, the configuration lay outside the data directory (as on Debian).
Unpack it elsewhere in the same way, look through it, and copy what you need to `$PGDATA/postgresql.conf` and
`$PGDATA/pg_hba.conf`. Lines that name other directories (`data_directory`, `hba_file`, `ident_file`,
`external_pid_file`, `include_dir`) lead back to the original: remove them.

## 4. Let the server fetch WAL

```sh
cat > "$PGDATA/fetch-wal.sh" <<'SCRIPT'
#!/bin/bash
# $1 is the name that the server wants, $2 where it wants it. 1 means: the archive ends here. Anything that is not
# sure of that must stop recovery instead, and 200 does.
set -o pipefail
wal="$REPO/@ROOT@/wal"
[ -d "$wal" ] || exit 200
case $1 in
  *.history) objects=("$wal/history/$1"-*) ;;
  *) objects=("$wal/${1:0:8}/${1:8:8}/$1"-*) ;;
esac
[ -e "${objects[0]}" ] || exit 1
[ ${#objects[@]} -eq 1 ] || exit 200
object=${objects[0]}
{ @OPEN@; } > "$2.tmp" && mv "$2.tmp" "$2" || exit 200
SCRIPT
chmod 700 "$PGDATA/fetch-wal.sh"
```

## 5. Say where to stop, and start

Archiving must be off in the copy: it must never write into the archive that it came from.

```sh
cat >> "$PGDATA/postgresql.auto.conf" <<SETTINGS
restore_command = 'bash $PGDATA/fetch-wal.sh %f %p'
recovery_target_timeline = 'latest'
archive_mode = off
max_logical_replication_workers = 0
SETTINGS
touch "$PGDATA/recovery.signal"
```

To stop before the end of the archive add one of `recovery_target_time = '2026-11-20 13:30:00+00'` (with an offset),
`recovery_target_lsn`, `recovery_target_xid`, `recovery_target_name`, and `recovery_target_action = 'promote'`. Then
start the server with `REPO` and `KEY` in its environment:

    pg_ctl -D "$PGDATA" start

Its log says where recovery stopped.
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_filled_in() {
        for (url, ending) in [("file:///srv/walden", ".lz4.age"), ("s3://bucket/prefix", ".lz4")] {
            let text = recovery_text("main", SystemIdentifier(7), url, ending);
            assert!(!text.contains('@') || !text.contains("@O"), "{text}");
            assert!(text.contains("main/7") && text.contains(url));
            assert_eq!(text.contains("age -d"), ending.ends_with(".age"));
        }
    }
}
