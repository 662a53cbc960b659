//! Binding: a choice of parameters, an explainer and a model become one thing that explains, and what it asks for is checked
//! against what the model has.

use lightbox_sdk::spec::{ModelSpec, Needs, ParamSpec, ParamType, Plan, TargetKind};
use lightbox_sdk::{BoundHandle, Error, ExplainerHandle, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Fills in those parameters that are paths and not given: their defaults are relative to the folder of the plugin.
pub fn default_paths(params: &mut BTreeMap<String, Value>, known: &[ParamSpec], plugin: &Path) {
    let missing = known.iter().filter(|p| p.kind == ParamType::Path && !params.contains_key(&p.name));
    let defaults = missing.filter_map(|p| Some((&p.name, p.default.as_str().filter(|d| !d.is_empty())?)));
    let folder = plugin.parent().unwrap_or(Path::new("."));
    let found: Vec<(String, Value)> =
        defaults.map(|(name, d)| (name.clone(), Value::from(folder.join(d).to_string_lossy()))).collect();
    params.extend(found);
}

/// Binds an explainer. The plan is the host's: "not applicable" where the model lacks one of its rules or the answer is of a
/// newer SDK.
///
/// Errors: wrong parameters; a site, class or rule that the model does not have; something that this host does not know.
pub fn bind(
    explainer: &ExplainerHandle,
    model: &ModelSpec,
    targets: &[TargetKind],
    params: &BTreeMap<String, Value>,
) -> Result<(BoundHandle, Plan)> {
    let bound = explainer.bind(model, targets, params)?;
    let plan = applicable(bound.plan().clone(), model);
    if let Plan::Run(needs) = &plan {
        check(needs, model)?;
    }
    Ok((bound, plan))
}

/// A plan as the host takes it.
fn applicable(plan: Plan, model: &ModelSpec) -> Plan {
    match plan {
        Plan::Other => Plan::not_applicable("its answer is of a newer SDK than this host's"),
        Plan::Run(needs) => match needs.rules.iter().find(|r| !model.has_rule(r)) {
            Some(rule) => Plan::not_applicable(format!("{} has no rule {rule}", model.name)),
            None => Plan::Run(needs),
        },
        other => other,
    }
}

/// Whether the model has what is asked for.
fn check(needs: &Needs, model: &ModelSpec) -> Result<()> {
    needs.check_requires()?;
    needs.check_others(model.classes())?;
    let fit = needs.fit.iter().flat_map(|f| &f.values);
    for site in needs.values.iter().chain(&needs.gradients).chain(fit) {
        model.site(site)?;
    }
    let pairs = needs.rules.iter().find(|r| lightbox_sdk::spec::PAIR_RULES.contains(&r.as_str()));
    if let Some(rule) = pairs {
        return Err(Error::invalid(format!(
            "rule {rule} needs pairs of images, which the run that explainers share has not"
        )));
    }
    model.check_rules(&needs.rules)
}

/// The files and folders that plugins' parameters name.
pub fn parameter_files(params: &BTreeMap<String, Value>, known: &[ParamSpec]) -> Vec<(String, PathBuf)> {
    let paths = known.iter().filter(|p| p.kind == ParamType::Path);
    let given = |p: &ParamSpec| {
        let value = params.get(&p.name)?.as_str().filter(|v| !v.is_empty())?;
        Some((p.name.clone(), PathBuf::from(value)))
    };
    paths.filter_map(given).collect()
}
