//! The tables of a run, from its summary: rows are models, or explainers or metrics where there are many; then by class, and what
//! a planted shortcut does. What happened to maps stands below the first.

use crate::metrics::Level;
use crate::stats::interval::LEAST;
use crate::summary::{CHANCE, Column, MARKED, Seconds, ShownMetric, State, Summary};
use crate::table::{Cell, Group, Row, Table};

/// More columns of maps than this, and a row is an explainer.
const WIDE: usize = 12;
/// More metrics of maps than this, and a row is a metric (where rows are not explainers).
const MANY: usize = 6;

/// What a value's deviation is over.
fn spread(summary: &Summary) -> String {
    match (summary.folds > 1, summary.seeds > 1) {
        (true, false) => format!("Mean and standard deviation over {} folds", summary.folds),
        (true, true) => format!(
            "Mean over {} folds of {} trainings each, and standard deviation over folds",
            summary.folds, summary.seeds
        ),
        (false, true) => format!("Mean and standard deviation over {} trainings of one fold", summary.seeds),
        (false, false) => "One fold, one training".into(),
    }
}

/// A row an explainer: a group a metric of maps and one of seconds, a column a model.
fn by_explainer(
    summary: &Summary,
    title: &str,
    metrics: &[&ShownMetric],
    cell: &dyn Fn(&str, &str, &str, &ShownMetric) -> Cell,
) -> Option<Table> {
    if metrics.is_empty() {
        return None;
    }
    let chance = Column { explainer: CHANCE.into(), output: String::new() };
    let chance = metrics.iter().any(|m| m.has_chance).then_some(&chance);
    let mut groups: Vec<Group> = Vec::new();
    for metric in metrics {
        let mean = if metric.level == Level::Image { ", mean over images" } else { "" };
        groups.push(Group { title: format!("{}{mean}", metric.short), columns: summary.models.clone() });
    }
    if !summary.seconds.is_empty() {
        groups.push(Group { title: "seconds an image".into(), columns: summary.models.clone() });
    }
    let seconds = |model: &String, column: &Column| {
        let is_mine = |s: &&Seconds| s.model == *model && s.explainer == column.explainer;
        match summary.seconds.iter().find(is_mine) {
            Some(found) => Cell::number(found.seconds),
            None => Cell::NotApplicable { reason: "it was not run".into() },
        }
    };
    let mut rows = Vec::new();
    for column in summary.columns.iter().chain(chance) {
        let mut cells: Vec<Cell> = Vec::new();
        for metric in metrics {
            cells.extend(summary.models.iter().map(|m| match column.explainer == CHANCE && !metric.has_chance {
                true => Cell::NotApplicable { reason: "a constant map says nothing of this metric".into() },
                false => cell(m, &column.explainer, &column.output, metric),
            }));
        }
        if !summary.seconds.is_empty() {
            cells.extend(summary.models.iter().map(|m| seconds(m, column)));
        }
        rows.push(Row { title: column.title(), cells });
    }
    let mut notes = vec![format!("{}.", spread(summary))];
    if title.is_empty() {
        notes.extend(summary.notes.clone());
    }
    if !summary.seconds.is_empty() {
        notes.push(
            "Seconds are those of an explainer's own code, beyond the run that all share; they differ by run.".into(),
        );
    }
    let title = if title.is_empty() { summary.title.clone() } else { title.to_string() };
    Some(Table { title, groups, rows, by_explainer: true, by_class: false, of_model: String::new(), notes })
}

/// Tables with a row an explainer: one, or of many metrics one a family, in parts that are not too wide.
fn by_explainers(
    summary: &Summary,
    maps: &[&ShownMetric],
    cell: &dyn Fn(&str, &str, &str, &ShownMetric) -> Cell,
) -> Vec<Table> {
    if maps.len() <= MANY {
        return by_explainer(summary, "", maps, cell).into_iter().collect();
    }
    let mut families: Vec<&str> = Vec::new();
    for metric in maps {
        if !families.contains(&metric.family.as_str()) {
            families.push(&metric.family);
        }
    }
    let most = (WIDE / summary.models.len().max(1)).max(1);
    let mut tables = Vec::new();
    for family in families {
        let mine: Vec<&ShownMetric> = maps.iter().copied().filter(|m| m.family == *family).collect();
        for (part, metrics) in mine.chunks(most).enumerate() {
            let number = if part > 0 { format!(", {}", part + 1) } else { String::new() };
            let title = if tables.is_empty() { String::new() } else { format!("{family}{number}") };
            tables.extend(by_explainer(summary, &title, metrics, cell));
        }
    }
    tables
}

/// Of many metrics a table a model, with a row a metric; `notes` stand below the first.
fn by_metrics(
    summary: &Summary,
    metrics: &[&ShownMetric],
    cell: &dyn Fn(&str, &str, &str, &ShownMetric) -> Cell,
    notes: Vec<String>,
) -> Vec<Table> {
    let chance = metrics.iter().any(|m| m.has_chance);
    let mut columns: Vec<String> = summary.columns.iter().map(Column::title).collect();
    columns.extend(chance.then(|| CHANCE.to_string()));
    let mut notes = Some(notes);
    let table = |model: &String| {
        let row = |m: &&ShownMetric| {
            let mut cells: Vec<Cell> =
                summary.columns.iter().map(|c| cell(model, &c.explainer, &c.output, m)).collect();
            let none = || Cell::NotApplicable { reason: "a constant map says nothing of this metric".into() };
            cells.extend(chance.then(|| if m.has_chance { cell(model, CHANCE, "", m) } else { none() }));
            Row { title: m.short.clone(), cells }
        };
        let title = "mean over images, or value of the set".into();
        Table {
            title: model.clone(),
            groups: vec![Group { title, columns: columns.clone() }],
            rows: metrics.iter().map(row).collect(),
            by_explainer: false,
            by_class: false,
            of_model: model.clone(),
            notes: notes.take().unwrap_or_default(),
        }
    };
    summary.models.iter().map(table).collect()
}

/// A table a model with a row a class, in tasks of several: metrics of predictions, and of maps (all where they are few, else the
/// first).
fn by_class(summary: &Summary) -> Vec<Table> {
    let none = || Cell::NotApplicable { reason: "no test image of the class that can be scored".into() };
    let mut tables = Vec::new();
    let maps: Vec<&ShownMetric> = summary.metrics.iter().filter(|m| m.of_maps && m.level == Level::Image).collect();
    let maps = &maps[..if maps.len() <= MANY { maps.len() } else { 1 }];
    for model in &summary.models {
        let values: Vec<_> = summary.class_values.iter().filter(|v| v.model == *model).collect();
        let means: Vec<_> = summary.class_means.iter().filter(|m| m.model == *model).collect();
        let mut classes: Vec<&String> = Vec::new();
        for class in values.iter().map(|v| &v.class).chain(means.iter().map(|m| &m.class)) {
            if !classes.contains(&class) {
                classes.push(class);
            }
        }
        if classes.is_empty() {
            continue;
        }
        let predictions: Vec<&ShownMetric> =
            summary.metrics.iter().filter(|m| !m.of_maps && values.iter().any(|v| v.metric == m.label)).collect();
        let mut groups = Vec::new();
        if !predictions.is_empty() {
            let columns = predictions.iter().map(|m| m.short.clone()).collect();
            groups.push(Group { title: "classification".into(), columns });
        }
        let columns: Vec<String> = summary.columns.iter().map(Column::title).collect();
        groups.extend(maps.iter().map(|m| Group { title: m.short.clone(), columns: columns.clone() }));
        let row = |class: &&String| {
            let mut cells = Vec::new();
            for metric in &predictions {
                let found = values.iter().find(|v| v.class == **class && v.metric == metric.label);
                let found = found.and_then(|v| v.value);
                cells.push(found.map_or_else(none, |v| Cell::share(v, metric.unit == "share")));
            }
            for metric in maps {
                for column in 0..summary.columns.len() {
                    let found =
                        means.iter().find(|m| m.class == **class && m.metric == metric.label && m.column == column);
                    cells.push(found.map_or_else(none, |m| Cell::share(m.mean, metric.unit == "share")));
                }
            }
            let counted = |n: usize| if n == 1 { ", 1 image".to_string() } else { format!(", {n} images") };
            let images = values.iter().find(|v| v.class == **class).map(|v| counted(v.images));
            Row { title: format!("{class}{}", images.unwrap_or_default()), cells }
        };
        tables.push(Table {
            by_class: true,
            title: format!("{model}, by class"),
            groups,
            rows: classes.iter().map(row).collect(),
            by_explainer: false,
            of_model: model.clone(),
            notes: vec![
                "Each explanation counts with the class that it is of; the tables above are over all classes.".into(),
            ],
        });
    }
    tables
}

/// What a planted shortcut does to each model.
fn of_interventions(summary: &Summary) -> Option<Table> {
    let number = |value: Option<f64>, percent: bool| match value {
        Some(mean) => Cell::share(mean, percent),
        None => Cell::NotApplicable { reason: "no such image".into() },
    };
    let row = |e: &crate::intervention::Effect| {
        let cells = e.cells.iter().flatten().map(|v| number(*v, true));
        let mut all: Vec<Cell> = e.logit.iter().map(|v| number(*v, false)).collect();
        all.extend([number(e.auroc_without, true), number(e.auroc_with, true)]);
        Row { title: e.model.clone(), cells: all.into_iter().chain(cells).collect() }
    };
    let group =
        |title: &str, columns: [&str; 2]| Group { title: title.into(), columns: columns.map(String::from).to_vec() };
    (!summary.interventions.is_empty()).then(|| Table {
        title: "The planted shortcut, painted in and out".into(),
        groups: vec![
            group("rise of the logit, painted in", ["finding", "none"]),
            group("AUROC, all images", ["without it", "with it"]),
            group("score, finding", ["shortcut", "none"]),
            group("score, no finding", ["shortcut", "none"]),
        ],
        rows: summary.interventions.iter().map(row).collect(),
        by_explainer: false,
        by_class: false,
        of_model: String::new(),
        notes: vec![
            "Means over all test images; a model that follows the shortcut rises by it and needs it for its AUROC."
                .into(),
        ],
    })
}

/// What stands below the first table of failed and constant maps, and of cells over too few patients: each with the metrics in
/// which it happened.
fn faults(summary: &Summary) -> Vec<String> {
    #[derive(PartialEq)]
    enum Fault {
        Failed,
        Constant,
        Few,
    }
    let mut found: Vec<(Fault, String, usize, usize, Vec<&str>)> = Vec::new();
    let mut without = false;
    for cell in &summary.cells {
        let State::Value { maps, failed, constant, patients, interval, without_failures, .. } = &cell.state else {
            continue;
        };
        let Some(metric) = summary.metrics.iter().find(|m| m.label == cell.metric) else { continue };
        let column = Column { explainer: cell.explainer.clone(), output: cell.output.clone() };
        let place = format!("{} x {}", cell.model, column.title());
        let few = interval.is_none() && *patients > 0;
        without |= without_failures.is_some();
        let of_maps = metric.level == Level::Image && cell.explainer != CHANCE;
        for (fault, count, all, happened) in [
            (Fault::Failed, *failed, *maps, metric.level == Level::Image && *failed > 0),
            (Fault::Constant, *constant, *maps, of_maps && *constant > 0),
            (Fault::Few, *patients, 0, few),
        ] {
            // Too few patients are said once a run, not once a cell.
            let place = if fault == Fault::Few { String::new() } else { place.clone() };
            let same = |f: &&mut (Fault, String, usize, usize, Vec<&str>)| {
                (&f.0, &f.1, f.2, f.3) == (&fault, &place, count, all)
            };
            match found.iter_mut().find(same) {
                _ if !happened => {}
                Some((.., metrics)) if metrics.contains(&metric.short.as_str()) => {}
                Some((.., metrics)) => metrics.push(&metric.short),
                None => found.push((fault, place, count, all, vec![&metric.short])),
            }
        }
    }
    let mut notes: Vec<String> = Vec::new();
    for (fault, place, count, all, metrics) in found {
        let of = metrics.join(", ");
        let share = 100.0 * count as f64 / all.max(1) as f64;
        let marked = if count as f64 > MARKED * all as f64 { ", marked !" } else { "" };
        notes.push(match fault {
            Fault::Failed => format!(
                "{place}: {count} of {all} maps failed ({share:.1} %) in {of}, and count as the worst value or, where that has \
                 no end, in no mean{marked}."
            ),
            Fault::Constant => format!("{place}: {count} of {all} maps are constant and say nothing of any place ({of})."),
            Fault::Few => format!(
                "{of}: {count} patients are too few for an interval that holds what it says; from {LEAST} on there is one."
            ),
        });
    }
    if without {
        notes.push("In brackets: the mean without the maps that failed.".into());
    }
    notes
}

/// Metrics of predictions that are means over the classes and have no value, since a class has none: which metrics, which classes.
fn absent_classes(summary: &Summary) -> Option<String> {
    let without_value = |metric: &&ShownMetric| {
        let of = |c: &&crate::summary::Cell| c.metric == metric.label;
        !metric.of_maps
            && summary.cells.iter().filter(of).any(|c| matches!(c.state, State::NotApplicable { .. }))
            && summary.class_values.iter().any(|v| v.metric == metric.label && v.value.is_some())
    };
    let metrics: Vec<&str> = summary.metrics.iter().filter(without_value).map(|m| m.short.as_str()).collect();
    let mut classes: Vec<&str> = Vec::new();
    for v in summary.class_values.iter().filter(|v| v.value.is_none()) {
        if !classes.contains(&v.class.as_str()) {
            classes.push(&v.class);
        }
    }
    (!metrics.is_empty() && !classes.is_empty()).then(|| {
        format!(
            "{}: a mean over all classes, so N/A where the test images do not have a class both with and without it ({}); each \
             class's own value is below.",
            metrics.join(", "),
            classes.join(", ")
        )
    })
}

/// The tables of a summary: predictions and the first metric of maps together, then a table for each further one.
pub fn tables(summary: &Summary) -> Vec<Table> {
    type Key<'a> = (&'a str, &'a str, &'a str, &'a str);
    let cells: std::collections::HashMap<Key<'_>, &crate::summary::Cell> = summary
        .cells
        .iter()
        .map(|c| ((c.model.as_str(), c.explainer.as_str(), c.output.as_str(), c.metric.as_str()), c))
        .collect();
    let cell = |model: &str, explainer: &str, output: &str, metric: &ShownMetric| {
        let found = cells.get(&(model, explainer, output, metric.label.as_str()));
        let missing = Cell::NotApplicable { reason: "nothing was computed".into() };
        found.map_or(missing, |c| Cell::of(&c.state, metric.unit == "share"))
    };
    let predictions: Vec<&ShownMetric> = summary.metrics.iter().filter(|m| !m.of_maps).collect();
    let mut maps: Vec<&ShownMetric> = summary.metrics.iter().filter(|m| m.of_maps).collect();
    if summary.columns.is_empty() {
        maps.clear();
    }
    let mut tables = Vec::new();
    let wide = summary.columns.len() > WIDE;
    if wide {
        tables.extend(by_explainers(summary, &maps, &cell));
        // What is left is the models' own table.
        maps.clear();
    }
    let many = !wide && maps.len() > MANY;
    let by_metric: Vec<&ShownMetric> = if many { std::mem::take(&mut maps) } else { vec![] };
    for at in 0..maps.len().max(1) {
        if wide && predictions.is_empty() {
            break;
        }
        let metric = maps.get(at);
        let with = if at == 0 { predictions.as_slice() } else { &[] };
        let mut groups = Vec::new();
        if !with.is_empty() {
            let columns = with.iter().map(|m| m.short.clone()).collect();
            groups.push(Group { title: "classification".into(), columns });
        }
        if let Some(metric) = metric {
            let mut columns: Vec<String> = summary.columns.iter().map(Column::title).collect();
            columns.extend(metric.has_chance.then(|| CHANCE.to_string()));
            let mean = if metric.level == Level::Image { ", mean over images" } else { "" };
            groups.push(Group { title: format!("{}{mean}", metric.short), columns });
        }
        let row = |model: &String| {
            let mut cells: Vec<Cell> = with.iter().map(|m| cell(model, "", "", m)).collect();
            if let Some(metric) = metric {
                cells.extend(summary.columns.iter().map(|c| cell(model, &c.explainer, &c.output, metric)));
                cells.extend(metric.has_chance.then(|| cell(model, CHANCE, "", metric)));
            }
            Row { title: model.clone(), cells }
        };
        let rows = summary.models.iter().map(row).collect();
        let title = match (at, metric) {
            _ if wide => "Classification".into(),
            (0, _) | (_, None) => summary.title.clone(),
            (_, Some(metric)) => metric.short.clone(),
        };
        if wide {
            tables.push(Table {
                title,
                groups,
                rows,
                by_explainer: false,
                by_class: false,
                of_model: String::new(),
                notes: vec![],
            });
            break;
        }
        let spread = spread(summary);
        let notes = match at {
            0 => std::iter::once(format!("{spread}.")).chain(summary.notes.clone()).collect(),
            _ => vec![format!("{spread}.")],
        };
        if many && predictions.is_empty() {
            break;
        }
        tables.push(Table {
            title,
            groups,
            rows,
            by_explainer: false,
            by_class: false,
            of_model: String::new(),
            notes,
        });
    }
    if many {
        let notes = if tables.is_empty() { summary.notes.clone() } else { vec![] };
        tables.extend(by_metrics(summary, &by_metric, &cell, notes));
    }
    tables.extend(by_class(summary));
    tables.extend(of_interventions(summary));
    if let Some(first) = tables.first_mut() {
        first.notes.extend(absent_classes(summary));
        first.notes.extend(faults(summary));
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Better;
    use crate::table::csv;

    #[test]
    fn many_explainers_are_rows() {
        let metric = |label: &str, has_chance: bool| ShownMetric {
            label: label.into(),
            short: label.into(),
            level: Level::Image,
            better: Better::Higher,
            range: [0.0, 1.0],
            unit: "share".into(),
            family: "localisation".into(),
            of_maps: true,
            has_chance,
        };
        let explainers: Vec<String> = (0..WIDE + 1).map(|i| format!("e{i}")).collect();
        let value = |model: &str, explainer: &str, metric: &str, mean: f64| crate::summary::Cell {
            model: model.into(),
            explainer: explainer.into(),
            output: String::new(),
            metric: metric.into(),
            state: State::NotApplicable { reason: format!("{mean}") },
        };
        let mut summary = Summary {
            name: "n".into(),
            title: "Title".into(),
            folds: 1,
            seeds: 1,
            models: vec!["a".into(), "b".into()],
            columns: explainers.iter().map(|e| Column { explainer: e.clone(), output: String::new() }).collect(),
            metrics: vec![metric("ap", true), metric("deletion", false)],
            cells: vec![value("b", "e3", "ap", 0.5), value("a", CHANCE, "ap", 0.25)],
            class_values: vec![],
            class_means: vec![],
            interventions: vec![],
            seconds: vec![Seconds { model: "b".into(), explainer: "e3".into(), seconds: 0.5 }],
            notes: vec!["A note.".into()],
        };
        let tables = tables(&summary);
        // No metric of predictions: one table.
        let [table] = tables.as_slice() else { panic!("{} tables", tables.len()) };
        assert!(table.by_explainer && table.rows.len() == WIDE + 2 && table.groups.len() == 3);
        assert!(table.rows.iter().all(|r| r.cells.len() == 6));
        let cells = |title: &str| &table.rows.iter().find(|r| r.title == title).unwrap().cells;
        assert_eq!(cells("e3")[1], Cell::NotApplicable { reason: "0.5".into() });
        assert_eq!(cells("e3")[5], Cell::number(0.5));
        assert_eq!(cells(CHANCE)[0], Cell::NotApplicable { reason: "0.25".into() });
        assert!(matches!(&cells(CHANCE)[3], Cell::NotApplicable { reason } if reason.contains("a constant map")));
        assert!(table.terminal().contains("\nexplainer") && table.markdown().contains("| explainer |"));
        // In the CSV a line's model is a model.
        assert!(csv(&tables).contains("Title,b,\"ap, mean over images\",e3,n/a"), "{}", csv(&tables));
        summary.columns.truncate(WIDE);
        assert!(!super::tables(&summary)[0].by_explainer);
        // Of many metrics a model has a table, whose rows are metrics.
        summary.metrics = (0..MANY + 1).map(|i| metric(&format!("k{i}"), i == 0)).collect();
        summary.cells = vec![value("b", "e3", "k2", 0.5), value("a", CHANCE, "k0", 0.25)];
        let tables = super::tables(&summary);
        assert_eq!(tables.iter().map(|t| t.of_model.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(tables[1].rows.len() == MANY + 1 && tables[1].rows.iter().all(|r| r.cells.len() == WIDE + 1));
        assert_eq!(tables[1].rows[2].cells[3], Cell::NotApplicable { reason: "0.5".into() });
        assert_eq!(tables[0].rows[0].cells[WIDE], Cell::NotApplicable { reason: "0.25".into() });
        assert!(tables[0].terminal().contains("\nmetric") && tables[0].notes == ["A note."]);
        assert!(csv(&tables).contains("b,b,k2,e3,n/a"), "{}", csv(&tables));
        // Many of both: a family's metrics in tables of twelve columns.
        summary.columns.push(Column { explainer: "e12".into(), output: String::new() });
        let tables = super::tables(&summary);
        assert!(tables.len() == 2 && tables.iter().all(|t| t.by_explainer && t.groups.len() <= WIDE / 2 + 1));
    }
}
