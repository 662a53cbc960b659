//! The map of the code stays a map: no file of a crate needs, by way of others, itself, but that a file and the parts in its own
//! folder may know each other; and docs/architecture.md names files that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files under a folder, by their module's path.
fn modules(folder: &Path, path: &[String], all: &mut BTreeMap<Vec<String>, String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (place, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if place.is_dir() {
            modules(&place, &[path, &[name]].concat(), all);
        } else if let Some(stem) = name.strip_suffix(".rs") {
            let own = if ["lib", "mod", "main"].contains(&stem) { vec![] } else { vec![stem.to_string()] };
            all.insert([path, &own].concat(), code(&std::fs::read_to_string(&place).unwrap()));
        }
    }
}

/// A file without its comments and tests.
fn code(text: &str) -> String {
    let end = ["#[cfg(test)]\nmod tests", "#[cfg(test)]\npub mod tests"].iter().filter_map(|t| text.find(t)).min();
    let lines = text[..end.unwrap_or(text.len())].lines().map(|l| l.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// What follows `crate::` or `super::`: names, and where they end in a list each of its names.
fn paths(mut text: &str) -> Vec<Vec<String>> {
    let mut path = Vec::new();
    loop {
        if let Some(list) = text.strip_prefix('{') {
            // The names at the list's own depth.
            let (mut depth, mut ends, mut at_name) = (0, Vec::new(), true);
            for (at, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => at_name = true,
                    c if depth == 0 && at_name && !c.is_whitespace() => {
                        ends.push(word(&list[at..]).to_string());
                        at_name = false;
                    }
                    _ => {}
                }
            }
            return ends.into_iter().map(|end| [&path[..], &[end]].concat()).collect();
        }
        let name = word(text);
        path.push(name.to_string());
        match text[name.len()..].strip_prefix("::") {
            Some(rest) => text = rest,
            None => return vec![path],
        }
    }
}

/// Modules that a module names, without those that it is in.
fn needs(own: &[String], text: &str, all: &BTreeMap<Vec<String>, String>) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for key in ["crate::", "super::"] {
        for (at, _) in text.match_indices(key) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let (mut rest, mut base) = (&text[at + key.len()..], own.to_vec());
            if key == "crate::" {
                base.clear();
            } else {
                base.pop();
                while let Some(more) = rest.strip_prefix("super::") {
                    rest = more;
                    base.pop();
                }
            }
            for path in paths(rest) {
                let mut path = [&base[..], &path].concat();
                while !path.is_empty() && !all.contains_key(&path) {
                    path.pop();
                }
                if !path.is_empty() && !own.starts_with(&path) {
                    found.insert(path);
                }
            }
        }
    }
    found
}

#[test]
fn no_file_needs_itself() {
    for source in ["sdk/src", "core/src", "host/src"] {
        let mut all = BTreeMap::new();
        modules(&root().join(source), &[], &mut all);
        let mut left: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> =
            all.iter().map(|(own, text)| (own.clone(), needs(own, text, &all))).collect();
        assert!(left.values().map(BTreeSet::len).sum::<usize>() > all.len(), "{source}: the files were not read");
        // Files that need no other file that is left go, until none is left or only circles.
        loop {
            let free: Vec<Vec<String>> =
                left.iter().filter(|(_, n)| n.is_empty()).map(|(own, _)| own.clone()).collect();
            if free.is_empty() {
                break;
            }
            for own in free {
                left.remove(&own);
                for needs in left.values_mut() {
                    needs.remove(&own);
                }
            }
        }
        let text = |(own, needs): (&Vec<String>, &BTreeSet<Vec<String>>)| {
            let needs: Vec<String> = needs.iter().map(|n| n.join("::")).collect();
            format!("{} needs {}", own.join("::"), needs.join(", "))
        };
        let circles: Vec<String> = left.iter().map(text).collect();
        assert!(
            circles.is_empty(),
            "{source}: files need each other in a circle, or a file of one:\n{}",
            circles.join("\n")
        );
    }
}

#[test]
fn the_map_names_files_that_there_are() {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let mut checked = 0;
    for quoted in page.split('`').skip(1).step_by(2) {
        let path = quoted.trim();
        if ["sdk/", "core/", "host/", "plugins/", "tests/", "xtask/"].iter().any(|crate_| path.starts_with(crate_)) {
            assert!(root().join(path).exists(), "docs/architecture.md names {path}, which is not there");
            checked += 1;
        }
    }
    assert!(checked > 20, "the page names {checked} files");
}
