//! Both sides of a row, alternately.

use crate::Result;
use crate::peer::Peer;
use crate::table::{Comparison, Table};
use tch::Tensor;

/// The times of all rounds but the first, which warms up, and what the last gave.
pub struct Rounds<T> {
    ours: Vec<f64>,
    theirs: Vec<f64>,
    /// The peer's side, and the version of its package.
    side: (String, String),
    last: T,
    output: Option<Tensor>,
}

/// Runs ours, which says its seconds, and one side of the peer, round by round.
pub fn alternate<T>(
    rounds: usize,
    peer: &mut Option<Peer>,
    side: &str,
    mut run: impl FnMut() -> Result<(T, f64)>,
) -> Result<Rounds<T>> {
    let (mut ours, mut theirs) = (vec![], vec![]);
    let mut last = None;
    for round in 0..rounds + 1 {
        let (value, time) = run()?;
        last = Some(value);
        let answer = peer.as_mut().map(|p| p.ask(side)).transpose()?;
        if round > 0 {
            ours.push(time);
            theirs.extend(answer);
        }
    }
    let output = match peer {
        Some(peer) => Some(peer.outputs()?.remove(side).ok_or("the peer gave nothing")?),
        None => None,
    };
    let version = peer.as_ref().and_then(|p| p.versions.get(side)).cloned().unwrap_or_default();
    Ok(Rounds { ours, theirs, side: (side.into(), version), last: last.ok_or("no round")?, output })
}

impl<T> Rounds<T> {
    /// Times of one of so many.
    pub fn each(mut self, of: usize) -> Self {
        self.ours.iter_mut().chain(&mut self.theirs).for_each(|time| *time /= of as f64);
        self
    }

    /// Adds the row. `difference` of what both gave may be `allowed`; without `allowed` nothing is compared.
    pub fn add(
        self,
        table: &mut Table,
        work: String,
        target: Option<f64>,
        allowed: Option<f64>,
        difference: impl FnOnce(&T, &Tensor) -> Result<f64>,
    ) -> Result<()> {
        let difference = match (&self.output, allowed) {
            (Some(theirs), Some(allowed)) => Some((difference(&self.last, theirs)?, allowed)),
            _ => None,
        };
        let peer = self.output.is_some().then_some((self.side.0.as_str(), self.side.1.as_str(), &self.theirs[..]));
        table.add(Comparison { work, ours: &self.ours, peer, difference, target });
        Ok(())
    }

    pub fn ours(&self) -> &[f64] {
        &self.ours
    }
}
