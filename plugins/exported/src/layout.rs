//! How the values of a program lie: which are feature maps, channels first or last, and which are tokens of a grid. Found by
//! following the values from the images through the operators that move axes; whatever else keeps a value's sizes keeps its
//! layout.

use crate::program::{Dim, Id, Input, Node, Num, Program};
use std::collections::HashMap;

/// How a value's axes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// [B, C, grid...].
    First(Vec<usize>),
    /// [B, grid..., C].
    Last(Vec<usize>),
    /// [B, C, places of the grid].
    Flat(Vec<usize>),
    /// [B, prefix + places of the grid, C].
    Tokens { grid: Vec<usize>, prefix: usize },
}

impl Layout {
    /// Sizes of its grid.
    pub fn grid(&self) -> &[usize] {
        match self {
            Layout::First(grid) | Layout::Last(grid) | Layout::Flat(grid) | Layout::Tokens { grid, .. } => grid,
        }
    }

    /// The same order of axes with the grid of these sizes.
    fn resized(&self, shape: &[Dim]) -> Option<Layout> {
        let rank = self.grid().len() + 2;
        let grid = |dims: &[Dim]| -> Option<Vec<usize>> {
            dims.iter().map(|d| if let Dim::Is(n) = d { Some(*n as usize) } else { None }).collect()
        };
        match self {
            Layout::First(_) if shape.len() == rank => grid(&shape[2..]).map(Layout::First),
            Layout::Last(_) if shape.len() == rank => grid(&shape[1..rank - 1]).map(Layout::Last),
            _ => None,
        }
    }

    /// Whether a value of these sizes can lie so, whatever its channels.
    fn fits(&self, shape: &[Dim]) -> bool {
        let places = |grid: &[usize]| grid.iter().product::<usize>() as i64;
        let is_grid = |dims: &[Dim], grid: &[usize]| {
            dims.len() == grid.len() && dims.iter().zip(grid).all(|(d, n)| *d == Dim::Is(*n as i64))
        };
        shape.first() == Some(&Dim::Batch)
            && match self {
                Layout::First(grid) => shape.len() == grid.len() + 2 && is_grid(&shape[2..], grid),
                Layout::Last(grid) => shape.len() == grid.len() + 2 && is_grid(&shape[1..shape.len() - 1], grid),
                Layout::Flat(grid) => shape.len() == 3 && shape[2] == Dim::Is(places(grid)),
                Layout::Tokens { grid, prefix } => {
                    shape.len() == 3 && shape[1] == Dim::Is(places(grid) + *prefix as i64)
                }
            }
    }
}

/// Whole numbers of an argument that is a list of them.
fn ints(input: Option<&Input>) -> Vec<i64> {
    match input {
        Some(Input::Ints(all)) => all.iter().map(|n| if let Num::Is(n) = n { *n } else { i64::MIN }).collect(),
        Some(Input::Int(n)) => vec![*n],
        _ => vec![],
    }
}

fn int(input: Option<&Input>, default: i64) -> i64 {
    match input {
        Some(Input::Int(n)) => *n,
        _ => default,
    }
}

/// Operators that keep the order of the axes and may change their sizes.
const RESIZES: [&str; 12] = [
    "aten.max_pool",
    "aten.avg_pool",
    "aten.adaptive_max_pool",
    "aten.adaptive_avg_pool",
    "aten.lp_pool",
    "aten.upsample_",
    "aten.pad",
    "aten.constant_pad",
    "aten.reflection_pad",
    "aten.slice",
    "aten.cat",
    "aten.roll",
];

/// The layout of each value, where it is known. `told` are values whose layout is known from elsewhere.
pub fn layouts(program: &Program, depends: &[bool], told: &HashMap<Id, Layout>) -> Vec<Option<Layout>> {
    let mut found: Vec<Option<Layout>> = vec![None; program.values.len()];
    let images = program.values[program.images].shape.clone().unwrap_or_default();
    let grid = |dims: &[Dim]| -> Option<Vec<usize>> {
        dims.iter().map(|d| if let Dim::Is(n) = d { Some(*n as usize) } else { None }).collect()
    };
    found[program.images] = images.get(2..).and_then(grid).map(Layout::First);
    let axes = images.len();
    // The grid of the last map whose channels come last: windows are put together to it again.
    let mut last_grid: Option<Vec<usize>> = None;
    for node in &program.nodes {
        for id in &node.outputs {
            let Some(id) = id.filter(|id| depends[*id]) else { continue };
            let Some(shape) = &program.values[id].shape else { continue };
            if shape.first() != Some(&Dim::Batch) {
                continue;
            }
            let layout =
                told.get(&id).cloned().map(Some).or_else(|| moved(program, node, &found)).unwrap_or_else(|| {
                    // A convolution of images makes maps of them, whatever it is told of its input.
                    if node.operator().starts_with("aten.conv") && shape.len() == axes {
                        return grid(&shape[2..]).map(Layout::First);
                    }
                    kept(node, &found, shape).or_else(|| {
                        let resized = RESIZES.iter().any(|name| node.operator().starts_with(name));
                        node.reads().filter(|_| resized).find_map(|id| found[id].as_ref()?.resized(shape))
                    })
                });
            let together = || last_grid.clone().map(Layout::Last).filter(|_| shape.len() == axes);
            found[id] = layout.or_else(together).filter(|layout| layout.fits(shape));
            if let Some(Layout::Last(grid)) = &found[id] {
                last_grid = Some(grid.clone());
            }
        }
    }
    found
}

/// What a value lies like whose sizes, but for its channels, are those of an argument.
fn kept(node: &Node, found: &[Option<Layout>], shape: &[Dim]) -> Option<Layout> {
    let mut all = node.reads().filter_map(|id| found[id].clone());
    all.find(|layout| layout.fits(shape))
}

/// The layout that an operator which moves axes makes; `None` where it is none of these.
fn moved(program: &Program, node: &Node, found: &[Option<Layout>]) -> Option<Option<Layout>> {
    let of = |id: Id| found[id].clone();
    let from = node.value(0).and_then(of);
    let out = node.outputs.first().copied().flatten()?;
    let shape = program.values[out].shape.clone().unwrap_or_default();
    Some(match node.operator() {
        "aten.permute" => {
            let rank = shape.len() as i64;
            let order: Vec<i64> = ints(node.inputs.get(1)).iter().map(|d| d.rem_euclid(rank.max(1))).collect();
            let to_last: Vec<i64> = [vec![0], (2..rank).collect(), vec![1]].concat();
            let to_first: Vec<i64> = [vec![0, rank - 1], (1..rank - 1).collect()].concat();
            match from? {
                Layout::First(grid) if order == to_last => Some(Layout::Last(grid)),
                Layout::Last(grid) if order == to_first => Some(Layout::First(grid)),
                Layout::Flat(grid) if order == [0, 2, 1] => Some(Layout::Tokens { grid, prefix: 0 }),
                Layout::Tokens { grid, prefix: 0 } if order == [0, 2, 1] => Some(Layout::Flat(grid)),
                _ => None,
            }
        }
        "aten.transpose" => {
            let rank = shape.len() as i64;
            let mut axes = [int(node.inputs.get(1), 0), int(node.inputs.get(2), 0)].map(|d| d.rem_euclid(rank.max(1)));
            axes.sort_unstable();
            match from? {
                Layout::Flat(grid) if axes == [1, 2] => Some(Layout::Tokens { grid, prefix: 0 }),
                Layout::Tokens { grid, prefix: 0 } if axes == [1, 2] => Some(Layout::Flat(grid)),
                _ => None,
            }
        }
        "aten.flatten" | "aten.view" | "aten.reshape" | "aten.unflatten" | "aten._unsafe_view" => {
            let from = from?;
            let grid = from.grid().to_vec();
            // Axes that are joined or split, never exchanged: what was in front stays in front.
            let candidates = match from {
                Layout::First(_) | Layout::Flat(_) => vec![Layout::First(grid.clone()), Layout::Flat(grid)],
                Layout::Last(_) | Layout::Tokens { prefix: 0, .. } => {
                    vec![Layout::Last(grid.clone()), Layout::Tokens { grid, prefix: 0 }]
                }
                tokens => vec![tokens],
            };
            candidates.into_iter().find(|layout| layout.fits(&shape))
        }
        "aten.cat" => {
            let Some(Input::Tensors(parts)) = node.inputs.first() else { return None };
            let axis = int(node.inputs.get(1), 0);
            let tokens = |id: &Option<Id>| matches!(id.and_then(of), Some(Layout::Tokens { .. }));
            if axis != 1 && axis != -2 || !parts.iter().any(tokens) {
                return None;
            }
            let at = parts.iter().position(tokens)?;
            let Some(Layout::Tokens { grid, prefix }) = parts[at].and_then(of) else { return None };
            // Tokens behind the grid's have no place in it.
            let count = |id: &Option<Id>| match id.and_then(|id| program.values[id].shape.as_ref()?.get(1).copied()) {
                Some(Dim::Is(n)) => Some(n as usize),
                _ => None,
            };
            let before: Option<usize> = parts[..at].iter().map(count).sum();
            before.filter(|_| at + 1 == parts.len()).map(|n| Layout::Tokens { grid, prefix: prefix + n })
        }
        "aten.slice" => match from? {
            Layout::Tokens { grid, prefix } if int(node.inputs.get(1), 0) == 1 => {
                let cut = int(node.inputs.get(2), 0);
                (0..=prefix as i64).contains(&cut).then(|| Layout::Tokens { grid, prefix: prefix - cut as usize })
            }
            _ => return None,
        },
        "aten.select" | "aten.softmax" | "aten.matmul" | "aten.unbind" => None,
        _ => return None,
    })
}
