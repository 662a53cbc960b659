//! The names in a checkpoint: wrappers' prefixes are taken off, and where a file is not the model's, what it looks like is said.
//!
//! What is saved depends on what the network was wrapped in: DataParallel puts `module.` before every name, `torch.compile`
//! puts `_orig_mod.` after wherever it was applied, Lightning and most training scripts the attribute's name (`model.`, `net.`,
//! `backbone.`, `densenet121.`). The model's own names say which prefix it is.

use std::collections::{BTreeMap, HashSet};

/// Parts of names that only say what a module was wrapped in.
const WRAPPERS: [&str; 2] = ["module", "_orig_mod"];

/// How many of the model's names a prefix must lead to, or it is a coincidence. Not many: of a file with older names (CheXNet's
/// `denselayer1.norm.1`), which the model itself renames, few are the model's.
const LEAST: usize = 3;

/// Renames a file's entries to the model's names, where they are those names behind a prefix. What was renamed, in words.
pub fn fit_names(keys: &mut [String], own: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    let bare = |key: &str| key.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".");
    let wrapped = keys.iter().filter(|key| bare(key) != **key).count();
    // A model may have a part of that name itself.
    if wrapped > 0 && !own.iter().any(|name| bare(name) != *name) {
        let before = keys.iter().find(|key| bare(key) != **key).cloned().unwrap_or_default();
        rename(keys, |key| Some(bare(key)));
        notes.push(format!("names are read without what the network was wrapped in, as {before}"));
    }
    let names: HashSet<&str> = own.iter().map(String::as_str).collect();
    if let Some(prefix) = prefix(keys, &names) {
        rename(keys, |key| key.strip_prefix(&prefix).map(str::to_string));
        notes.push(format!("names are read without {prefix}"));
    }
    // A head in an `nn.Sequential` has a number: `classifier.0.weight`.
    let known: HashSet<String> = keys.iter().cloned().collect();
    for key in keys.iter_mut().filter(|key| !names.contains(key.as_str())) {
        let parts: Vec<&str> = key.split('.').collect();
        let [start @ .., number, last] = &parts[..] else { continue };
        let shorter = [start, &[*last]].concat().join(".");
        let is_number = !start.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        if is_number && names.contains(shorter.as_str()) && !known.contains(&shorter) {
            notes.push(format!("{key} is read as {shorter}"));
            *key = shorter;
        }
    }
    notes
}

/// Gives keys other names, but for one that another entry has: of two entries none may hide the other.
fn rename(keys: &mut [String], name: impl Fn(&str) -> Option<String>) {
    let mut taken: HashSet<String> = keys.iter().cloned().collect();
    for key in keys {
        if let Some(new) = name(key).filter(|new| !taken.contains(new)) {
            taken.insert(new.clone());
            *key = new;
        }
    }
}

/// The prefix behind which most of the model's names are; none where they are there as they are. Of equal ones the first
/// that is no moving average, which is another model than the one that was trained.
fn prefix(keys: &[String], names: &HashSet<&str>) -> Option<String> {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for key in keys {
        for at in std::iter::once(0).chain(key.match_indices('.').map(|(at, _)| at + 1)) {
            if names.contains(&key[at..]) {
                *found.entry(&key[..at]).or_default() += 1;
            }
        }
    }
    let most = found.values().copied().max()?;
    if most < LEAST.min(names.len()) {
        return None;
    }
    let ema = |prefix: &str| prefix.split(['.', '_']).any(|part| part == "ema" || part == "teacher");
    let best = found.iter().filter(|(_, n)| **n == most).map(|(p, _)| *p).min_by_key(|p| (ema(p), p.len()))?;
    (!best.is_empty()).then(|| best.to_string())
}

/// What an architecture's checkpoints have: its name, a part of a name, and what says more of it.
const LOOKS: [(&str, &str); 12] = [
    ("layer1.0.conv1.weight", "ResNet"),
    ("features.denseblock1.", "DenseNet"),
    ("encoder.layer.0.attention.", "transformer under Hugging Face's names"),
    ("blocks.0.attn.qkv.weight", "vision transformer (timm)"),
    ("encoder.layers.encoder_layer_0.", "vision transformer (torchvision)"),
    ("layers.0.blocks.0.attn.", "Swin transformer"),
    ("stages.0.blocks.0.", "ConvNeXt"),
    ("conv_stem.weight", "EfficientNet (timm)"),
    ("features.1.0.block.", "EfficientNet or ConvNeXt (torchvision)"),
    ("Mixed_5b.", "Inception"),
    ("features.0.0.weight", "MobileNet (torchvision)"),
    ("classifier.6.weight", "VGG or AlexNet"),
];

/// What a file looks like, in words; empty where nobody knows.
pub fn looks_like(keys: &[String]) -> String {
    let has = |part: &str| keys.iter().any(|key| key.contains(part));
    let count = |before: &str| {
        let number = |key: &String| {
            let at = key.find(before)? + before.len();
            key[at..].split(['.', '_']).next()?.parse::<usize>().ok()
        };
        keys.iter().filter_map(number).max().map_or(0, |n| n.saturating_add(1))
    };
    match LOOKS.iter().find(|(part, _)| has(part)) {
        None => String::new(),
        Some((_, "ResNet")) => match (has("layer1.0.conv3."), count("layer3.")) {
            (false, 2) => "a ResNet-18".into(),
            (false, 6) => "a ResNet-34".into(),
            (true, 6) => "a ResNet-50".into(),
            (true, 23) => "a ResNet-101".into(),
            (true, 36) => "a ResNet-152".into(),
            _ => "a ResNet".into(),
        },
        // Its layers count from 1.
        Some((_, "DenseNet")) => match count("denseblock3.denselayer") {
            25 => "a DenseNet-121".into(),
            33 => "a DenseNet-169".into(),
            37 => "a DenseNet-161".into(),
            49 => "a DenseNet-201".into(),
            _ => "a DenseNet".into(),
        },
        Some((_, "vision transformer (timm)")) => {
            let distilled = if has("dist_token") { "distilled " } else { "" };
            format!("a {distilled}vision transformer of {} blocks (timm's names)", count("blocks."))
        }
        Some((_, name)) => {
            let article = if name.starts_with(['A', 'E', 'I', 'O', 'U']) { "an" } else { "a" };
            format!("{article} {name}")
        }
    }
}

/// The entries of a file that are most like a name, best first.
pub fn near(name: &str, keys: &[String]) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let alike = |key: &str| {
        let theirs: Vec<&str> = key.split('.').collect();
        let end = parts.iter().rev().zip(theirs.iter().rev()).take_while(|(a, b)| a == b).count();
        let any = parts.iter().filter(|part| theirs.contains(part)).count();
        2 * end + any
    };
    let best = keys.iter().max_by_key(|key| (alike(key), std::cmp::Reverse(key.len())))?;
    (alike(best) >= parts.len()).then(|| best.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [&str; 4] = ["features.conv0.weight", "features.norm0.bias", "classifier.weight", "classifier.bias"];

    fn check(given: &[&str], wanted: &[&str], note: &str) {
        let own: Vec<String> = OWN.iter().map(|s| s.to_string()).collect();
        let mut keys: Vec<String> = given.iter().map(|s| s.to_string()).collect();
        let notes = fit_names(&mut keys, &own).join("; ");
        assert_eq!(keys, wanted, "{given:?}");
        assert!(notes.contains(note) && notes.is_empty() == note.is_empty(), "{notes}");
    }

    #[test]
    fn prefixes_are_taken_off_whatever_they_are() {
        check(&OWN, &OWN, "");
        for prefix in [
            "module.",
            "_orig_mod.",
            "model._orig_mod.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "net.",
            "module.densenet121.",
            "a.b.c.",
        ] {
            let given: Vec<String> = OWN.iter().map(|name| format!("{prefix}{name}")).collect();
            check(&given.iter().map(String::as_str).collect::<Vec<_>>(), &OWN, "names are read without");
        }
        // What is beside it stays as it is.
        let given =
            ["model.features.conv0.weight", "model.features.norm0.bias", "model.classifier.bias", "criterion.weight"];
        let wanted = ["features.conv0.weight", "features.norm0.bias", "classifier.bias", "criterion.weight"];
        check(&given, &wanted, "without model.");
    }

    #[test]
    fn of_a_model_and_its_average_the_model_is_read() {
        let behind = |prefix: &str| OWN.map(|name| format!("{prefix}{name}"));
        let (given, wanted) = ([behind("ema."), behind("model.")].concat(), [behind("ema."), behind("")].concat());
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        check(&given, &wanted, "without model.");
    }

    #[test]
    fn a_name_or_two_behind_a_prefix_are_a_coincidence() {
        check(&["vit.classifier.weight"], &["vit.classifier.weight"], "");
    }

    #[test]
    fn of_two_entries_none_hides_the_other() {
        let given = [
            "classifier.bias",
            "net.features.conv0.weight",
            "net.features.norm0.bias",
            "net.classifier.weight",
            "net.classifier.bias",
        ];
        let wanted = [
            "classifier.bias",
            "features.conv0.weight",
            "features.norm0.bias",
            "classifier.weight",
            "net.classifier.bias",
        ];
        check(&given, &wanted, "without net.");
    }

    #[test]
    fn a_head_with_a_number_is_a_head() {
        let given = ["features.conv0.weight", "classifier.0.weight", "classifier.0.bias"];
        let wanted = ["features.conv0.weight", "classifier.weight", "classifier.bias"];
        check(&given, &wanted, "classifier.0.weight is read as classifier.weight");
    }

    #[test]
    fn what_a_file_looks_like() {
        let check = |keys: &[&str], wanted: &str| {
            assert_eq!(looks_like(&keys.iter().map(|s| s.to_string()).collect::<Vec<_>>()), wanted);
        };
        check(&["layer1.0.conv1.weight", "layer1.0.conv3.weight", "layer3.5.conv1.weight"], "a ResNet-50");
        check(&["layer1.0.conv1.weight", "layer3.1.conv1.weight"], "a ResNet-18");
        check(
            &["features.denseblock1.denselayer1.x", "features.denseblock3.denselayer24.norm1.weight"],
            "a DenseNet-121",
        );
        check(
            &["blocks.0.attn.qkv.weight", "blocks.11.norm1.weight", "dist_token"],
            "a distilled vision transformer of 12 blocks (timm's names)",
        );
        check(&["vit.encoder.layer.0.attention.attention.query.weight"], "a transformer under Hugging Face's names");
        check(&["x"], "");
        // A part of a network, and a number that no network has.
        check(&["features.denseblock1.denselayer1.conv1.weight"], "a DenseNet");
        check(&["layer1.0.conv1.weight", "layer3.18446744073709551615.x"], "a ResNet");
    }

    #[test]
    fn near_misses() {
        let keys = ["encoder.conv0.weight".to_string(), "head.bias".into()];
        assert_eq!(near("features.conv0.weight", &keys), Some("encoder.conv0.weight".into()));
        assert_eq!(near("classifier.weight", &keys[1..]), None);
    }
}
