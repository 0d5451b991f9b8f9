//! Packaging: units, scripts, container files and S3 policies are what they claim to be, as far as programs here can judge.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::markdown::{blocks, walden_arguments};
use crate::support::s3_store::credentials_env;
use crate::support::site::SiteOptions;
use crate::support::tools::{self, run_program};
use crate::support::user::WorkDir;
use crate::support::{
    Cluster, ClusterOptions, Moto, Site, Stop, Walden, cached, live_test, require, run, user,
};

fn root(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn read(relative: &str) -> String {
    fs::read_to_string(root(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// Returns the files of a folder with one of these endings.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(root(folder)).expect("read").flatten().map(|entry| entry.path()).collect();
    found
        .retain(|path| path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted)));
    found.sort();
    assert!(!found.is_empty(), "{folder}: {endings:?}");
    found
}

/// Copies the units to where systemd-analyze can find what they start.
fn units(work: &WorkDir) -> Vec<PathBuf> {
    let on_failure = root("packaging/systemd/on-failure").display().to_string();
    let copy = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("read");
        let text = text.replace("/usr/bin/walden", &Walden::binary().display().to_string());
        let name = path.file_name().expect("a name").to_str().expect("text");
        work.write(name, text.replace("/usr/lib/walden/on-failure", &on_failure))
    };
    files("packaging/systemd", &["service", "timer"]).into_iter().map(copy).collect()
}

#[test]
fn units_pass_systemd_analyze() {
    let Some(judge) = require(tools::program("systemd-analyze"), "systemd-analyze") else { return };
    let work = WorkDir::new();
    let units = units(&work);
    for timer in ["backup", "verify", "expire", "sync", "metrics"] {
        assert!(units.iter().any(|path| path.ends_with(format!("walden-{timer}@.timer"))), "{timer}");
    }
    for unit in &units {
        // One at a time: a template is judged through an instance, and of several none is found again.
        let finished = run(Command::new(&judge).args(["verify", "--man=no"]).arg(unit)).ok();
        let ours: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("walden")).collect();
        assert!(ours.is_empty(), "{finished}");
    }
}

#[test]
fn services_are_hardened() {
    let Some(judge) = require(tools::program("systemd-analyze"), "systemd-analyze") else { return };
    let work = WorkDir::new();
    for unit in units(&work).iter().filter(|path| path.extension().is_some_and(|ending| ending == "service"))
    {
        // In tenths: 3.0 of 10, where systemd calls 5 "medium" and 3 "ok". What is left is the network.
        let mut command = Command::new(&judge);
        run(command.args(["security", "--offline=true", "--threshold=30", "--no-pager"]).arg(unit)).ok();
    }
}

#[test]
fn services_leave_the_server_its_shared_memory() {
    // RemoveIPC= removes what the unit's user has in /dev/shm, and the server is the same user's.
    for unit in files("packaging/systemd", &["service"]) {
        let text = fs::read_to_string(&unit).expect("read");
        assert!(text.contains("User=postgres") && !text.contains("RemoveIPC=yes"), "{}", unit.display());
    }
}

#[test]
fn services_run_commands_that_walden_has() {
    let help = Walden::bare().run(&["--help"]).ok().stdout;
    for path in files("packaging/systemd", &["service"]) {
        let text = fs::read_to_string(&path).expect("read");
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("ExecStart");
        let Some(mut arguments) = walden_arguments(line) else { continue };
        assert_eq!(arguments[..2], ["--config", "/etc/walden/%i.toml"], "{}", path.display());
        let has =
            |command: &str| help.lines().any(|line| line.trim_start().starts_with(&format!("{command} ")));
        if !has(&arguments[2]) {
            eprintln!("not judged: {}: this build has no {}", path.display(), arguments[2]);
            continue;
        }
        arguments.push("--help".to_owned());
        Walden::bare().run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    }
}

#[test]
fn scripts_are_read_by_their_shells() {
    for script in ["debian/postinst", "debian/prerm", "debian/postrm", "systemd/on-failure"] {
        run_program("sh", ["-n", root(&format!("packaging/{script}")).to_str().expect("text")]).ok();
    }
    let packaging = ["build", "deb", "release", "stage", "tools", "container/initdb-walden"];
    let tests = ["debian", "oldest", "package", "package-inside", "quickstart"];
    let scripts = packaging.map(|name| format!("packaging/{name}.sh")).into_iter();
    for script in scripts.chain(tests.map(|name| format!("tests/{name}.sh"))) {
        run_program("bash", ["-n", root(&script).to_str().expect("text")]).ok();
    }
}

#[test]
fn a_failed_unit_calls_the_operator() {
    let script = root("packaging/systemd/on-failure").display().to_string();
    let finished = run_program("sh", [script.as_str(), "walden-backup@main.service"]).ok();
    assert!(finished.stderr.starts_with("<2>walden-backup@main.service has failed"), "{finished}");
}

#[test]
fn the_package_holds_what_is_there() {
    let manifest: toml::Value = toml::from_str(&read("Cargo.toml")).expect("TOML");
    let deb = &manifest["package"]["metadata"]["deb"];
    for asset in deb["assets"].as_array().expect("assets") {
        let source = asset[0].as_str().expect("text");
        if source.starts_with("target/") {
            continue;
        }
        match source.rsplit_once("/*.") {
            Some((folder, ending)) => drop(files(folder, &[ending])),
            None => assert!(root(source.trim_end_matches("/*")).exists(), "{source}"),
        }
    }
    let example = read("packaging/debian/walden.toml.example");
    walden::config::Config::parse(&example, Path::new("/etc/walden/walden.toml")).expect("the example");
}

#[test]
fn the_container_files_name_what_is_there() {
    let text = read("packaging/container/Containerfile");
    for line in text.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from=")) {
        let source = line.split_whitespace().nth(1).expect("a source");
        assert!(source == "." || root(source).exists(), "{line}");
    }
    let Some(python) = require(cached("python/bin/python"), "a Python with yaml") else { return };
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let path = root("packaging/container/compose.yaml").display().to_string();
    let json = run_program(python, ["-c", script, &path]).ok().stdout;
    let compose: Value = serde_json::from_str(&json).expect("JSON");
    let volumes = compose["volumes"].as_object().expect("volumes");
    for (name, service) in compose["services"].as_object().expect("services") {
        if let Some(build) = service.get("build") {
            let context = root("packaging/container").join(build["context"].as_str().expect("a context"));
            assert!(context.join(build["dockerfile"].as_str().expect("a file")).exists(), "{name}");
        }
        for mount in service["volumes"].as_array().expect("volumes") {
            let volume = mount.as_str().expect("text").split(':').next().expect("a volume");
            assert!(volumes.contains_key(volume), "{name}: {mount}");
        }
    }
}

#[test]
fn command_lines_of_the_container_files_parse() {
    let fenced = |path: &str| blocks(&format!("```sh\n{}```\n", read(path)));
    let mut seen = 0;
    for path in ["packaging/container/initdb-walden.sh", "packaging/container/compose.yaml"] {
        for block in fenced(path) {
            for part in block.text.replace("\\\n", " ").lines().flat_map(|line| line.split("&&")) {
                let Some(mut arguments) = walden_arguments(part) else { continue };
                // What the shell fills in stands for something that walden would take.
                arguments.retain(|argument| !argument.contains("[@]"));
                arguments.push("--help".to_owned());
                Walden::bare().run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).ok();
                seen += 1;
            }
        }
    }
    assert!(seen >= 3, "{seen}");
}

fn policy(name: &str) -> Value {
    serde_json::from_str(&read(&format!("packaging/iam/{name}.json")))
        .unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn allowed(name: &str) -> BTreeSet<String> {
    let policy = policy(name);
    let statements = policy["Statement"].as_array().expect("statements").clone();
    statements
        .iter()
        .filter(|statement| statement["Effect"] == "Allow")
        .map(|statement| statement["Action"].as_str().expect("one action").to_owned())
        .collect()
}

/// Returns the rights for the calls that the code makes.
fn rights_of_the_code() -> BTreeSet<String> {
    let rights = [
        ("put_object", "s3:PutObject"),
        ("create_multipart_upload", "s3:PutObject"),
        ("upload_part", "s3:PutObject"),
        ("complete_multipart_upload", "s3:PutObject"),
        ("abort_multipart_upload", "s3:AbortMultipartUpload"),
        ("get_object", "s3:GetObject"),
        ("head_object", "s3:GetObject"),
        ("list_objects_v2", "s3:ListBucket"),
        ("delete_object", "s3:DeleteObject"),
    ];
    let mut found = BTreeSet::new();
    for path in files("src/storage/s3", &["rs"]) {
        let text = fs::read_to_string(&path).expect("read");
        let code: String = text.split_whitespace().collect();
        for call in code.split("client.").skip(1).chain(code.split("client().").skip(1)) {
            let name = call.split('(').next().expect("a name");
            if let Some((_, right)) = rights.iter().find(|(known, _)| *known == name) {
                found.insert((*right).to_owned());
            } else {
                let operation =
                    ["_object", "_upload", "_bucket", "_objects"].iter().any(|end| name.ends_with(end));
                assert!(!operation, "{}: which right does {name} take?", path.display());
            }
        }
    }
    found
}

#[test]
fn policies_allow_what_walden_calls_and_no_more() {
    let all = rights_of_the_code();
    assert_eq!(allowed("operator"), all);
    let mut archiver = all.clone();
    archiver.remove("s3:DeleteObject");
    assert_eq!(allowed("archiver"), archiver);
    assert_eq!(allowed("reader"), BTreeSet::from(["s3:GetObject", "s3:ListBucket"].map(str::to_owned)));
    for name in ["archiver", "operator"] {
        for statement in policy(name)["Statement"].as_array().expect("statements") {
            assert!(
                statement["Action"] != "s3:PutObject" || statement.get("Condition").is_some(),
                "{name}: {statement}"
            );
        }
    }
}

#[test]
fn lifecycle_moves_nothing_out_of_reach_and_removes_nothing_that_is_current() {
    for rule in policy("lifecycle")["Rules"].as_array().expect("rules") {
        for transition in rule["Transitions"].as_array().into_iter().flatten() {
            let class = transition["StorageClass"].as_str().expect("a class");
            assert!(["STANDARD_IA", "GLACIER_IR"].contains(&class), "{class} does not answer at once");
        }
        let expiration = rule.get("Expiration");
        assert!(
            expiration.is_none_or(|e| e == &serde_json::json!({"ExpiredObjectDeleteMarker": true})),
            "{rule}"
        );
        if let Some(noncurrent) = rule.get("NoncurrentVersionExpiration") {
            let locked = policy("object-lock")["Rule"]["DefaultRetention"]["Days"].as_u64();
            assert!(noncurrent["NoncurrentDays"].as_u64() >= locked, "{rule}");
        }
    }
}

#[test]
fn s3_takes_the_policies() {
    let Some(moto) = Moto::start() else { return };
    let Some(python) = require(cached("python/bin/python"), "a Python with boto3") else { return };
    moto.create_locked_bucket("acme-wal");
    // boto3 checks the shape, and moto what a policy may say.
    let script = r#"
import boto3, json, os, sys
folder, endpoint = sys.argv[1:]
load = lambda name: open(os.path.join(folder, name + ".json")).read()
client = lambda name: boto3.client(name, endpoint_url=endpoint, region_name="us-east-1")
s3, iam = client("s3"), client("iam")
s3.put_bucket_policy(Bucket="acme-wal", Policy=load("bucket-policy"))
s3.put_bucket_lifecycle_configuration(Bucket="acme-wal", LifecycleConfiguration=json.loads(load("lifecycle")))
s3.put_object_lock_configuration(Bucket="acme-wal", ObjectLockConfiguration=json.loads(load("object-lock")))
for name in ["archiver", "operator", "reader", "kms", "tags"]:
    iam.create_policy(PolicyName=name, PolicyDocument=load(name))
print(s3.get_object_lock_configuration(Bucket="acme-wal")["ObjectLockConfiguration"]["Rule"])
"#;
    let folder = root("packaging/iam").display().to_string();
    let mut command = Command::new(python);
    command.args(["-c", script, &folder, &moto.endpoint]).envs(moto.env());
    let finished = run(&mut command).ok();
    assert!(finished.stdout.contains("GOVERNANCE"), "{finished}");
}

/// Makes a user for each role and returns what it signs with.
fn users(moto: &Moto, python: &Path) -> impl Fn(&str) -> Vec<(String, String)> + use<> {
    let script = r#"
import boto3, os, sys
folder, endpoint = sys.argv[1:]
iam = boto3.client("iam", endpoint_url=endpoint, region_name="us-east-1")
for name in ["archiver", "operator", "reader"]:
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="walden", PolicyDocument=open(f"{folder}/{name}.json").read())
    key = iam.create_access_key(UserName=name)["AccessKey"]
    print(name, key["AccessKeyId"], key["SecretAccessKey"])
"#;
    let folder = root("packaging/iam").display().to_string();
    let mut command = Command::new(python);
    let told = run(command.args(["-c", script, &folder, &moto.endpoint]).envs(moto.env())).ok().stdout;
    move |name| {
        let line = told.lines().find(|line| line.starts_with(name)).expect("a user");
        let mut words = line.split(' ').skip(1);
        credentials_env(words.next().expect("a key"), words.next().expect("a secret"))
    }
}

live_test!(
    [17]
    fn each_role_can_do_its_work_and_no_more(pg: Installation) {
        let Some(moto) = Moto::start() else { return };
        let Some(python) = require(cached("python/bin/python"), "a Python with boto3") else { return };
        moto.create_bucket("acme-wal");
        let role = users(&moto, &python);
        moto.enforce_policies();
        let options = ["endpoint", "path_style", "region"].iter().zip([&moto.endpoint, "true", "us-east-1"]);
        let init = options
            .flat_map(|(key, value)| ["--repository-option".to_owned(), format!("primary.{key}={value}")]);
        // The archiver sets up, archives and takes base backups.
        let site = Site::with_backup_and(&pg, &SiteOptions {
            repositories: vec!["primary=s3://acme-wal/prod".to_owned()],
            init: init.collect(),
            env: role("archiver"),
            ..SiteOptions::default()
        });
        site.fill(2);
        site.walden.run(&["base-backup", "--fast"]).ok();
        let config = fs::read_to_string(&site.config).expect("read");
        fs::write(&site.config, format!("{config}\n[retention]\nkeep_last = 1\n")).expect("write");
        let backups = |walden: &Walden| -> Vec<Value> {
            let list = walden.run(&["list", "--output", "json"]).ok();
            serde_json::from_str(&list.stdout).expect("JSON")
        };
        // It cannot remove.
        let refused = site.walden.run(&["expire"]).ok();
        assert!(refused.stderr.contains("AccessDenied"), "{refused}");
        assert_eq!(backups(&site.walden).len(), 2);
        // The reader recovers, and cannot write.
        let reader = Walden::new(&site.config).envs(&role("reader"));
        let dir = site.work.join("restored").display().to_string();
        reader.run(&["recover", "--until", "latest", "--data-dir", &dir]).ok();
        let id = backups(&reader)[0]["id"].as_str().expect("an id").to_owned();
        reader.run(&["pin", &id]).expect_code(4);
        // The operator removes.
        let operator = Walden::new(&site.config).envs(&role("operator"));
        let expired = operator.run(&["expire"]).ok();
        assert_eq!(backups(&operator).len(), 1, "{expired}");
    }
);

live_test!(
    fn every_example_of_server_settings_is_loaded_by_a_server(pg: Installation) {
        let mut cluster = Cluster::create(&pg, &ClusterOptions::default());
        let example = cluster.work().join("example.conf");
        cluster.append_config(&format!("include '{}'\n", example.display()));
        for path in files("postgresql-conf-examples", &["conf"]) {
            fs::copy(&path, &example).expect("copy");
            user::give(&example);
            cluster.start();
            let file = path.display();
            let wrong = cluster.psql("SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL");
            assert_eq!(wrong, "", "{file}");
            let mode = if file.to_string().contains("recovery-server") { "off" } else { "on" };
            assert_eq!(cluster.psql("SHOW archive_mode"), mode, "{file}");
            assert!(cluster.psql("SHOW restore_command").contains("archive-get"), "{file}");
            // The archiver would try the program in vain, and a clean stop waits for it.
            cluster.stop(Stop::Immediate);
        }
    }
);
