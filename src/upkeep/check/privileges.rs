//! What the role may do on the server.

use super::Item;
use crate::backup::backup_functions;
use crate::kind::{Error, Kind, Result};
use crate::server::Server;

/// What a round trip takes.
const ROUND_TRIP: [&str; 2] = ["pg_create_restore_point(text)", "pg_switch_wal()"];

/// Says what the role lacks for base backups (a failure) and for the round trip (a warning). Returns whether it may make
/// one.
pub(super) fn check(server: &mut Server, say: &mut dyn FnMut(Item)) -> Result<bool> {
    const NAME: &str = "privileges";
    let role = server.query_one_text("select current_user")?;
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    let mut grants = Vec::new();
    if !server.settings(&["data_directory"])?.contains_key("data_directory") {
        grants.push(format!("GRANT pg_read_all_settings TO {quoted};"));
    }
    grants.extend(lacking(server, &backup_functions(server.major_version()), &quoted)?);
    let round_trip = lacking(server, &ROUND_TRIP, &quoted)?;
    let may_switch = round_trip.is_empty();
    let item = if !grants.is_empty() {
        grants.extend(round_trip);
        let message = format!("role \"{role}\" cannot take a base backup: it lacks {} rights", grants.len());
        Item::failed(NAME, &Error::new(Kind::Server, message).with_hint(grants.join(" ")))
    } else if may_switch {
        Item::ok(NAME, format!("role \"{role}\" has what backups and the round trip take"))
    } else {
        Item::warning(
            NAME,
            format!("role \"{role}\" has what backups take, not what the round trip does"),
            round_trip.join(" "),
        )
    };
    say(item);
    Ok(may_switch)
}

/// Returns the statements that give the role the functions that it may not execute.
fn lacking(server: &mut Server, functions: &[&str], role: &str) -> Result<Vec<String>> {
    let mut grants = Vec::new();
    for function in functions {
        if !server.may_execute(function)? {
            grants.push(format!("GRANT EXECUTE ON FUNCTION {function} TO {role};"));
        }
    }
    Ok(grants)
}
