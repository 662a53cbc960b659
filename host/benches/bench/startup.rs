//! What `lightbox list` takes, in a process of its own, beside the start of the program alone, most of which is libtorch's.

use crate::table::{Spread, Table};
use crate::{Bench, Result, built};
use std::process::{Command, Stdio};
use std::time::Instant;

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let run = |argument: &str| -> Result<f64> {
        let start = Instant::now();
        let status = Command::new(built()?.join("lightbox")).arg(argument).stdout(Stdio::null()).status()?;
        match status.success() {
            true => Ok(start.elapsed().as_secs_f64()),
            false => Err(format!("lightbox {argument}: {status}").into()),
        }
    };
    let (mut list, mut start) = (vec![], vec![]);
    for round in 0..bench.rounds(11) + 1 {
        let times = (run("list")?, run("--version")?);
        if round > 0 {
            list.push(times.0);
            start.push(times.1);
        }
    }
    let (list, start) = (Spread::of(&list), Spread::of(&start));
    table.text(format!(
        "`lightbox list`: {:.2} s ({:.2} to {:.2}; target 0.5 s), of which the program's start (`lightbox --version`) {:.2} s.\n",
        list.median, list.least, list.greatest, start.median
    ));
    Ok(())
}
