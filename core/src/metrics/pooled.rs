//! The pixels of any number of images as two histograms, of which pooled metrics are functions: each map is scaled to [0, 1] by
//! its own range and rounded to 65,536 levels. Histograms are added exactly, in any order, over units and workers.

use super::facts::no_mask;
use super::pixel_auprc::both;
use super::{Batch, Bench, Curve, Evaluation, Masks, Score, State};
use crate::maps::Fault;
use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

pub const LEVELS: usize = 1 << 16;

/// What a pooled metric is: a function of positives and all pixels, by level; and its curve.
pub struct Pooled {
    pub histograms: Histograms,
    pub value: fn(&Histograms) -> Option<f64>,
    pub curve: fn(&Histograms) -> Option<Curve>,
}

impl Pooled {
    pub fn new(value: fn(&Histograms) -> Option<f64>, curve: fn(&Histograms) -> Option<Curve>) -> Self {
        Pooled { histograms: Histograms::new(), value, curve }
    }
}

/// Pixels a level.
pub struct Histograms {
    pub positives: Vec<i64>,
    pub all: Vec<i64>,
}

impl Histograms {
    pub fn new() -> Self {
        Histograms { positives: vec![0; LEVELS], all: vec![0; LEVELS] }
    }

    /// Counts flat maps and masks of a device, all in one step.
    pub(super) fn count_there(&mut self, there: &[(Tensor, Tensor)]) -> Result<()> {
        if there.is_empty() {
            return Ok(());
        }
        let maps: Vec<&Tensor> = there.iter().map(|(map, _)| map).collect();
        let masks: Vec<&Tensor> = there.iter().map(|(_, mask)| mask).collect();
        let level = Tensor::f_cat(&maps, 0)?.f_mul_scalar(65535.0)?.f_round()?.f_to_kind(Kind::Int64)?;
        let count = |levels: &Tensor| -> Result<Vec<i64>> {
            let counts = levels.f_bincount(None::<&Tensor>, LEVELS as i64)?;
            Ok(Vec::<i64>::try_from(counts.f_to_device(Device::Cpu)?)?)
        };
        let marked = level.f_masked_select(&Tensor::f_cat(&masks, 0)?.f_to_kind(Kind::Bool)?)?;
        self.all.iter_mut().zip(count(&level)?).for_each(|(a, n)| *a += n);
        self.positives.iter_mut().zip(count(&marked)?).for_each(|(a, n)| *a += n);
        Ok(())
    }

    /// Counts a batch; which images count.
    pub fn update(&mut self, batch: &Batch<'_>) -> Result<Vec<Score>> {
        let (maps, masks) = both(batch)?;
        if maps.device() != Device::Cpu {
            return self.update_there(batch, maps, masks);
        }
        let ((values, _), marks) = (batch.values()?, batch.marks(Masks::Finding)?);
        let n = batch.known.len();
        let size = (values.len() / n.max(1)).max(1);
        let mut scores = Vec::new();
        for (i, (map, mask)) in values.chunks_exact(size).zip(marks.chunks_exact(size)).enumerate() {
            let none = no_mask(Masks::Finding, batch.known[i], mask.contains(&1));
            scores.push(none.unwrap_or(Score::counted(batch.faults[i])));
            match (none, batch.faults[i]) {
                (Some(_), _) => {}
                (None, Fault::NotFinite) => {
                    // The worst map: least where the finding is, greatest elsewhere.
                    let marked = mask.iter().map(|m| i64::from(*m)).sum::<i64>();
                    self.all[0] += marked;
                    self.positives[0] += marked;
                    self.all[LEVELS - 1] += size as i64 - marked;
                }
                (None, _) => self.count_here(map, mask),
            }
        }
        Ok(scores)
    }

    /// Counts one map of the CPU.
    fn count_here(&mut self, map: &[f32], mask: &[u8]) {
        for (values, marks) in map.chunks(64).zip(mask.chunks(64)) {
            let mut levels = [0u16; 64];
            levels.iter_mut().zip(values).for_each(|(level, value)| *level = level_of(*value));
            let levels = &levels[..values.len()];
            levels.iter().for_each(|level| self.all[usize::from(*level)] += 1);
            if marks.iter().fold(0, |any, m| any | m) != 0 {
                for (level, mark) in levels.iter().zip(marks) {
                    self.positives[usize::from(*level)] += i64::from(*mark);
                }
            }
        }
    }

    fn update_there(&mut self, batch: &Batch<'_>, maps: &Tensor, masks: &Tensor) -> Result<Vec<Score>> {
        let (mut scores, mut there) = (Vec::new(), Vec::new());
        for i in 0..batch.known.len() as i64 {
            let mask = masks.f_get(i)?.f_flatten(0, -1)?;
            let marked = batch.known[i as usize] && mask.f_any()?.f_int64_value(&[])? != 0;
            if let Some(score) = no_mask(Masks::Finding, batch.known[i as usize], marked) {
                scores.push(score);
                continue;
            }
            let map = maps.f_get(i)?.f_flatten(0, -1)?;
            let broken = batch.faults[i as usize] == Fault::NotFinite;
            scores.push(Score::counted(batch.faults[i as usize]));
            // The worst map: least where the finding is, greatest elsewhere.
            let map = if broken { mask.f_to_kind(map.kind())?.f_neg()?.f_add_scalar(1.0)? } else { map };
            there.push((map, mask));
        }
        self.count_there(&there)?;
        Ok(scores)
    }

    /// The levels that occur, and how often among the positives and among all.
    pub fn state(&self) -> Result<State> {
        let levels: Vec<i32> = (0..LEVELS).filter(|&l| self.all[l] > 0).map(|l| l as i32).collect();
        let pick = |from: &[i64]| levels.iter().map(|&l| from[l as usize]).collect::<Vec<i64>>();
        Ok(vec![
            ("levels".into(), Tensor::f_from_slice(&levels)?),
            ("positives".into(), Tensor::f_from_slice(&pick(&self.positives))?),
            ("all".into(), Tensor::f_from_slice(&pick(&self.all))?),
        ])
    }

    pub fn merge(&mut self, state: &State) -> Result<()> {
        let find = |name: &str| -> Result<Vec<i64>> {
            let tensor = state.iter().find(|(n, _)| n == name).map(|(_, t)| t);
            let tensor = tensor.ok_or_else(|| Error::new(format!("a saved state has no {name}")))?;
            Ok(Vec::<i64>::try_from(tensor.f_to_kind(Kind::Int64)?)?)
        };
        let (levels, positives, all) = (find("levels")?, find("positives")?, find("all")?);
        if levels.len() != positives.len() || levels.len() != all.len() || levels.iter().any(|l| *l >= LEVELS as i64) {
            return Err(Error::new("a saved state of pooled pixels is broken"));
        }
        for ((level, p), a) in levels.into_iter().zip(positives).zip(all) {
            self.positives[level as usize] += p;
            self.all[level as usize] += a;
        }
        Ok(())
    }

    /// (positives, all) of the levels that occur, from the highest.
    pub fn levels(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        (0..LEVELS).rev().filter(|&l| self.all[l] > 0).map(|l| (self.positives[l] as f64, self.all[l] as f64))
    }

    /// Positives and all pixels together.
    pub fn totals(&self) -> (f64, f64) {
        (self.positives.iter().sum::<i64>() as f64, self.all.iter().sum::<i64>() as f64)
    }
}

/// The level of a value from 0 to 1, rounded to the nearest, in the middle to the even one: a float32 of 2^23 and more has no
/// room for a fraction, and its last bits are the level.
fn level_of(value: f32) -> u16 {
    (value * 65535.0 + 8_388_608.0).to_bits() as u16
}

/// Of a curve's points, those nearest to `many` equal steps along it.
pub fn thinned(points: Vec<[f64; 2]>, many: usize) -> Vec<[f64; 2]> {
    let n = points.len();
    if n <= many {
        return points;
    }
    (0..many).map(|k| points[k * (n - 1) / (many - 1)]).collect()
}

impl Evaluation for Pooled {
    fn update(&mut self, batch: &Batch<'_>, _: &mut dyn Bench) -> Result<Vec<Score>> {
        self.histograms.update(batch)
    }

    fn state(&self) -> Result<State> {
        self.histograms.state()
    }

    fn merge(&mut self, state: &State) -> Result<()> {
        self.histograms.merge(state)
    }

    fn finish(&self) -> Result<Option<Score>> {
        let none = Score::not_applicable("no image has a mask");
        Ok(Some((self.value)(&self.histograms).map_or(none, Score::ok)))
    }

    fn curve(&self) -> Result<Option<Curve>> {
        Ok((self.curve)(&self.histograms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_rounded_to_the_nearest() {
        for k in 0..=200_000u32 {
            let value = k as f32 / 200_000.0;
            assert_eq!(level_of(value), (value * 65535.0).round_ties_even() as u16, "{value}");
        }
        // In the middle.
        assert_eq!(
            [1.5f32, 2.5].map(|v| level_of(v / 65535.0)),
            [1.5f32, 2.5].map(|v| (v / 65535.0 * 65535.0).round_ties_even() as u16)
        );
    }
}
