//! Which unit is next. Pure: it knows neither processes nor files.

use super::unit::Unit;
use std::collections::HashMap;

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Waiting,
    /// With a worker.
    Running(usize),
    Done,
    /// It failed, or what it needs did.
    Lost,
}

/// Units with what they need of each other.
pub struct Scheduler {
    units: Vec<(Unit, Vec<usize>, State)>,
    /// What each worker did last.
    last: Vec<Option<usize>>,
}

impl Scheduler {
    /// All units are to be done; what is not among them counts as done.
    pub fn new(units: Vec<Unit>) -> Self {
        let units = units.into_iter().map(|u| (u, vec![], State::Waiting)).collect();
        let mut scheduler = Scheduler { units, last: Vec::new() };
        scheduler.set_needs();
        scheduler
    }

    fn set_needs(&mut self) {
        // A unit needs units of its own place, and those of none.
        let mut places: HashMap<Option<(String, usize, usize)>, Vec<usize>> = HashMap::new();
        let place = |unit: &Unit| unit.place().map(|(model, fold, training)| (model.to_string(), fold, training));
        for (i, (unit, ..)) in self.units.iter().enumerate() {
            places.entry(place(unit)).or_default().push(i);
        }
        for i in 0..self.units.len() {
            let unit = &self.units[i].0;
            let near = places.get(&place(unit)).into_iter().chain(places.get(&None)).flatten();
            let mut needs: Vec<usize> = near.copied().filter(|&j| unit.needs(&self.units[j].0)).collect();
            needs.sort_unstable();
            needs.dedup();
            self.units[i].1 = needs;
        }
    }

    /// A unit for this worker, which is then running. It goes on with the model, fold and training that it did last; else it
    /// takes one that nobody is at; else any.
    pub fn next(&mut self, worker: usize) -> Option<Unit> {
        let done = |i: &usize| self.units[*i].2 == State::Done;
        let ready: Vec<usize> = (0..self.units.len())
            .filter(|&i| self.units[i].2 == State::Waiting && self.units[i].1.iter().all(done))
            .collect();
        let last = self.last.get(worker).copied().flatten().map(|i| self.units[i].0.clone());
        let mine = |i: &&usize| {
            let place = self.units[**i].0.place();
            place.is_some() && last.as_ref().is_some_and(|l| l.place() == place)
        };
        let free = |i: &&usize| {
            let place = self.units[**i].0.place();
            let taken = |(u, _, s): &(Unit, Vec<usize>, State)| matches!(s, State::Running(_)) && u.place() == place;
            place.is_none() || !self.units.iter().any(taken)
        };
        let chosen = ready.iter().find(mine).or_else(|| ready.iter().find(free)).or_else(|| ready.first()).copied()?;
        self.units[chosen].2 = State::Running(worker);
        if self.last.len() <= worker {
            self.last.resize(worker + 1, None);
        }
        self.last[worker] = Some(chosen);
        Some(self.units[chosen].0.clone())
    }

    /// What this worker is at.
    pub fn running(&self, worker: usize) -> Option<&Unit> {
        self.units.iter().find(|(.., s)| *s == State::Running(worker)).map(|(u, ..)| u)
    }

    /// The worker has done its unit.
    pub fn done(&mut self, worker: usize) {
        self.set(worker, State::Done);
    }

    /// The worker has left its unit as it was.
    pub fn release(&mut self, worker: usize) {
        self.set(worker, State::Waiting);
    }

    fn set(&mut self, worker: usize, state: State) {
        self.units.iter_mut().filter(|(.., s)| *s == State::Running(worker)).for_each(|(.., s)| *s = state);
    }

    /// Gives up waiting units, and those that need them.
    pub fn give_up(&mut self, which: impl Fn(&Unit) -> bool) {
        for (unit, _, state) in &mut self.units {
            if *state == State::Waiting && which(unit) {
                *state = State::Lost;
            }
        }
        loop {
            let lost: Vec<usize> = (0..self.units.len())
                .filter(|&i| {
                    let (_, needs, state) = &self.units[i];
                    *state == State::Waiting && needs.iter().any(|n| self.units[*n].2 == State::Lost)
                })
                .collect();
            if lost.is_empty() {
                return;
            }
            lost.into_iter().for_each(|i| self.units[i].2 = State::Lost);
        }
    }

    /// Changes waiting units, and with them what they need; one that `change` leaves nothing of is done.
    pub fn change(&mut self, change: impl Fn(&Unit) -> Option<Unit>) {
        for (unit, _, state) in self.units.iter_mut().filter(|(.., s)| *s == State::Waiting) {
            match change(unit) {
                Some(new) => *unit = new,
                None => *state = State::Done,
            }
        }
        self.set_needs();
    }

    /// True when no unit waits or runs.
    pub fn is_finished(&self) -> bool {
        self.units.iter().all(|(.., s)| matches!(s, State::Done | State::Lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(fold: usize) -> Unit {
        Unit::Train { model: "m".into(), fold, training: 0, size: [64, 64] }
    }

    fn explain(fold: usize, chunk: usize) -> Unit {
        let explainers = vec!["e".to_string()];
        Unit::Explain { model: "m".into(), fold, training: 0, size: [64, 64], chunk, explainers, predict: true }
    }

    fn reduce(fold: usize) -> Unit {
        Unit::Reduce { model: "m".into(), fold, training: 0 }
    }

    fn all() -> Scheduler {
        let mut units = vec![Unit::Prepare { size: [64, 64] }];
        for fold in 0..2 {
            units.push(train(fold));
            units.extend((0..3).map(|chunk| explain(fold, chunk)));
            units.push(reduce(fold));
        }
        Scheduler::new(units)
    }

    #[test]
    fn what_is_needed_comes_first_and_each_unit_goes_to_one_worker() {
        let mut s = all();
        assert_eq!(s.next(0), Some(Unit::Prepare { size: [64, 64] }));
        // Everything else needs the images.
        assert_eq!(s.next(1), None);
        s.done(0);
        assert_eq!((s.next(0), s.next(1)), (Some(train(0)), Some(train(1))));
        s.done(1);
        // Worker 1 goes on with the fold that it has trained.
        assert_eq!(s.next(1), Some(explain(1, 0)));
        s.done(0);
        assert_eq!(s.next(0), Some(explain(0, 0)));
        assert_eq!(s.next(2), Some(explain(0, 1)));
        for worker in 0..3 {
            s.done(worker);
        }
        let mut seen = Vec::new();
        while let Some(unit) = s.next(0) {
            s.done(0);
            seen.push(unit);
        }
        assert_eq!(seen, [explain(0, 2), reduce(0), explain(1, 1), explain(1, 2), reduce(1)]);
        assert!(s.is_finished());
    }

    #[test]
    fn a_lost_workers_unit_goes_to_another() {
        let mut s = all();
        let unit = s.next(0);
        s.release(0);
        assert_eq!(s.running(0), None);
        assert_eq!(s.next(1), unit);
    }

    #[test]
    fn what_needs_a_lost_unit_is_lost() {
        let mut s = all();
        s.give_up(|u| *u == train(1));
        s.next(0);
        s.done(0);
        let mut seen = Vec::new();
        while let Some(unit) = s.next(0) {
            seen.push(unit);
            s.done(0);
        }
        assert_eq!(seen.len(), 5, "{seen:?}");
        assert!(seen.iter().all(|u| u.place().is_some_and(|(_, fold, _)| fold == 0)));
        assert!(s.is_finished() && s.units.len() == 11);
    }

    #[test]
    fn who_no_longer_has_an_explainer_does_not_need_its_fit() {
        let fit = Unit::Fit { model: "m".into(), fold: 0, training: 0, size: [64, 64], explainer: "e".into() };
        let chunk = |explainers: &[&str]| Unit::Explain {
            model: "m".into(),
            fold: 0,
            training: 0,
            size: [64, 64],
            chunk: 0,
            explainers: explainers.iter().map(|e| e.to_string()).collect(),
            predict: true,
        };
        let mut s = Scheduler::new(vec![fit.clone(), chunk(&["e", "f"]), reduce(0)]);
        assert_eq!(s.next(0), Some(fit.clone()));
        assert_eq!(s.next(1), None);
        // The fit's worker dies: the chunk goes on with the other explainer.
        s.release(0);
        s.change(|u| if u == &chunk(&["e", "f"]) { Some(chunk(&["f"])) } else { Some(u.clone()) });
        s.give_up(|u| *u == fit);
        assert_eq!(s.next(0), Some(chunk(&["f"])));
        s.done(0);
        assert_eq!(s.next(0), Some(reduce(0)));
    }

    #[test]
    fn a_fit_comes_before_its_explainers_blocks_only() {
        let fit = Unit::Fit { model: "m".into(), fold: 0, training: 0, size: [64, 64], explainer: "e".into() };
        assert!(explain(0, 1).needs(&fit) && !explain(1, 1).needs(&fit) && fit.needs(&train(0)));
        let other = Unit::Fit { model: "m".into(), fold: 0, training: 0, size: [64, 64], explainer: "f".into() };
        assert!(!explain(0, 1).needs(&other));
    }
}
