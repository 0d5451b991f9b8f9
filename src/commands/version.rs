//! What `walden --version` prints.

use std::fmt::Write as _;
use std::sync::LazyLock;

/// Returns the long version: the number, the commit where the build was told it (`WALDEN_COMMIT`, which `make release` sets),
/// and what this build can do.
pub fn long() -> &'static str {
    static LONG: LazyLock<String> = LazyLock::new(|| {
        let mut text = env!("CARGO_PKG_VERSION").to_owned();
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let commit = option_env!("WALDEN_COMMIT").filter(|commit| !commit.is_empty()).unwrap_or("unknown");
        let _ = writeln!(text, "\ncommit:       {commit}, {profile} build");
        let _ = writeln!(text, "PostgreSQL:   14 to 18");
        let _ = writeln!(text, "repositories: directory (file://), S3 and what speaks it (s3://)");
        let _ = write!(text, "objects:      LZ4, age (X25519, SSH)");
        text
    });
    &LONG
}
