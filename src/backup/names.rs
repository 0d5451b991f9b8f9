//! The names of relations' files (`relpath.c`, `reinit.c`): `16384`, `16384_fsm`, `16384.1`, `t3_16384_vm.2`.

use std::ffi::OsStr;

/// Which of a relation's files it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The data itself.
    Main,
    /// The free space map.
    FreeSpace,
    /// The visibility map.
    Visibility,
    /// What an unlogged relation is reset to.
    Init,
}

/// What the name of a relation's file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile {
    /// The relation's number (`relfilenode`).
    pub number: u32,
    /// The fork.
    pub fork: Fork,
    /// Which of the fork's files it is, from 0; each but the last has the same number of blocks.
    pub segment: u32,
}

impl RelationFile {
    /// Returns what the name says, or none if no relation's file is called so.
    pub fn parse(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?;
        let (stem, segment) = match name.split_once('.') {
            // Segment 0 has no suffix.
            Some((stem, segment)) => (stem, number(segment).filter(|&segment| segment > 0)?),
            None => (name, 0),
        };
        let (digits, fork) = match stem.split_once('_') {
            None => (stem, Fork::Main),
            Some((digits, "fsm")) => (digits, Fork::FreeSpace),
            Some((digits, "vm")) => (digits, Fork::Visibility),
            Some((digits, "init")) => (digits, Fork::Init),
            Some(_) => return None,
        };
        Some(Self { number: number(digits)?, fork, segment })
    }
}

/// Returns whether a file in a database's directory belongs to a temporary relation (`looks_like_temp_rel_name`):
/// `t`, the number of the session, and a relation's name.
pub fn is_temporary_relation(name: &OsStr) -> bool {
    let parse = || {
        let (session, relation) = name.to_str()?.strip_prefix('t')?.split_once('_')?;
        number(session)?;
        RelationFile::parse(OsStr::new(relation))
    };
    parse().is_some()
}

fn number(digits: &str) -> Option<u32> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_relations_are_told_from_others() {
        let parse = |name: &str| RelationFile::parse(OsStr::new(name));
        assert_eq!(parse("1259"), Some(RelationFile { number: 1259, fork: Fork::Main, segment: 0 }));
        assert_eq!(
            parse("1259_vm.3"),
            Some(RelationFile { number: 1259, fork: Fork::Visibility, segment: 3 })
        );
        assert_eq!(parse("16384_init").unwrap().fork, Fork::Init);
        assert_eq!(parse("16384_fsm").unwrap().fork, Fork::FreeSpace);
        for other in [
            "",
            "PG_VERSION",
            "pg_filenode.map",
            "1259_",
            "1259_x",
            "1259.",
            "1259.0",
            "1259.x",
            "+1",
            "t3_1",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
        for temporary in ["t3_16384", "t0_1_fsm", "t12_3.1"] {
            assert!(is_temporary_relation(OsStr::new(temporary)), "{temporary}");
        }
        for other in ["t3", "t_1", "t3_", "tx_1", "3_1", "t3_1_x"] {
            assert!(!is_temporary_relation(OsStr::new(other)), "{other}");
        }
    }
}
