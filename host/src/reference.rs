//! `lightbox reference`: the reference of all explainers as Markdown, from what plugins say of themselves, and that of all
//! metrics.

use crate::error::Result;
use crate::list::{Asked, family, kind_of, models_of, planned, range};
use crate::registry::Registry;
use lightbox_sdk::params::ParamSpec;
use lightbox_sdk::spec::{Family, Plan, Reference};
use std::fmt::Write;

/// What the page is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// All explainers, as Markdown
    Explainers,
    /// All metrics, as Markdown
    Metrics,
    /// The JSON schema of a run's summary.json
    Summary,
    /// The JSON schema of a run's comparisons.json
    Comparisons,
}

/// Families of metrics in the order of the page, with their headings.
const OF_METRICS: [(&str, &str); 6] = [
    ("classification", "Classification"),
    ("localisation", "Localisation: does the map lie on the finding?"),
    ("faithfulness", "Faithfulness: does the map say what the model looks at?"),
    ("robustness", "Robustness: does the map stay when nothing changes?"),
    ("randomisation", "Randomisation: does the map depend on the model and the class?"),
    ("complexity", "Complexity: how much does the map say at once?"),
];

/// The page of metrics.
pub fn metrics() -> String {
    let mut text = String::from(
        "# Metrics\n\nMade by `cargo xtask docs` from what the metrics say of themselves; `lightbox info NAME` shows the same. a is a map, \
         g a mask, N the number of pixels, x the normalised image, s the explained class's score (softmax or sigmoid), f its \
         logit. A cost is for one image beyond its explanation. Conventions, oracles and statistics are in [the \
         reference](reference.md).\n",
    );
    for (family, heading) in OF_METRICS {
        let _ = write!(text, "\n## {heading}\n");
        for m in lightbox_core::metrics::all().iter().map(|m| m.spec()).filter(|m| m.family == family) {
            let level = match m.level {
                lightbox_core::metrics::Level::Image => "an image; tables show the mean",
                lightbox_core::metrics::Level::Set => "a set",
            };
            let unit = if m.unit.is_empty() { String::new() } else { format!(", {}", m.unit) };
            let _ =
                write!(text, "\n### {}\n\n**{}**. {}.\n\n    {}\n\n", m.name, m.title, m.reference.full(), m.formula);
            let _ = writeln!(
                text,
                "{} is better; {}{unit}; a value of {level}. Chance: {}. Cost: {}. Edge cases: {}.",
                if m.better == lightbox_core::metrics::Better::Higher { "Higher" } else { "Lower" },
                range(&m),
                m.chance,
                m.cost,
                m.edge_cases
            );
            parameters(&mut text, &m.parameters);
        }
    }
    text
}

/// A table of parameters; nothing where there are none.
fn parameters(text: &mut String, specs: &[ParamSpec]) {
    if !specs.is_empty() {
        text.push_str("\n| parameter | default | values | what |\n|---|---|---|---|\n");
    }
    for p in specs {
        let unit = if p.unit.is_empty() { String::new() } else { format!(", in {}", p.unit) };
        let (kind, default) = (cell(&kind_of(&p.kind)), cell(&p.default.to_string()));
        let _ = writeln!(text, "| `{}` | `{default}` | {kind}{} | {} |", p.name, cell(&unit), cell(&p.text));
    }
}

/// Families in the order of the page, with their headings.
const FAMILIES: [(Family, &str); 7] = [
    (Family::Cam, "Class activation maps"),
    (Family::Attention, "Attention"),
    (Family::Relevance, "Relevance"),
    (Family::Gradient, "Gradients at the image"),
    (Family::Perturbation, "Perturbations"),
    (Family::Other, "Others"),
    (Family::Control, "Controls"),
];

/// A link to what a reference's id names.
fn link(reference: &Reference) -> String {
    match reference.id.split_once(':') {
        Some(("arXiv", number)) => format!(" [arXiv:{number}](https://arxiv.org/abs/{number})"),
        _ if reference.id.starts_with("10.") => format!(" [doi:{0}](https://doi.org/{0})", reference.id),
        _ if reference.id.is_empty() => String::new(),
        _ => format!(" {}", reference.id),
    }
}

/// What stands in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// The page. `pictures`: a folder, as a link from the page, that has a picture `NAME.png` of each explainer.
pub fn markdown(registry: &Registry, pictures: Option<&str>) -> Result<String> {
    let all = planned(registry)?;
    let mut text = String::from(
        "# Explainers\n\nMade by `cargo xtask docs` from what the plugins say of themselves; `lightbox info NAME` shows the same. \
         S is the target's logit unless the method's parameter `score` says otherwise, x the normalised image, A a layer's \
         value, G or dS/dA its gradient. A cost is for one image: F a forward pass, P a forward pass of the part after a site, \
         B a backward pass. What needs values and gradients of sites alone shares its passes with all others that do. Pictures \
         show one phantom whose nodule is outlined, on the first model of the built-in spec `all-explainers` that the method \
         applies to.\n",
    );
    for (of, heading) in FAMILIES {
        let mine: Vec<&Asked<'_>> = all.iter().filter(|(_, e, _)| e.family == of).collect();
        if mine.is_empty() {
            continue;
        }
        let _ = write!(text, "\n## {heading}\n");
        for (found, e, plans) in mine {
            let _ = write!(text, "\n### {}\n\n**{}**", e.name, e.title);
            let signed = if e.signed { ", signed" } else { "" };
            let plugin = found.manifest.plugin.trim_start_matches("lightbox-plugin-");
            let _ = write!(
                text,
                " ({}{signed}; plugin `{plugin}`). {}.",
                family(e.family),
                e.reference.citation().trim_end_matches('.')
            );
            let _ = writeln!(text, "{}", link(&e.reference));
            // What needs a file of the user's has none.
            let applies = plans.iter().any(|(_, plan)| matches!(plan, Ok(Plan::Run(_))));
            if let Some(folder) = pictures.filter(|_| applies) {
                let _ = write!(text, "\n![{0}]({folder}/{0}.png)\n", e.name);
            }
            if !e.formula.is_empty() {
                let _ = write!(text, "\n    {}\n", e.formula);
            }
            let _ = write!(text, "\nCost: {}. Applies to: {}.", e.cost, models_of(registry, plans));
            // One reason a plugin: that of the first of its models.
            for plugin in &registry.found {
                let first = plugin.manifest.models.iter().find_map(|m| {
                    plans.iter().find_map(|(name, plan)| match plan {
                        Ok(Plan::NotApplicable { reason }) if *name == m.name => Some(reason),
                        _ => None,
                    })
                });
                if let Some(reason) = first {
                    let _ = write!(text, " Not applicable: {reason}.");
                }
            }
            if let Some((model, Err(error))) = plans.iter().find(|(_, p)| p.is_err()) {
                let _ = write!(text, " Error on {model}: {error}.");
            }
            text.push('\n');
            if !e.notes.is_empty() {
                let _ = write!(text, "\n{}\n", e.notes);
            }
            parameters(&mut text, &e.parameters);
        }
    }
    Ok(text)
}
