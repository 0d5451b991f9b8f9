//! stub
use super::Global;
use crate::kind::Result;
/// stub
#[derive(Debug, clap::Args)]
pub struct Args {}
/// stub
pub fn run(_: &Global, _: &Args) -> Result<()> {
    Ok(())
}
