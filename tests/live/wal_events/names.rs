//! The names of relations, and where the system catalogs are once they were written anew.

use walden::postgres::wal::RelFileLocator;
use walden::postgres::wal::events::{EventKind, EventOptions};
use walden::postgres::{Catalog, RelationKind};
use walden::server::Server;

use super::{Stage, each_by_itself_with, live_test};

const RELATIONS: &str = "
create schema \"Odd one\"; create table \"Odd one\".\"Ünder\" (i int primary key, v text);
create table plain (i int); create unlogged table unlogged (i int);
create table whole (i int) partition by range (i); create table part partition of whole for values from (0) to (9);
create materialized view m as select 1 as one; create view v as select 1 as one; create sequence q;
create temporary table gone (i int); create database other; create database closed allow_connections false;
";

fn catalog(stage: &Stage) -> Catalog {
    let mut server = Server::connect(&stage.cluster.connection_string()).unwrap();
    let catalog = server.catalog().unwrap();
    let bytes = catalog.to_bytes();
    let again = Catalog::from_bytes(&bytes).unwrap();
    assert_eq!(again.to_bytes(), bytes);
    again
}

live_test! {
    fn relations_of_every_database_are_named(pg: Installation) {
        let stage = Stage::new(&pg, &[]);
        stage.cluster.psql(RELATIONS);
        stage.cluster.psql_in("other", "create table elsewhere (i int)").unwrap();
        let catalog = catalog(&stage);
        let databases: Vec<&str> = catalog.databases().map(|(_, name)| name).collect();
        for name in ["postgres", "other", "closed", "template0"] {
            assert!(databases.contains(&name), "{databases:?}");
        }
        let of = |name: &str| catalog.relations().find(|relation| relation.name == name);
        for (name, kind) in [
            ("\"Odd one\".\"Ünder\"", RelationKind::Table),
            ("\"Odd one\".\"Ünder_pkey\"", RelationKind::Index),
            ("public.plain", RelationKind::Table),
            ("public.unlogged", RelationKind::Table),
            ("public.whole", RelationKind::PartitionedTable),
            ("public.part", RelationKind::Table),
            ("public.m", RelationKind::MaterializedView),
            ("public.q", RelationKind::Sequence),
            ("public.elsewhere", RelationKind::Table),
        ] {
            let relation = of(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(relation.kind, kind, "{name}");
            assert_eq!(relation.file == 0, kind == RelationKind::PartitionedTable, "{name}");
            assert_eq!(catalog.by_oid(relation.database, relation.oid), Some(relation));
            if relation.file != 0 {
                assert_eq!(catalog.by_file(relation.locator()), Some(relation));
            }
        }
        assert!(of("public.v").is_none() && !catalog.relations().any(|relation| relation.name.contains("gone")));
        assert_eq!(catalog.database(of("public.elsewhere").unwrap().database), Some("other"));
        let path = stage.cluster.psql("select pg_relation_filepath('plain')");
        let RelFileLocator { tablespace, database, relation } = of("public.plain").unwrap().locator();
        assert_eq!((tablespace, format!("base/{database}/{relation}")), (1663, path));
    }
}

live_test! {
    fn catalogs_that_were_written_anew_are_known_by_their_files(pg: Installation) {
        let stage = Stage::new(&pg, &[]);
        stage.cluster.psql("create table a (i int primary key, v text); create table b (i int primary key, v text)");
        stage.cluster.psql("vacuum full pg_class; vacuum full pg_attribute; vacuum full pg_type; vacuum full pg_index");
        let oid: u32 = stage.cluster.psql("select 'b'::regclass::oid").parse().unwrap();
        let catalog = catalog(&stage);
        let options = EventOptions { catalogs: catalog.catalog_files(), ..EventOptions::default() };
        assert_ne!(options.catalogs, EventOptions::default().catalogs);
        stage.cluster.switch_wal();
        stage.cluster.psql("vacuum full a; drop table b; update pg_class set relhasindex = relhasindex");
        stage.cluster.psql("update pg_attribute set attnum = attnum where attrelid < 16384");
        let segments = stage.segments();
        let mut events = each_by_itself_with(&segments, &options);
        events.retain(|event| event.kind != EventKind::RestorePoint);
        let [event] = &events[..] else { panic!("{events:#?}") };
        assert_eq!(event.kind, EventKind::DropTable);
        let [relation] = &event.relations[..] else { panic!("{event:#?}") };
        assert_eq!(relation.oid, Some(oid));
        assert_eq!(catalog.by_oid(event.database, oid).unwrap().name, "public.b");
        assert!(!event.is_uncertain && !relation.may_be_no_table);
    }
}
