#[derive(clap::Args)]
pub struct CheckArgs {}
#[derive(clap::Args)]
pub struct WorkerArgs {}
use crate::error::*;
pub fn check(_: &CheckArgs, _: &[std::path::PathBuf]) -> Result<Exit> {
    Ok(Exit::Ok)
}
pub fn worker(_: &WorkerArgs) -> Result<()> {
    Ok(())
}
