//! Citations as BibTeX, from the references that plugins and metrics state.

use crate::run::manifest::RunManifest;
use lightbox_sdk::spec::Reference;
use std::collections::BTreeSet;

/// An entry of a reference.
fn entry(key: &str, of: &Reference) -> String {
    let escape = |t: &str| t.replace('&', "\\&").replace('_', "\\_").replace('%', "\\%");
    let mut fields = Vec::new();
    if !of.authors.is_empty() {
        let authors = of.authors.replace(" and contributors", " and others").replace(" et al.", " and others");
        fields.push(("author", escape(&authors.replace(", ", " and "))));
    }
    fields.push(("title", format!("{{{}}}", escape(&of.title))));
    fields.extend((!of.venue.is_empty()).then(|| ("howpublished", escape(&of.venue))));
    fields.extend((of.year > 0).then(|| ("year", of.year.to_string())));
    if let Some(number) = of.id.strip_prefix("arXiv:") {
        fields.extend([("eprint", number.to_string()), ("archiveprefix", "arXiv".into())]);
    } else if of.id.starts_with("10.") {
        fields.push(("doi", of.id.clone()));
    }
    let fields: Vec<String> = fields.into_iter().map(|(k, v)| format!("  {k} = {{{v}}}")).collect();
    format!("@misc{{{key},\n{}\n}}\n", fields.join(",\n"))
}

/// Entries of all models, explainers and metrics of a run, each reference once. What was not published has none.
pub fn all(about: &RunManifest) -> String {
    let mut seen = BTreeSet::new();
    let mut text = String::new();
    let mut add = |kind: &str, name: &str, of: &Reference| {
        if !of.authors.is_empty() && seen.insert(of.full()) {
            text += &entry(&format!("{kind}-{name}"), of);
            text.push('\n');
        }
    };
    for m in &about.models {
        add("model", &m.name, &m.reference);
    }
    for e in &about.explainers {
        add("explainer", &e.name, &e.reference);
    }
    for m in &about.metrics {
        add("metric", m.spec["name"].as_str().unwrap_or_default(), &m.reference);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_says_who_published_it() {
        for spec in lightbox_core::metrics::all().iter().map(|m| m.spec()) {
            let r = &spec.reference;
            assert!(!r.authors.is_empty() && !r.title.is_empty() && r.year > 1900, "{}: {r:?}", spec.name);
            let found = entry(spec.name, r);
            assert!(found.matches('{').count() == found.matches('}').count(), "{found}");
        }
    }

    #[test]
    fn a_reference_becomes_its_fields() {
        let hit = Reference::new("Zhang et al.", "Top-down, 1 & 2", "ECCV", 2016, "arXiv:1608.00507");
        assert_eq!(
            entry("metric-hit", &hit),
            "@misc{metric-hit,\n  author = {Zhang and others},\n  title = {{Top-down, 1 \\& 2}},\n  howpublished = {ECCV},\n  \
             year = {2016},\n  eprint = {1608.00507},\n  archiveprefix = {arXiv}\n}\n"
        );
        assert_eq!(hit.full(), "Zhang et al.: Top-down, 1 & 2, ECCV 2016, arXiv:1608.00507");
        let found = entry("k", &Reference::new("Caron, Joulin", "Emerging", "", 0, "10.1/x_y"));
        assert!(found.contains("author = {Caron and Joulin}") && found.contains("doi = {10.1/x_y}"), "{found}");
        assert!(!found.contains("year") && !found.contains("howpublished"), "{found}");
    }
}
