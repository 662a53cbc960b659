//! Citations as BibTeX, from the references that plugins and metrics state: `Authors: Title, Venue Year, arXiv:NUMBER`.

use crate::run::manifest::RunManifest;
use std::collections::BTreeSet;

/// An entry of a reference. What cannot be told apart stays in the title.
fn entry(key: &str, citation: &str, id: &str) -> String {
    let citation = citation.split_whitespace().collect::<Vec<_>>().join(" ");
    let (author, rest) = match citation.split_once(": ") {
        Some((author, rest)) => (author.to_string(), rest.to_string()),
        None => (String::new(), citation.clone()),
    };
    let arxiv =
        |t: &str| t.split("arXiv:").nth(1).map(|n| n.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect());
    let number: Option<String> = arxiv(id).or_else(|| arxiv(&rest));
    let parts: Vec<&str> = rest.split(", ").filter(|p| !p.starts_with("arXiv:")).collect();
    let year = |part: &&str| {
        let digits: Vec<&str> = part.split(|c: char| !c.is_ascii_digit()).filter(|d| d.len() == 4).collect();
        digits.into_iter().rev().find(|d| d.starts_with("19") || d.starts_with("20")).map(str::to_string)
    };
    // The first part with a year ends where it appeared. It begins with that part or, where that is the year alone, before.
    let at = parts.iter().skip(1).position(|p| year(p).is_some()).map(|i| i + 1);
    let alone = |i: usize| i > 1 && parts[i].chars().all(|c| c.is_ascii_digit());
    let from = at.map(|i| if alone(i) { i - 1 } else { i });
    let title = parts[..from.unwrap_or(parts.len())].join(", ");
    let mut fields = Vec::new();
    let escape = |t: &str| t.replace('&', "\\&").replace('_', "\\_").replace('%', "\\%");
    if !author.is_empty() {
        fields.push(("author", escape(&author.replace(", ", " and ").replace(" et al.", " and others"))));
    }
    fields.push(("title", format!("{{{}}}", escape(title.trim_end_matches('.')))));
    if let Some((from, at)) = from.zip(at) {
        let year = year(&parts[at]).unwrap_or_default();
        let clean = |t: &str| t.trim_matches(|c: char| " ;,".contains(c)).to_string();
        let venue = clean(&parts[from..=at].join(", ").replacen(&year, "", 1));
        fields.extend((!venue.is_empty()).then(|| ("howpublished", escape(&venue))));
        fields.push(("year", year));
        let rest = clean(&parts[at + 1..].join(", "));
        fields.extend((!rest.is_empty()).then(|| ("note", escape(&rest))));
    }
    if let Some(number) = number.filter(|n| !n.is_empty()) {
        fields.extend([("eprint", number), ("archiveprefix", "arXiv".into())]);
    } else if id.starts_with("10.") {
        fields.push(("doi", id.into()));
    }
    let fields: Vec<String> = fields.into_iter().map(|(k, v)| format!("  {k} = {{{v}}}")).collect();
    format!("@misc{{{key},\n{}\n}}\n", fields.join(",\n"))
}

/// Entries of all models, explainers and metrics of a run, each reference once.
pub fn all(about: &RunManifest) -> String {
    let mut seen = BTreeSet::new();
    let mut text = String::new();
    let mut add = |kind: &str, name: &str, citation: &str, id: &str| {
        // A control of our own has no source.
        let own = citation.starts_with("Control") && id.is_empty();
        if !citation.is_empty() && !own && seen.insert(citation.to_string()) {
            text += &entry(&format!("{kind}-{name}"), citation, id);
            text.push('\n');
        }
    };
    for m in &about.models {
        add("model", &m.name, &m.citation, &m.id);
    }
    for e in &about.explainers {
        add("explainer", &e.name, &e.citation, &e.id);
    }
    for m in &about.metrics {
        let of = |key: &str| m.spec[key].as_str().unwrap_or_default().to_string();
        add("metric", &of("name"), &of("reference"), "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metrics_reference_is_an_entry() {
        for spec in lightbox_core::metrics::all().iter().map(|m| m.spec()) {
            let found = entry(spec.name, spec.reference, "");
            let field = |key: &str| found.lines().find(|l| l.starts_with(&format!("  {key} = "))).map(str::to_string);
            assert!(found.matches('{').count() == found.matches('}').count() && !found.contains(';'), "{found}");
            let title = field("title").unwrap();
            // A year stands in no title, but where it is a name.
            assert!(!title.contains(" 20") && !title.contains(" 19"), "{found}");
            if spec.reference.contains(':') && !spec.reference.starts_with("scikit-learn") {
                assert!(field("author").is_some(), "{found}");
            }
        }
    }

    #[test]
    fn a_reference_becomes_its_fields() {
        let found = entry("k", "Bach et al.: On Pixel-Wise Explanations, PLoS ONE 10(7), 2015, section 2", "");
        assert!(
            found.contains("title = {{On Pixel-Wise Explanations}}")
                && found.contains("howpublished = {PLoS ONE 10(7)}")
        );
        assert!(found.contains("year = {2015}") && found.contains("note = {section 2}"), "{found}");
        let found = entry(
            "metric-hit",
            "Zhang et al.: Top-down Neural Attention by Excitation Backprop, ECCV 2016, arXiv:1608.00507",
            "",
        );
        assert_eq!(
            found,
            "@misc{metric-hit,\n  author = {Zhang and others},\n  title = {{Top-down Neural Attention by Excitation Backprop}},\n  \
             howpublished = {ECCV},\n  year = {2016},\n  eprint = {1608.00507},\n  archiveprefix = {arXiv}\n}\n"
        );
        let found = entry("k", "Caron, Joulin: Emerging, Really, Properties, ICCV 2021", "10.1/x_y");
        assert!(
            found.contains("author = {Caron and Joulin}") && found.contains("title = {{Emerging, Really, Properties}}")
        );
        assert!(found.contains("doi = {10.1/x_y}"));
        assert!(
            entry("k", "scikit-learn average_precision_score", "")
                .contains("{{scikit-learn average\\_precision\\_score}}")
        );
    }
}
