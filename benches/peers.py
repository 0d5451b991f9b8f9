#!/usr/bin/env python3
"""Drives archivers as PostgreSQL does and prints what each takes; called by peers.sh."""

import argparse
import ctypes
import glob
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

BIN = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]



def sh(command, **more):
    return subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL, **more)


def say(text):
    print(text, file=sys.stderr, flush=True)


class Wal:
    """Segments of a real server, and the control file that belongs to them; those of an earlier run, where `kept` has them."""

    def __init__(self, work, count, kept):
        self.dir = f"{kept or work}/wal"
        self.control, self.version = f"{self.dir}/pg_control", f"{self.dir}/PG_VERSION"
        if not os.path.exists(self.control) or len(self.names()) < count:
            shutil.rmtree(self.dir, ignore_errors=True)
            os.mkdir(self.dir)
            self.make(work, count)
        self.count = count

    def make(self, work, count):
        data, sockets = f"{work}/origin", f"{work}/sockets"
        os.mkdir(sockets)
        sh(f"{BIN}/initdb -D {data} -A trust -U postgres --no-sync")
        with open(f"{data}/postgresql.conf", "a") as conf:
            conf.write(f"listen_addresses=''\nunix_socket_directories='{sockets}'\nport=5432\nfsync=off\n"
                       f"archive_mode=on\narchive_command='cp %p {self.dir}/%f'\nmax_wal_size='8GB'\n"
                       "checkpoint_timeout='1h'\n")
        sh(f"{BIN}/pg_ctl -D {data} -l {work}/server.log -s -w start")
        try:
            connect = f"-h {sockets} -U postgres"
            sh(f"{BIN}/pgbench {connect} -i -s 20 -q postgres", stderr=subprocess.DEVNULL)
            # Each round begins with a checkpoint, so that there are full-page images, as on a busy server.
            while len(self.names()) <= count:
                sh(f"{BIN}/psql {connect} -c checkpoint postgres")
                sh(f"{BIN}/pgbench {connect} -n -c 4 -T 5 postgres", stderr=subprocess.DEVNULL)
            sh(f"{BIN}/psql {connect} -c 'select pg_switch_wal()' postgres")
            time.sleep(1)
        finally:
            sh(f"{BIN}/pg_ctl -D {data} -s -m fast stop")
        shutil.copy(f"{data}/PG_VERSION", self.version)
        shutil.copy(f"{data}/global/pg_control", self.control)
        shutil.rmtree(data)

    def names(self):
        return sorted(n for n in os.listdir(self.dir) if len(n) == 24)[: getattr(self, "count", None)]

    def data_dir(self, path):
        """Makes a data directory in which every segment waits to be archived."""
        for part in ("global", "pg_wal/archive_status"):
            os.makedirs(f"{path}/{part}")
        shutil.copy(self.control, f"{path}/global/pg_control")
        shutil.copy(self.version, f"{path}/PG_VERSION")
        for name in self.names():
            shutil.copy(f"{self.dir}/{name}", f"{path}/pg_wal/{name}")
            open(f"{path}/pg_wal/archive_status/{name}.ready", "w").close()
        os.sync()
        # Cold or warm alike for everybody: what the server wrote last is in the page cache.
        for name in self.names():
            with open(f"{path}/pg_wal/{name}", "rb") as file:
                while file.read(1 << 20):
                    pass
        return path


class Figures:
    def __init__(self, name, calls, wall, cpu, memory):
        self.name, self.calls, self.wall, self.cpu, self.memory = name, calls, wall, cpu, memory

    def row(self, base):
        rate = len(self.calls) / self.wall
        ratio = "" if base is None or base is self else f"{(len(base.calls) / base.wall) / rate:.2f}"
        return [self.name, f"{rate:.1f}", f"{statistics.median(self.calls) * 1000:.1f}",
                f"{max(self.calls) * 1000:.0f}", f"{self.cpu:.2f}", f"{self.memory / 1024:.0f}", ratio]


def measure(name, calls):
    """Runs the calls one after the other, each in a process that is forked for it, so that its children's times and
    peak memory are its own. What a tool leaves running is waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    took, began = [], time.monotonic()
    peak = 0
    for call in calls:
        start = time.monotonic()
        process = subprocess.Popen(call.command, cwd=call.cwd, shell=True, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        error = process.stderr.read() if not call.detaches else b""
        process.wait()
        if process.returncode != 0:
            raise SystemExit(f"{name}: {call.command}: exit {process.returncode}: {error.decode()}")
        took.append(time.monotonic() - start)
        if call.after:
            call.after()
    wall = time.monotonic() - began
    reap()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = after.ru_maxrss
    figures = Figures(name, took, wall, cpu, peak)
    say("  " + "  ".join(figures.row(None)))
    return figures


def reap():
    """Waits for what was left running and handed to this process (a subreaper)."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.05)


class Call:
    def __init__(self, command, cwd, after=None, detaches=False):
        self.command, self.cwd, self.after, self.detaches = command, cwd, after, detaches


def in_child(work):
    """Runs `work` in a forked process, whose resource usage begins at zero, and returns its figures."""
    import pickle
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(work(), pipe)
            code = 0
        except SystemExit as error:
            say(str(error))
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(data) if data else None


def push_calls(wal, data, command, detaches=False):
    def done(name):
        status = f"{data}/pg_wal/archive_status/{name}"
        return lambda: os.path.exists(f"{status}.ready") and os.rename(f"{status}.ready", f"{status}.done")

    return [Call(command.replace("%p", f"pg_wal/{name}").replace("%f", name), data, done(name), detaches)
            for name in wal.names()]


def get_calls(wal, data, command, replay, detaches=False):
    target = f"{data}/pg_wal/RECOVERYXLOG"

    def after(name):
        def check():
            if os.path.getsize(target) != 16 << 20:
                raise SystemExit(f"{name} came back with another size")
            os.unlink(target)
            time.sleep(replay)
        return check

    return [Call(command.replace("%f", name).replace("%p", "pg_wal/RECOVERYXLOG"), data, after(name), detaches)
            for name in wal.names()]


class Walden:
    def __init__(self, arguments, work, data, repositories, more=""):
        self.config = f"{work}/walden.toml"
        repositories = " ".join(f"--repository {name}={url}" for name, url in repositories)
        sh(f"{arguments.walden} --config {self.config} init --data-dir {data} --state-dir {work}/state "
           f"{repositories} {more}")
        self.program = f"{arguments.walden} --config {self.config}"
        self.push = f"{self.program} archive-push %p"
        self.get = f"{self.program} archive-get %f %p"


class PgBackRest:
    def __init__(self, work, data, repository, asynchronous, stanza=True):
        self.config = f"{work}/pgbackrest.conf"
        with open(self.config, "w") as file:
            file.write(f"[global]\n{repository}\nlog-path={work}\nlock-path={work}/lock\nspool-path={work}/spool\n"
                       "compress-type=lz4\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=benchmark\n"
                       f"process-max=2\narchive-async={'y' if asynchronous else 'n'}\nlog-level-console=error\n"
                       f"log-level-file=off\n[main]\npg1-path={data}\n")
        self.program = f"pgbackrest --config={self.config} --stanza=main"
        if stanza:
            sh(f"{self.program} --no-online stanza-create")
        self.push = f"{self.program} archive-push %p"
        self.get = f"{self.program} archive-get %f %p"


def table(title, figures):
    figures = [f for f in figures if f]
    if not figures:
        return
    base = figures[0]
    header = ["", "segments/s", "p50 ms", "max ms", "CPU s", "peak MB", f"{base.name} is x times as fast"]
    rows = [header] + [f.row(base) for f in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    sys.stdout.flush()


def fresh(arguments, name):
    work = f"{arguments.work}/{name}"
    shutil.rmtree(work, ignore_errors=True)
    os.mkdir(work)
    return work


def key(work):
    """An age identity as age-keygen makes it, for the pipeline that is the limit."""
    sh(f"age-keygen -o {work}/key.txt 2>/dev/null")
    with open(f"{work}/key.txt") as file:
        return next(line.split(": ")[1].strip() for line in file if line.startswith("# public key"))


def directories(arguments, wal, parts):
    pushes, gets, gets30 = [], [], []

    def both(name, make, detaches=False):
        work = fresh(arguments, "".join(c if c.isalnum() else "-" for c in name))
        data = wal.data_dir(f"{work}/data")
        tool = make(work, data)
        say(f"{name}: push")
        pushes.append(in_child(lambda: measure(name, push_calls(wal, data, tool.push, detaches))))
        if "get" in parts:
            for replay, into in ((0, gets), (0.03, gets30)):
                say(f"{name}: get with {replay * 1000:.0f} ms of replay")
                shutil.rmtree(f"{work}/spool", ignore_errors=True)
                into.append(in_child(lambda: measure(name, get_calls(wal, data, tool.get, replay, detaches))))
        shutil.rmtree(work, ignore_errors=True)

    def walden(work, data):
        os.mkdir(f"{work}/repo")
        return Walden(arguments, work, data, [("primary", f"file://{work}/repo")])

    def walden_two(work, data):
        return Walden(arguments, work, data, [("a", f"file://{work}/a"), ("b", f"file://{work}/b")])

    def pgbackrest(asynchronous):
        return lambda work, data: PgBackRest(work, data, f"repo1-path={work}/repo", asynchronous)

    class Cp:
        def __init__(self, work, data):
            os.mkdir(f"{work}/repo")
            self.push, self.get = f"cp %p {work}/repo/%f", f"cp {work}/repo/%f %p"

    class Pipe:
        def __init__(self, work, data):
            os.mkdir(f"{work}/repo")
            recipient = key(work)
            self.push = f"lz4 -c %p 2>/dev/null | age -r {recipient} > {work}/repo/%f"
            self.get = f"age -d -i {work}/key.txt {work}/repo/%f | lz4 -dc > %p"

    both("Walden", walden, detaches=True)
    both("Walden, two directories", walden_two, detaches=True)
    both("pgBackRest async", pgbackrest(True), detaches=True)
    both("pgBackRest sync", pgbackrest(False))
    both("cp, without fsync", Cp)
    both("lz4 | age, one core", Pipe)
    table("Push to a directory", pushes)
    if arguments.limit and pushes[0]:
        limit = float(subprocess.check_output([arguments.limit], env={**os.environ, "WALDEN_BENCH_WAL": wal.dir}))
        rate = len(pushes[0].calls) / pushes[0].wall
        print(f"  CRC-32, LZ4 and age in memory on every core: {limit:.1f} segments/s; Walden's push reaches "
              f"{100 * rate / limit:.0f} % of it")
    table("Get from a directory, no replay", gets)
    table("Get from a directory, 30 ms of replay a segment", gets30)


def s3(arguments, wal):
    work = fresh(arguments, "s3")
    sh(f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout {work}/ca.key -out {work}/ca.crt "
       f"2>/dev/null && openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {work}/leaf.key "
       f"-out {work}/leaf.csr 2>/dev/null && printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > {work}/ext && "
       f"openssl x509 -req -in {work}/leaf.csr -CA {work}/ca.crt -CAkey {work}/ca.key -CAcreateserial -days 2 "
       f"-extfile {work}/ext -out {work}/leaf.crt 2>/dev/null")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.makedirs(f"{work}/store/bucket")
    server = subprocess.Popen([arguments.rclone, "serve", "s3", "--config", "", "--cache-dir", f"{work}/cache",
                               "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret", "--cert",
                               f"{work}/leaf.crt", "--key", f"{work}/leaf.key", f"{work}/store"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        figures = []
        for name in ("Walden", "pgBackRest async"):
            place = fresh(arguments, "s3-" + name.split()[0])
            data = wal.data_dir(f"{place}/data")
            if name == "Walden":
                options = {"endpoint": f"https://localhost:{port}", "path_style": "true", "region": "us-east-1",
                           "ca_file": f"{work}/ca.crt", "conditional_writes": "false"}
                more = " ".join(f"--repository-option s.{k}={v}" for k, v in options.items())
                tool = Walden(arguments, place, data, [("s", "s3://bucket/walden")], more)
            else:
                tool = PgBackRest(place, data, "repo1-type=s3\nrepo1-s3-bucket=bucket\nrepo1-s3-region=us-east-1\n"
                                  "repo1-s3-key=key\nrepo1-s3-key-secret=secret\nrepo1-s3-uri-style=path\n"
                                  f"repo1-s3-endpoint=localhost\nrepo1-storage-port={port}\n"
                                  f"repo1-storage-ca-file={work}/ca.crt\nrepo1-path=/pgbackrest", True)
            say(f"{name}: push over TLS")
            figures.append(in_child(lambda: measure(name, push_calls(wal, data, tool.push, True))))
            shutil.rmtree(place, ignore_errors=True)
        table("Push to S3 over TLS on loopback (rclone shares the cores)", figures)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def large(arguments):
    """The memory that segments of 1 GB take."""
    work = fresh(arguments, "large")
    data, sockets = f"{work}/data", f"{work}/s"
    os.mkdir(sockets)
    sh(f"{BIN}/initdb -D {data} -A trust -U postgres --no-sync --wal-segsize=1024")
    with open(f"{data}/postgresql.conf", "a") as conf:
        conf.write(f"listen_addresses=''\nunix_socket_directories='{sockets}'\nport=5432\nfsync=off\narchive_mode=on\n"
                   "archive_command='false'\nmax_wal_size='8GB'\nmin_wal_size='2GB'\n")
    sh(f"{BIN}/pg_ctl -D {data} -l {work}/server.log -s -w start")
    try:
        ready = f"{data}/pg_wal/archive_status"
        while not any(name.endswith(".ready") for name in os.listdir(ready)):
            sh(f"{BIN}/pgbench -h {sockets} -U postgres -i -s 50 -q postgres", stderr=subprocess.DEVNULL)
    finally:
        sh(f"{BIN}/pg_ctl -D {data} -s -m fast stop")
    name = min(name for name in os.listdir(ready) if name.endswith(".ready"))[:24]
    os.mkdir(f"{work}/repo")
    tool = Walden(arguments, work, data, [("primary", f"file://{work}/repo")])
    say("Walden: a segment of 1 GB")
    push = Call(tool.push.replace("%p", f"pg_wal/{name}"), data)
    get = Call(tool.get.replace("%f", name).replace("%p", "pg_wal/RECOVERYXLOG"), data)
    figures = [in_child(lambda: measure("push", [push])), in_child(lambda: measure("get", [get]))]
    sh(f"cmp {data}/pg_wal/{name} {data}/pg_wal/RECOVERYXLOG")
    print("\nA segment of 1 GB, to a directory and back")
    for figure in figures:
        print(f"  {figure.name}: {figure.calls[0]:.2f} s, {figure.memory / 1024:.0f} MB at the peak")
    shutil.rmtree(work)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--walden", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--rclone", default="rclone")
    parser.add_argument("--segments", type=int, default=60)
    parser.add_argument("--limit", help="the program that says what the cores can do")
    parser.add_argument("--only", default="push,get,s3,large")
    parser.add_argument("--keep-wal", metavar="DIR", help="makes the WAL there, or takes what an earlier run made there")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    os.chdir(arguments.work)
    say("making WAL")
    wal = Wal(arguments.work, arguments.segments, arguments.keep_wal)
    say(f"{len(wal.names())} segments")
    if not arguments.keep_wal and "wal" in parts:
        raise SystemExit("the WAL is to be made, but not where")
    if "push" in parts or "get" in parts:
        directories(arguments, wal, parts)
    if "s3" in parts and os.path.exists(arguments.rclone):
        s3(arguments, wal)
    if "large" in parts:
        large(arguments)


if __name__ == "__main__":
    main()
