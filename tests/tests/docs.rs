//! The pages that are made from what plugins say are those that the plugins say now.

use lightbox_tests::succeed;
use std::path::Path;

#[test]
fn the_reference_of_explainers_is_that_of_the_plugins() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let page = std::fs::read_to_string(docs.join("explainers.md")).unwrap();
    let now = succeed(&["reference", "--pictures", "explainers"]);
    let other = page.lines().zip(now.lines()).find(|(a, b)| a != b);
    assert!(page == now, "docs/explainers.md is not what the plugins say: `cargo xtask docs` makes it anew; {other:?}");
    let listed: serde_json::Value = serde_json::from_str(&succeed(&["list", "explainers", "--json"])).unwrap();
    for explainer in listed["explainers"].as_array().unwrap() {
        let name = explainer["name"].as_str().unwrap();
        let picture = docs.join("explainers").join(format!("{name}.png"));
        // What reads a file of the user's applies to no model until it is named.
        let applies = !explainer["applies"].as_array().unwrap().is_empty();
        assert!(picture.is_file() == applies, "{name} has no picture: `cargo xtask docs` makes it");
        for key in ["formula", "cost", "title"] {
            assert!(!explainer[key].as_str().unwrap().is_empty(), "{name} has no {key}");
        }
        let models =
            explainer["applies"].as_array().unwrap().len() + explainer["not_applicable"].as_object().unwrap().len();
        assert!(models > 20, "{name} says nothing of some models");
    }
}

#[test]
fn the_reference_of_metrics_is_what_they_say() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let page = std::fs::read_to_string(docs.join("metrics.md")).unwrap();
    let now = succeed(&["reference", "metrics"]);
    let other = page.lines().zip(now.lines()).find(|(a, b)| a != b);
    assert!(page == now, "docs/metrics.md is not what the metrics say: `cargo xtask docs` makes it anew; {other:?}");
    let listed: serde_json::Value = serde_json::from_str(&succeed(&["list", "metrics", "--json"])).unwrap();
    let list = succeed(&["list", "metrics"]);
    for metric in listed["metrics"].as_array().unwrap() {
        let name = metric["name"].as_str().unwrap();
        for key in ["formula", "chance", "cost", "title", "edge_cases", "family"] {
            assert!(!metric[key].as_str().unwrap().is_empty(), "{name} has no {key}");
        }
        assert!(page.contains(&format!("\n### {name}\n")) && list.contains(&format!("  {name} ")), "{name}");
        let info = succeed(&["info", name]);
        for key in ["formula", "better", "range", "chance", "cost", "edge cases", "reference"] {
            assert!(info.contains(&format!("\n{key}")), "{name}: {info}");
        }
    }
    // The spec that runs them all has them all, and all explainers.
    let spec: serde_json::Value = serde_json::from_str(&succeed(&["info", "all-metrics", "--json"])).unwrap();
    let names = |v: &serde_json::Value| {
        let mut all: Vec<String> =
            v.as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap().to_string()).collect();
        all.sort();
        all
    };
    assert_eq!(names(&listed["metrics"]), names(&spec["metrics"]));
    let explainers: serde_json::Value = serde_json::from_str(&succeed(&["info", "all-explainers", "--json"])).unwrap();
    assert_eq!(names(&explainers["explainers"]), names(&spec["explainers"]));
}

/// The schemas of result files are those of the types that are written.
#[test]
fn the_schemas_are_those_of_the_types() {
    for (name, page) in [("summary", "summary-4"), ("comparisons", "comparisons-1")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/schemas/{page}.schema.json"));
        let now = succeed(&["reference", name]);
        let page = std::fs::read_to_string(&path).unwrap();
        assert!(page == now, "{} is not what is written: `cargo xtask docs` makes it anew", path.display());
    }
}

/// Every explainer is in the built-in spec that runs them all.
#[test]
fn all_explainers_holds_all_explainers() {
    let listed: serde_json::Value = serde_json::from_str(&succeed(&["list", "explainers", "--json"])).unwrap();
    let spec: serde_json::Value = serde_json::from_str(&succeed(&["info", "all-explainers", "--json"])).unwrap();
    let names = |v: &serde_json::Value| {
        // But for what applies to nothing until a file of the user's is named.
        let given = |e: &&serde_json::Value| e["applies"].as_array().is_none_or(|a| !a.is_empty());
        let all = v["explainers"].as_array().unwrap().iter().filter(given);
        let mut all: Vec<String> = all.map(|e| e["name"].as_str().unwrap().to_string()).collect();
        all.sort();
        all
    };
    assert_eq!(names(&listed), names(&spec));
}
