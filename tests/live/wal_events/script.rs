//! What the servers are made to do, and which events that is.

use walden::postgres::wal::events::EventKind::{
    self, Delete, DropDatabase, DropTable, RestorePoint, Truncate, Update,
};

/// Kind, tables (or a database, or a restore point) separated by blanks, rows.
pub type Expected = (EventKind, &'static str, u64);

/// Preparation, which is no event itself; what is done; the events.
pub type Step = (&'static str, &'static str, &'static [Expected]);

pub const DROPS: &[Step] = &[
    ("create table a1 (i int primary key, v text)", "drop table a1", &[(DropTable, "a1", 0)]),
    ("create table a2 (i int)", "begin; drop table a2; rollback", &[]),
    ("", "begin; savepoint s; drop table a2; rollback to s; insert into a2 values (1); commit", &[]),
    ("", "begin; savepoint s; drop table a2; release s; commit", &[(DropTable, "a2", 0)]),
    (
        "create table a3 (i int, v text); create table a4 (i serial, v text)",
        "drop table a3, a4",
        &[(DropTable, "a3 a4", 0)],
    ),
    (
        "create table a5 (a int, b int, c int); create unique index on a5 (a, b); create table a6 (a int, b int, c int)",
        "drop table a5; begin; drop table a6; create table a6 (a int, b text); commit",
        &[(DropTable, "a5", 0), (DropTable, "a6", 0)],
    ),
    (
        "create table a7 (i int, v text); create type mood as enum ('ok')",
        "begin; drop type mood; drop table a7; commit",
        &[(DropTable, "a7", 0)],
    ),
    (
        "create table a8 (i int, v text)",
        "begin; create table b8 (i int); drop table a8; drop table b8; commit",
        &[(DropTable, "a8", 0)],
    ),
    (
        "",
        "begin; create table b9 (i int primary key, v text); insert into b9 values (1); drop table b9; commit",
        &[],
    ),
    (
        "create table a10 (i int primary key, v text)",
        "begin; savepoint s; drop table a10; rollback to s; drop table a6; commit",
        &[(DropTable, "a6", 0)],
    ),
    (
        "create table r1 (i int primary key, v text); insert into r1 select g, g from generate_series(1, 100) g; vacuum full r1",
        "truncate r1",
        &[(Truncate, "r1", 0)],
    ),
    ("", "drop table r1", &[(DropTable, "r1", 0)]),
    // Schemas, owners, databases.
    (
        "create schema s1; create table s1.t1 (i int primary key, v text); create table s1.t2 (i int); create view s1.v as select * from s1.t1; create sequence s1.q; create type s1.c as (a int)",
        "drop schema s1 cascade",
        &[(DropTable, "s1.t1 s1.t2", 0)],
    ),
    (
        "create role owner_1; create table o1 (i int, v text); create table o2 (i int); alter table o1 owner to owner_1; alter table o2 owner to owner_1",
        "drop owned by owner_1",
        &[(DropTable, "o1 o2", 0)],
    ),
    ("create database other", "drop database other", &[(DropDatabase, "other", 0)]),
    ("", "select pg_create_restore_point('before it') is null", &[(RestorePoint, "before it", 0)]),
    // Partitions.
    (
        "create table p (i int, v text) partition by range (i); create table p1 partition of p for values from (0) to (10000); create table p2 partition of p for values from (10000) to (20000); create table p3 partition of p for values from (20000) to (30000); create index on p (i); insert into p select g, g from generate_series(0, 29999) g",
        "drop table p1",
        &[(DropTable, "p1", 0)],
    ),
    ("alter table p detach partition p2", "drop table p2", &[(DropTable, "p2", 0)]),
    (
        "create table p4 partition of p for values from (30000) to (40000)",
        "drop table p",
        &[(DropTable, "p3 p4", 0)],
    ),
    (
        "create table h (i int); create table h1 () inherits (h); create table h2 (v text) inherits (h)",
        "drop table h cascade",
        &[(DropTable, "h h1 h2", 0)],
    ),
    // What is no table.
    (
        "create view w as select * from a10; create sequence q",
        "drop view w; drop sequence q; create index x on a10 (v)",
        &[],
    ),
    ("", "drop index x; alter table a10 drop constraint a10_pkey; alter table a10 drop column v", &[]),
    (
        "create table d (i int, v text); create index x on d (v)",
        "begin; drop index x; drop view if exists nothing; alter table d add column w int; drop table d; commit",
        &[(DropTable, "d", 0)],
    ),
    ("", "create temporary table z (i int primary key, v text); insert into z values (1); drop table z", &[]),
    (
        "",
        "create temporary table z (i int); create temporary table y (v text); begin; drop table z; commit",
        &[],
    ),
    (
        "create table e (i int primary key, v text)",
        "create temporary table z (i int primary key, v text); begin; drop table z; drop table e; commit",
        &[(DropTable, "e", 0)],
    ),
    ("create unlogged table u (i int primary key, v text)", "drop table u", &[(DropTable, "u", 0)]),
];

pub const REWRITES: &[Step] = &[
    (
        "create table f1 (i int primary key, v text); create index on f1 (v); insert into f1 select g, repeat('x', 50) from generate_series(1, 3000) g; create table empty (i int primary key, v text)",
        "vacuum full f1; vacuum full empty",
        &[],
    ),
    ("", "cluster f1 using f1_pkey", &[]),
    ("", "reindex table f1; reindex index f1_pkey; reindex table empty", &[]),
    (
        "",
        "reindex table concurrently f1; reindex index concurrently f1_pkey; reindex table concurrently empty",
        &[],
    ),
    (
        "",
        "alter table f1 alter i type bigint; alter table f1 add column w timestamptz default clock_timestamp(); alter table empty alter i type bigint",
        &[],
    ),
    (
        "",
        "create table f2 as select * from f1; create materialized view m as select count(*) from f1; create materialized view n as select i, v from f1; create unique index on n (i)",
        &[],
    ),
    (
        "",
        "refresh materialized view m; refresh materialized view concurrently n; refresh materialized view n with no data; refresh materialized view n",
        &[],
    ),
    ("", "alter table f1 set unlogged; alter table f1 set logged; analyze; vacuum", &[]),
    (
        "",
        "begin; alter table f1 alter w type text; rollback; begin; savepoint s; alter table f1 drop column w; release s; commit",
        &[],
    ),
    (
        "",
        "create sequence q9; alter sequence q9 restart; alter sequence q9 as int; copy f2 to '/dev/null'; select nextval('q9')",
        &[],
    ),
    (
        "create table f3 (i int primary key, v text); insert into f3 values (1)",
        "begin; alter table f3 alter i type bigint; drop table f3; commit",
        &[(DropTable, "f3", 0)],
    ),
    // The catalogs themselves are written anew.
    (
        "create table f4 (i int primary key, v text); create table f5 (i int primary key, v text)",
        "vacuum full pg_statistic; vacuum full pg_depend; drop table f4",
        &[(DropTable, "f4", 0)],
    ),
];

pub const TRUNCATES: &[Step] = &[
    (
        "create table t1 (i int primary key, v text); insert into t1 select g, g from generate_series(1, 2000) g",
        "truncate t1",
        &[(Truncate, "t1", 0)],
    ),
    (
        "insert into t1 values (1)",
        "begin; truncate t1; rollback; begin; savepoint s; truncate t1; rollback to s; insert into t1 values (2); commit",
        &[],
    ),
    (
        "",
        "begin; savepoint s; savepoint r; truncate t1; release r; insert into t1 values (3); commit",
        &[(Truncate, "t1", 0)],
    ),
    (
        "",
        "begin; create table t2 (i int primary key, v text); insert into t2 values (1); truncate t2; insert into t2 values (2); commit",
        &[],
    ),
    (
        "",
        "begin; create table t3 (i int primary key, v text); savepoint s; truncate t3; release s; insert into t3 values (2); commit",
        &[],
    ),
    ("insert into t3 values (7)", "truncate t2, t3", &[(Truncate, "t2 t3", 0)]),
    (
        "create table k1 (i int primary key); create table k2 (i int primary key, k int references k1, v text); create table k3 (k int references k2)",
        "truncate k1 cascade",
        &[(Truncate, "k1 k2 k3", 0)],
    ),
    (
        "create table t4 (i int); create table t5 (i int); insert into t4 values (1)",
        "begin; truncate t4; truncate t5; commit",
        &[(Truncate, "t4 t5", 0)],
    ),
    ("create table t6 (i serial, v text)", "truncate t6 restart identity", &[(Truncate, "t6", 0)]),
    (
        "create table g (i int, v text) partition by range (i); create table g1 partition of g for values from (0) to (100); create table g2 partition of g for values from (100) to (200); insert into g select generate_series(0, 199), 'x'",
        "truncate g",
        &[(Truncate, "g1 g2", 0)],
    ),
    ("", "truncate g2", &[(Truncate, "g2", 0)]),
    (
        "",
        "create temporary table z (i int primary key, v text); truncate z; begin; truncate z; insert into z values (1); commit",
        &[],
    ),
    ("create unlogged table u2 (i int primary key, v text)", "truncate u2", &[]),
    (
        "",
        "begin; truncate t1; insert into t1 select g, g from generate_series(1, 5000) g; commit",
        &[(Truncate, "t1", 0)],
    ),
    ("", "begin; truncate t1; truncate t1; truncate t1; commit", &[(Truncate, "t1", 0)]),
    ("", "begin; truncate t1; drop table t4; commit", &[(DropTable, "t4", 0), (Truncate, "t1", 0)]),
    (
        "create table t7 (i int primary key, v text)",
        "begin; truncate t7; drop table t7; commit",
        &[(DropTable, "t7", 0)],
    ),
];

pub const ROWS: &[Step] = &[
    (
        "create table m1 (i int primary key, v text); insert into m1 select g, 'x' from generate_series(1, 30000) g; create table m2 (i int, v int) with (fillfactor = 50); insert into m2 select g, g from generate_series(1, 3000) g",
        "delete from m1 where i <= 1000",
        &[(Delete, "m1", 1000)],
    ),
    ("", "delete from m1 where i <= 1999", &[]),
    ("", "delete from m1 where i <= 25000", &[(Delete, "m1", 23001)]),
    ("", "update m2 set v = v + 1", &[(Update, "m2", 3000)]),
    (
        "create index on m2 (v)",
        "update m2 set v = v + 1 where i <= 1000; update m2 set v = v + 1 where i < 1000",
        &[(Update, "m2", 1000)],
    ),
    (
        "",
        "begin; delete from m2 where i <= 600; savepoint s; delete from m2 where i <= 1200; release s; savepoint r; delete from m2; rollback to r; commit",
        &[(Delete, "m2", 1200)],
    ),
    (
        "",
        "do $$ begin for j in 1..300 loop begin update m1 set v = 'y' where i between 25000 + 4 * j and 25003 + 4 * j; exception when others then null; end; end loop; end $$",
        &[(Update, "m1", 1200)],
    ),
    ("", "begin; delete from m2; rollback; begin; update m1 set v = 'z'; rollback", &[]),
    (
        "create table m3 (i int, v text)",
        "begin; insert into m3 select g, 'x' from generate_series(1, 5000) g; commit; copy m3 from program 'seq 1 4000 | sed s/$/\\\\tx/'",
        &[],
    ),
    ("", "begin; create table m4 as select * from m3; delete from m4; commit", &[]),
    (
        "create table n1 (i int primary key); create table n2 (i int references n1 on delete cascade, v int); insert into n1 values (1); insert into n2 select 1, g from generate_series(1, 1500) g",
        "delete from n1",
        &[(Delete, "n2", 1500)],
    ),
    (
        "create table q1 (i int); insert into q1 select generate_series(1, 1100); create table q2 (i int); insert into q2 select generate_series(1, 1300)",
        "begin; delete from q1; delete from q2; update m3 set v = 'y' where v = 'x'; commit",
        &[(Delete, "q1 q2", 2400), (Update, "m3", 9000)],
    ),
    // TOAST: the chunks of a row are rows of another relation.
    (
        "create table l (i int, v text); alter table l alter v set storage external; insert into l select g, repeat(g::text || ' ', 1500) from generate_series(1, 1200) g; insert into l values (0, repeat('large ', 1000000)); checkpoint",
        "delete from l where i = 0",
        &[],
    ),
    ("", "update l set v = v || 'x' where i <= 900", &[]),
    ("checkpoint", "delete from l", &[(Delete, "l", 1200)]),
    // From partition to partition.
    (
        "create table s (i int) partition by range (i); create table s1 partition of s for values from (0) to (10000); create table s2 partition of s for values from (10000) to (20000); insert into s select generate_series(1, 1100)",
        "update s set i = i + 10000",
        &[(Update, "s1", 1100)],
    ),
    (
        "",
        "insert into m1 select g, 'again' from generate_series(24000, 28000) g on conflict (i) do update set v = 'changed'",
        &[(Update, "m1", 3000)],
    ),
    // Catalogs are not counted.
    (
        "create schema many; do $$ begin for j in 1..300 loop execute format('create table many.t%s (a int, b int, c int)', j); end loop; end $$",
        "begin; alter table many.t1 owner to postgres; update pg_class set relhasindex = relhasindex; update pg_attribute set attnum = attnum where attrelid >= 16384; commit",
        &[],
    ),
];

pub const PREPARED: &[Step] = &[
    (
        "create table x1 (i int primary key, v text); create table x2 (i int); create table x3 (i int); create table x4 (i int, v text); insert into x2 select generate_series(1, 3000); begin; drop table x1; prepare transaction 'drop'",
        "commit prepared 'drop'",
        &[(DropTable, "x1", 0)],
    ),
    ("begin; drop table x2; prepare transaction 'drop'", "rollback prepared 'drop'", &[]),
    (
        "begin; truncate x4; savepoint s; delete from x2 where i <= 1500; release s; savepoint r; delete from x2; rollback to r; prepare transaction 'mixed'; update m1 set v = 'between'",
        "commit prepared 'mixed'",
        &[(Update, "m1", 0), (Truncate, "x4", 0), (Delete, "x2", 1500)],
    ),
    (
        "begin; truncate x3; delete from x2; prepare transaction 'given up'; select pg_switch_wal()",
        "rollback prepared 'given up'",
        &[],
    ),
    (
        "begin; delete from x2; prepare transaction 'long'; insert into m3 select g, 'fill' from generate_series(1, 60000) g; checkpoint; select pg_switch_wal()",
        "commit prepared 'long'",
        &[(Delete, "x2", 1500)],
    ),
];

pub const SPACES: &[Step] = &[
    (
        "create table y1 (i int primary key, v text); insert into y1 select g, 'x' from generate_series(1, 100) g; create table y2 (i int primary key, v text)",
        "alter table y1 set tablespace space; alter table y2 set tablespace space; alter index y1_pkey set tablespace space",
        &[],
    ),
    ("", "truncate y1", &[(Truncate, "y1", 0)]),
    ("", "begin; alter table y1 set tablespace pg_default; commit; reindex (verbose) table y2", &[]),
    ("", "drop table y1, y2", &[(DropTable, "y1 y2", 0)]),
    ("create database moved; create table y3 (i int)", "alter database moved set tablespace space", &[]),
    ("", "drop database moved", &[(DropDatabase, "moved", 0)]),
];

pub const STRATEGIES: &[Step] = &[
    ("create database copied strategy file_copy", "drop database copied", &[(DropDatabase, "copied", 0)]),
    ("create database logged strategy wal_log", "drop database logged", &[(DropDatabase, "logged", 0)]),
];
