//! A cluster with Walden set up beside it by `walden init`: what most live tests begin with.

use std::fs;
use std::path::{Path, PathBuf};

use super::cluster::{Cluster, ClusterOptions};
use super::postgres::Installation;
use super::tools::Finished;
use super::user::WorkDir;
use super::walden::Walden;

/// A cluster that archives with Walden.
pub struct Site {
    pub cluster: Cluster,
    pub walden: Walden,
    pub config: PathBuf,
    pub work: WorkDir,
}

/// What a site is made of; by default two directories, encrypted, started and archiving.
#[derive(Default)]
pub struct SiteOptions {
    pub cluster: ClusterOptions,
    /// Repositories as `walden init` takes them; empty for the directories "primary" and "replica".
    pub repositories: Vec<String>,
    /// More arguments of `walden init`.
    pub init: Vec<String>,
    /// The environment of the server and of Walden.
    pub env: Vec<(String, String)>,
}

impl Site {
    /// Returns a site with two directories as repositories, started.
    #[track_caller]
    pub fn new(pg: &Installation) -> Self {
        Self::with(pg, &SiteOptions::default())
    }

    /// Returns a site as asked, started.
    #[track_caller]
    pub fn with(pg: &Installation, options: &SiteOptions) -> Self {
        let mut site = Self::prepare(pg, options);
        site.cluster.start();
        site
    }

    /// Returns a site as asked, whose server does not run yet.
    #[track_caller]
    pub fn prepare(pg: &Installation, options: &SiteOptions) -> Self {
        let work = WorkDir::new();
        let config = work.join("walden.toml");
        let mut cluster_options = options.cluster.clone();
        for (name, value) in &options.env {
            cluster_options = cluster_options.env(name, value);
        }
        let cluster = Cluster::create(pg, &cluster_options);
        let walden = Walden::new(&config).envs(&options.env);
        let mut repositories = options.repositories.clone();
        if repositories.is_empty() {
            for name in ["primary", "replica"] {
                repositories.push(format!("{name}=file://{}", work.join(name).display()));
            }
        }
        let data_dir = cluster.data_dir().display().to_string();
        let state_dir = work.join("state").display().to_string();
        let connection = cluster.connection_string();
        let bin_dir = pg.bin.display().to_string();
        let mut arguments = vec!["init", "--data-dir", &data_dir, "--state-dir", &state_dir];
        arguments.extend(["--connection", &connection, "--bin-dir", &bin_dir]);
        for repository in &repositories {
            arguments.extend(["--repository", repository]);
        }
        arguments.extend(options.init.iter().map(String::as_str));
        walden.run(&arguments).ok();
        cluster.append_config(&format!(
            "archive_mode = on\narchive_command = '{}'\n",
            walden.command_line("archive-push %p")
        ));
        Self { cluster, walden, config, work }
    }

    /// Returns the directory of a repository.
    pub fn repository(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    /// Returns the objects below a repository's WAL folders whose name begins with `name`.
    pub fn wal_objects(&self, repository: &str, name: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.repository(repository), &mut found);
        found.retain(|path| {
            path.components().any(|part| part.as_os_str() == "wal")
                && path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
        });
        found.sort();
        found
    }

    /// Switches to a new segment and waits until the old one is archived; returns its name.
    pub fn archive_a_segment(&self) -> String {
        let segment = self.cluster.switch_wal();
        self.cluster.wait_archived(&segment);
        segment
    }

    /// Fetches a file as the server would and returns what came of it, with the path that it was to be written to.
    pub fn get(&self, name: &str, more: &[&str]) -> (Finished, PathBuf) {
        let dir = self.work.create_dir(format!("get-{}", fastrand::u32(..)));
        let path = dir.join("RECOVERYXLOG");
        let target = path.display().to_string();
        let finished = self.walden.clone().dir(&dir).run(&[&["archive-get", name, &target], more].concat());
        (finished, path)
    }
}

/// Lists the files below `dir`, all levels deep.
pub fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}
