#!/usr/bin/env python3
"""Backs up and restores one cluster with Walden, pgBackRest and pg_basebackup, in turns; called by peers.sh."""

import argparse
import json
import os
import shutil
import subprocess
import time

from peers import BIN, PgBackRest, Walden, fresh, in_child, say, sh

ROUNDS = 3


class Server:
    """About a gigabyte of tables, page checksums on, archiving with Walden."""

    def __init__(self, arguments, work, fill, port):
        self.data, self.work = f"{work}/data", work
        self.sockets = f"{work}/sockets"
        self.connect = f"-h {self.sockets} -p {port} -U postgres"
        os.mkdir(self.sockets)
        sh(f"{BIN}/initdb -D {self.data} -A trust -U postgres --no-sync --data-checksums")
        with open(f"{self.data}/postgresql.conf", "a") as conf:
            conf.write(f"listen_addresses=''\nunix_socket_directories='{self.sockets}'\nport={port}\n"
                       "archive_mode=on\narchive_command='true'\nmax_wal_size='8GB'\ncheckpoint_timeout='1h'\n"
                       "shared_buffers='256MB'\nsynchronous_commit=off\n")
        sh(f"{BIN}/pg_ctl -D {self.data} -l {work}/server.log -s -w start")
        fill(self)
        os.mkdir(f"{work}/repo")
        self.walden = Walden(arguments, work, self.data, [("primary", f"file://{work}/repo")],
                             f"--connection 'host={self.sockets} port={port} user=postgres dbname=postgres'")
        self.psql(f"alter system set archive_command = '{self.walden.push}'")
        self.psql("select pg_reload_conf()")
        self.psql("checkpoint")
        self.psql("vacuum freeze")
        self.pgbackrest = PgBackRest(work, self.data, f"repo1-path={work}/pgbackrest\npg1-socket-path={self.sockets}\n"
                                     f"pg1-port={port}\narchive-check=n\nstart-fast=y", False, stanza=False)
        with open(self.pgbackrest.config, "a") as file:
            file.write(f"pg1-socket-path={self.sockets}\npg1-port={port}\npg1-user=postgres\n")
        sh(f"{self.pgbackrest.program} stanza-create")

    def psql(self, command):
        sh(f"{BIN}/psql {self.connect} -v ON_ERROR_STOP=1 -q -d postgres -c \"{command}\"")

    def stop(self):
        sh(f"{BIN}/pg_ctl -D {self.data} -s -m fast stop")


def pgbench(server):
    sh(f"{BIN}/pgbench {server.connect} -i -s 65 -q postgres", stderr=subprocess.DEVNULL)


def noise(server):
    server.psql("create extension pgcrypto")
    server.psql("create table noise (id int, content bytea)")
    server.psql("alter table noise alter content set storage external")
    server.psql("insert into noise select i, gen_random_bytes(1024) || gen_random_bytes(1024) || gen_random_bytes(1024) "
                "|| gen_random_bytes(1024) from generate_series(1, 230000) i")


class Took:
    def __init__(self, wall, cpu, memory):
        self.wall, self.cpu, self.memory = wall, cpu, memory


def once(command):
    """Runs a command in a process of its own and returns what it took."""
    import resource

    def work():
        began = time.monotonic()
        done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        wall = time.monotonic() - began
        if done.returncode != 0:
            raise SystemExit(f"{command}: exit {done.returncode}: {done.stderr.decode()}")
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Took(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss), done.stdout

    took, output = in_child(work)
    return took, output


def table(title, rows):
    base = min(rows[0][1], key=lambda took: took.wall)
    print(f"\n{title}")
    print(f"  {'':34}{'best s':>8}{'all s':>22}{'CPU s':>8}{'peak MB':>9}  {rows[0][0]} is … times as fast")
    for name, all_took in rows:
        best = min(all_took, key=lambda took: took.wall)
        every = " ".join(f"{took.wall:.2f}" for took in all_took)
        ratio = "" if best is base else f"{best.wall / base.wall:.2f}"
        peak = max(took.memory for took in all_took)
        print(f"  {name:34}{best.wall:8.2f}{every:>22}{best.cpu:8.2f}{peak / 1024:9.0f}  {ratio}", flush=True)


def compare(arguments, title, fill, port):
    work = fresh(arguments, f"backup-{port}")
    say(f"filling: {title}")
    server = Server(arguments, work, fill, port)
    size = subprocess.check_output(["du", "-sm", f"{server.data}/base"]).split()[0].decode()
    backups = {"Walden": [], "Walden, without the wait for WAL": [], "pgBackRest": [], "pg_basebackup -Ft server-lz4": []}
    restores = {"Walden": [], "Walden, --delta over the same": [], "pgBackRest": []}
    for _ in range(ROUNDS):
        say("  backups")
        took, output = once(f"{server.walden.program} base-backup --fast --output json")
        waited = json.loads(output).get("wal_wait_seconds", 0)
        backups["Walden"].append(took)
        backups["Walden, without the wait for WAL"].append(Took(took.wall - waited, took.cpu, took.memory))
        backups["pgBackRest"].append(once(f"{server.pgbackrest.program} --type=full backup")[0])
        plain = f"{work}/plain"
        backups["pg_basebackup -Ft server-lz4"].append(once(
            f"{BIN}/pg_basebackup {server.connect} -Ft --compress=server-lz4 -X fetch -c fast -D {plain}")[0])
        shutil.rmtree(plain)
    server.psql("select pg_switch_wal()")
    for _ in range(ROUNDS):
        say("  restores")
        target = f"{work}/restored"
        recover = f"{server.walden.program} recover --until immediate --data-dir {target}"
        restores["Walden"].append(once(recover)[0])
        if arguments.delta:
            restores["Walden, --delta over the same"].append(once(f"{recover} --delta")[0])
        shutil.rmtree(target)
        os.mkdir(target, 0o700)
        restores["pgBackRest"].append(once(f"{server.pgbackrest.program} --pg1-path={target} restore")[0])
        shutil.rmtree(target)
    server.stop()
    shutil.rmtree(work)
    table(f"Base backup into a directory: {title}, {size} MB", list(backups.items()))
    table(f"Restore from a directory: {title}", [row for row in restores.items() if row[1]])
    if arguments.delta:
        full, delta = (min(took.wall for took in restores[name]) for name in ("Walden", "Walden, --delta over the same"))
        print(f"  --delta over an intact copy is {full / delta:.2f} times as fast as the full restore")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--walden", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--only", default="pgbench,random")
    parser.add_argument("--no-delta", dest="delta", action="store_false")
    arguments = parser.parse_args()
    os.chdir(arguments.work)
    if "pgbench" in arguments.only:
        compare(arguments, "pgbench", pgbench, 5432)
    if "random" in arguments.only:
        compare(arguments, "random bytea", noise, 5433)


if __name__ == "__main__":
    main()
