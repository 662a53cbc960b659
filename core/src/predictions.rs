//! The predictions of one fold and training as a table, from which metrics of the classification are computed, also without some images.

use crate::metrics::Predictions;
use crate::results::{Names, Prediction};
use crate::task::Task;
use std::collections::{HashMap, HashSet};

/// Predictions of one fold and training, by class and image.
pub struct Table {
    /// Numbers of the images, in the names' order.
    pub images: Vec<u32>,
    scores: Vec<Vec<f64>>,
    labels: Vec<Vec<u8>>,
    /// By class: the images by rising score, so that a part of them is sorted already.
    order: Vec<Vec<usize>>,
}

impl Table {
    /// Sorts predictions by image and class.
    pub fn new(predictions: &[Prediction], task: &Task, names: &Names) -> Self {
        let mut images: Vec<u32> = predictions.iter().map(|p| p.image).collect();
        images.sort_unstable();
        images.dedup();
        images.sort_by_key(|i| names.name(*i));
        let at: HashMap<u32, usize> = images.iter().enumerate().map(|(i, image)| (*image, i)).collect();
        let classes: HashMap<u32, usize> =
            task.classes.iter().enumerate().filter_map(|(i, c)| names.find(c).map(|n| (n, i))).collect();
        let n = task.classes.len();
        let (mut scores, mut labels) = (vec![vec![f64::NAN; images.len()]; n], vec![vec![0; images.len()]; n]);
        for p in predictions {
            if let (Some(&i), Some(&c)) = (at.get(&p.image), classes.get(&p.class)) {
                scores[c][i] = p.score;
                labels[c][i] = u8::from(p.label);
            }
        }
        let by_score = |scores: &Vec<f64>| {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            order
        };
        let order = scores.iter().map(by_score).collect();
        Table { images, scores, labels, order }
    }

    /// What metrics of predictions are given.
    pub fn view<'a>(&'a self, task: &'a Task) -> Predictions<'a> {
        Predictions { task, scores: &self.scores, labels: &self.labels }
    }

    /// The task of one class: its scores and labels beside their complements.
    pub(crate) fn of_class(&self, class: usize) -> (Vec<Vec<f64>>, Vec<Vec<u8>>) {
        let (scores, labels) = (self.scores[class].clone(), self.labels[class].clone());
        let complements = (scores.iter().map(|s| 1.0 - s).collect(), labels.iter().map(|l| 1 - l).collect());
        (vec![complements.0, scores], vec![complements.1, labels])
    }

    /// Patients with and without a class, of the class of which there are fewest in either.
    pub(crate) fn patients(&self, patients: &[u32], task: &Task) -> (usize, usize) {
        let all: HashSet<u32> = patients.iter().copied().collect();
        let of = |class: usize| {
            let mine = patients.iter().zip(&self.labels[class]).filter(|(_, label)| **label == 1).map(|(p, _)| *p);
            let positives = mine.collect::<HashSet<u32>>().len();
            (positives, all.len() - positives)
        };
        task.scored().into_iter().map(of).min_by_key(|(p, n)| *p.min(n)).unwrap_or_default()
    }

    /// The table of those images whose number in `kept` is not 0.
    pub(crate) fn kept(&self, kept: &[u8], task: &Task) -> Table {
        fn draw<T: Copy>(values: &[T], kept: &[u8], order: &[usize]) -> Vec<T> {
            order.iter().filter(|i| kept[**i] != 0).map(|&i| values[i]).collect()
        }
        let scored = task.scored();
        fn part<T: Copy>(all: &[Vec<T>], kept: &[u8], order: &[Vec<usize>], scored: &[usize]) -> Vec<Vec<T>> {
            let one = |c: usize| if scored.contains(&c) { draw(&all[c], kept, &order[c]) } else { vec![] };
            (0..all.len()).map(one).collect()
        }
        Table {
            images: vec![],
            scores: part(&self.scores, kept, &self.order, &scored),
            labels: part(&self.labels, kept, &self.order, &scored),
            order: vec![],
        }
    }
}
