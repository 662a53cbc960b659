//! `lightbox list` and `lightbox info`.

use crate::error::{Error, Result};
use crate::registry::{Found, Plans, Registry};
use crate::run::spec::BUILT_IN;
use lightbox_core::data::SOURCES;
use lightbox_core::files;
use lightbox_core::metrics::{self, Better, MetricSpec};
use lightbox_sdk::spec::{
    ExplainerSpec, Family, ModelSpec, ParamSpec, ParamType, Passes, Plan, Reference, Role, Site, axes_text,
};
use serde_json::{Value, json};
use std::fmt::Write;

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    Models,
    Explainers,
    Metrics,
    Datasets,
    Specs,
    Plugins,
}

fn encode(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::input(e.to_string()))
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).map_err(|e| Error::input(e.to_string()))? + "\n")
}

/// The lists as text or JSON.
pub fn list(registry: &Registry, what: Option<What>, json: bool) -> Result<String> {
    let wants = |w: What| what.is_none_or(|what| what == w);
    if json {
        let mut all = serde_json::Map::new();
        if wants(What::Models) {
            let models = registry.found.iter().flat_map(|f| &f.manifest.models);
            all.insert("models".into(), encode(&models.collect::<Vec<_>>())?);
        }
        if wants(What::Explainers) {
            let mut rows = Vec::new();
            for (_, spec, plans) in planned(registry)? {
                let mut row = encode(spec)?;
                let (mut applies, mut others) = (Vec::new(), serde_json::Map::new());
                for (model, plan) in &plans {
                    match plan {
                        Ok(Plan::Run(_)) => applies.push(Value::from(model.as_str())),
                        Ok(Plan::NotApplicable { reason }) => {
                            drop(others.insert(model.clone(), reason.as_str().into()))
                        }
                        Ok(Plan::Other) => {}
                        Err(e) => drop(others.insert(model.clone(), format!("error: {e}").into())),
                    }
                }
                row["applies"] = applies.into();
                row["not_applicable"] = others.into();
                rows.push(row);
            }
            all.insert("explainers".into(), rows.into());
        }
        if wants(What::Metrics) {
            all.insert("metrics".into(), encode(&metrics::all().iter().map(|m| m.spec()).collect::<Vec<_>>())?);
        }
        if wants(What::Datasets) {
            all.insert("datasets".into(), encode(&SOURCES)?);
        }
        if wants(What::Specs) {
            all.insert("specs".into(), encode(&BUILT_IN.map(|(name, _)| name))?);
        }
        if wants(What::Plugins) {
            all.insert("plugins".into(), encode(&registry.found)?);
            all.insert("rejected".into(), encode(&registry.rejected)?);
        }
        return pretty(&Value::Object(all));
    }
    let mut text = String::new();
    let mut section = |title: &str, lines: Vec<(String, String)>| {
        let width = lines.iter().map(|(n, _)| n.chars().count()).max().unwrap_or(0);
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "{title}");
        if lines.is_empty() {
            text.push_str("  none\n");
        }
        for (name, what) in lines {
            let _ = writeln!(text, "  {name:width$}  {what}");
        }
    };
    let mut all = Vec::new();
    if wants(What::Models) {
        let models = registry.found.iter().flat_map(|f| &f.manifest.models);
        all.extend(models.map(|m| {
            let size = m.input.size.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
            (m.name.clone(), format!("{}, {size}, {} classes", m.title, m.classes()))
        }));
        section("models", std::mem::take(&mut all));
    }
    if wants(What::Explainers) {
        let explainers = planned(registry)?;
        let models: Vec<String> = explainers.iter().map(|(_, _, plans)| models_of(registry, plans)).collect();
        let width = models.iter().map(|m| m.chars().count()).max().unwrap_or(0);
        let line = |((_, e, _), models): (&Asked<'_>, &String)| {
            let id = if e.reference.id.is_empty() { String::new() } else { format!(", {}", e.reference.id) };
            let cost = if e.cost.is_empty() { "cost not stated" } else { &e.cost };
            let family = family(e.family);
            (e.name.clone(), format!("{family:12}  {models:width$}  {} ({cost}{id})", e.title))
        };
        let title =
            "explainers (family, models, title, cost an image: F forward, P a part's forward, B backward passes)";
        section(title, explainers.iter().zip(&models).map(line).collect());
    }
    if wants(What::Metrics) {
        let line = |m: MetricSpec| {
            let (family, better, range) = (m.family, better(m.better), range(&m));
            (m.name.into(), format!("{family:14}  {} ({better} is better, {range}; {})", m.title, m.cost))
        };
        let title = "metrics (family, title, direction, range, cost an image beyond the explanation)";
        section(title, metrics::all().iter().map(|m| line(m.spec())).collect());
    }
    if wants(What::Datasets) {
        section("datasets", SOURCES.iter().map(|s| (s.name.into(), s.title.into())).collect());
    }
    if wants(What::Specs) {
        let title = |text: &str| text.lines().next().unwrap_or_default().trim_start_matches("# ").to_string();
        section("specs", BUILT_IN.iter().map(|(name, text)| (name.to_string(), title(text))).collect());
    }
    if wants(What::Plugins) {
        let line = |f: &crate::registry::Found| {
            let (m, e) = (f.manifest.models.len(), f.manifest.explainers.len());
            let torch = if f.torch == "none" { "without libtorch".into() } else { format!("libtorch {}", f.torch) };
            let warnings: String = f.warnings.iter().map(|w| format!("; warning: {w}")).collect();
            let what =
                format!("{} {}: {m} models, {e} explainers, {torch}{warnings}", f.manifest.plugin, f.manifest.version);
            (f.file.display().to_string(), what)
        };
        section("plugins", registry.found.iter().map(line).collect());
        if !registry.rejected.is_empty() {
            let line = |r: &crate::registry::Rejected| (r.file.display().to_string(), r.reason.clone());
            section("rejected", registry.rejected.iter().map(line).collect());
        }
        if registry.folders.is_empty() {
            text.push_str("\nno plugin folder was found (hint: `cargo xtask build` makes one, or use --plugins)\n");
        }
    }
    Ok(text)
}

/// An explainer and its answers to all models.
pub(crate) type Asked<'a> = (&'a Found, &'a ExplainerSpec, Plans);

/// All explainers by name, asked for their plans.
pub(crate) fn planned(registry: &Registry) -> Result<Vec<Asked<'_>>> {
    let mut all: Vec<(&Found, &ExplainerSpec)> =
        registry.found.iter().flat_map(|f| f.manifest.explainers.iter().map(move |e| (f, e))).collect();
    all.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    let plans = registry.plans(&all)?;
    Ok(all.into_iter().zip(plans).map(|((f, e), p)| (f, e, p)).collect())
}

/// A family's name as the plugins' JSON has it.
pub(crate) fn family(family: Family) -> String {
    encode(&family).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
}

/// The models that an explainer applies to, a plugin's together: `all`, `none`, `deit, densenet`, `deit (3 of 10)`.
pub(crate) fn models_of(registry: &Registry, plans: &Plans) -> String {
    let runs = |name: &str| plans.iter().any(|(n, p)| n == name && matches!(p, Ok(Plan::Run(_))));
    let (mut parts, mut all) = (Vec::new(), true);
    for found in registry.found.iter().filter(|f| !f.manifest.models.is_empty()) {
        let of = found.manifest.models.len();
        let count = found.manifest.models.iter().filter(|m| runs(&m.name)).count();
        let name = found.manifest.plugin.trim_start_matches("lightbox-plugin-");
        all &= count == of;
        match count {
            0 => {}
            n if n == of => parts.push(name.to_string()),
            n => parts.push(format!("{name} ({n} of {of})")),
        }
    }
    match parts.is_empty() {
        true => "none".into(),
        false if all => "all".into(),
        false => parts.join(", "),
    }
}

/// The least and greatest value.
pub(crate) fn range(m: &MetricSpec) -> String {
    let end = |v: f64| if v.is_finite() { v.to_string() } else { "open".into() };
    format!("{} to {}", end(m.range[0]), end(m.range[1]))
}

pub(crate) fn better(better: Better) -> &'static str {
    if better == Better::Higher { "higher" } else { "lower" }
}

/// A parameter's values, in words.
pub(crate) fn kind_of(kind: &ParamType) -> String {
    match kind {
        ParamType::Integer { min, max } => format!("integer, {min} to {max}"),
        ParamType::Number { min, max } => format!("number, {min} to {max}"),
        ParamType::Text => "text".into(),
        ParamType::Path => "file or folder".into(),
        ParamType::Choice { choices } => choices.join(" | "),
        ParamType::Flag => "true | false".into(),
        ParamType::Other => "of a newer SDK".into(),
    }
}

fn parameters(text: &mut String, specs: &[ParamSpec]) {
    if specs.is_empty() {
        return;
    }
    text.push_str("\nparameters\n");
    for p in specs {
        let kind = kind_of(&p.kind);
        let unit = if p.unit.is_empty() { String::new() } else { format!(", in {}", p.unit) };
        let _ = writeln!(text, "  {} = {}  ({kind}{unit}): {}", p.name, p.default, p.text);
    }
}

fn reference(text: &mut String, r: &Reference) {
    let id = if r.id.is_empty() { String::new() } else { format!(" [{}]", r.id) };
    let _ = writeln!(text, "reference  {}{id}", r.citation());
}

fn info_model(found: &Found, model: &ModelSpec, json: bool) -> Result<String> {
    let mut text = String::new();
    let hash = files::sha256(&found.file)?;
    if json {
        return pretty(&json!({"model": model, "file": found.file, "sha256": hash, "plugin": found.manifest.plugin}));
    }
    let _ = writeln!(text, "model      {} {}: {}", model.name, model.version, model.title);
    reference(&mut text, &model.reference);
    let i = &model.input;
    let _ = writeln!(
        text,
        "input      {} = [B, {}, {}] float32, (value in [0, 1] - {:?}) / {:?}",
        axes_text(&i.axes()),
        i.channels,
        i.size.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
        i.mean,
        i.std
    );
    for output in &model.outputs {
        let shape = output.shape().iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let (name, axes, by) = (&output.name, axes_text(&output.axes()), output.activation().name());
        let _ = writeln!(text, "output     {name}: {axes} = [B, {shape}], {by}");
    }
    if !model.class_names.is_empty() {
        let (n, first) = (model.class_names.len(), model.class_names.iter().take(12).cloned().collect::<Vec<_>>());
        let more = if n > first.len() { format!(" and {} more", n - first.len()) } else { String::new() };
        let _ = writeln!(text, "classes    {}{more}", first.join(", "));
    }
    let mixed = if model.mixed_precision { " (float32, mixed)" } else { "" };
    let _ = writeln!(text, "trainable  {}{mixed}", model.trainable);
    let _ = writeln!(text, "plugin     {} (sha256 {hash})", found.file.display());
    let rules = if model.rules.is_empty() { "none".into() } else { model.rules.join(", ") };
    let _ = writeln!(text, "rules      {rules}");
    for note in &model.notes {
        let _ = writeln!(text, "note       {note}");
    }
    parameters(&mut text, &model.parameters);
    text.push_str("\nsites\n");
    let width = model.sites.iter().map(|s| s.name.len()).max().unwrap_or(0);
    let biases: Vec<&Site> = model.sites.iter().filter(|s| s.role == Role::Bias).collect();
    for s in model.sites.iter().filter(|s| s.role != Role::Bias) {
        let sizes = s.grid.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let grid = if sizes.is_empty() { String::new() } else { format!(" on {sizes}") };
        let mark =
            if model.cam_site.as_ref() == Some(&s.name) { "; class activation maps read it by default" } else { "" };
        let start = if s.start { "; a run can begin here" } else { "" };
        let note = if s.text.is_empty() { String::new() } else { format!("; {}", s.text) };
        let prefix = if s.prefix.is_empty() { String::new() } else { format!(", after {}", s.prefix.join(", ")) };
        let _ = writeln!(
            text,
            "  {:width$}  {}, {}, {} channels{grid}{prefix}{note}{start}{mark}",
            s.name,
            s.role_text(),
            axes_text(&s.axes),
            s.channels
        );
    }
    if let [first, .., last] = biases.as_slice() {
        let (n, first, last) = (biases.len(), &first.name, &last.name);
        let _ = writeln!(text, "  {first} .. {last}  {n} sites of biases at every place (--json names them)");
    }
    Ok(text)
}

fn info_explainer(registry: &Registry, found: &Found, explainer: &ExplainerSpec, json: bool) -> Result<String> {
    let mut text = String::new();
    let hash = files::sha256(&found.file)?;
    if json {
        let plugin = &found.manifest.plugin;
        return pretty(&json!({"explainer": explainer, "file": found.file, "sha256": hash, "plugin": plugin}));
    }
    let _ = writeln!(text, "explainer  {} {}: {}", explainer.name, explainer.version, explainer.title);
    reference(&mut text, &explainer.reference);
    let _ = writeln!(text, "family     {}", family(explainer.family));
    for (key, value) in [("formula", &explainer.formula), ("cost", &explainer.cost), ("notes", &explainer.notes)] {
        if !value.is_empty() {
            let _ = writeln!(text, "{key:10} {value}");
        }
    }
    let signed = if explainer.signed { "yes: negative values speak against the class" } else { "no" };
    let _ = writeln!(text, "signed     {signed}");
    let memory = if explainer.cpu_only { "CPU memory (copies in a CUDA run)" } else { "the run's device" };
    let _ = writeln!(text, "reads      {memory}");
    text.push_str("needs\n");
    for (model, plan) in registry.plans(&[(found, explainer)])?.into_iter().flatten() {
        let _ = writeln!(text, "  {model}: {}", needs(plan));
    }
    let _ = writeln!(text, "plugin     {} (sha256 {hash})", found.file.display());
    parameters(&mut text, &explainer.parameters);
    Ok(text)
}

fn info_metric(m: &metrics::MetricSpec, json: bool) -> Result<String> {
    let mut text = String::new();
    if json {
        return pretty(&encode(m)?);
    }
    let pairs: [(&str, String); 10] = [
        ("metric", format!("{}: {}", m.name, m.title)),
        ("family", m.family.into()),
        ("formula", m.formula.into()),
        ("level", if m.level == metrics::Level::Image { "an image; the table shows the mean" } else { "a set" }.into()),
        ("better", better(m.better).into()),
        ("range", format!("{}{}", range(m), if m.unit.is_empty() { String::new() } else { format!(", {}", m.unit) })),
        ("chance", m.chance.into()),
        ("cost", m.cost.into()),
        ("edge cases", m.edge_cases.into()),
        ("reference", m.reference.full()),
    ];
    for (key, value) in pairs {
        let _ = writeln!(text, "{key:10} {value}");
    }
    parameters(&mut text, &m.parameters);
    Ok(text)
}

/// All of one thing. A built-in spec is printed as its TOML, to start from.
pub fn info(registry: &Registry, name: &str, json: bool) -> Result<String> {
    if let Some((_, spec)) = BUILT_IN.iter().find(|(n, _)| *n == name) {
        if json {
            let parsed: toml::Value = toml::from_str(spec).map_err(|e| Error::input(e.to_string()))?;
            return pretty(&encode(&parsed)?);
        }
        return Ok(spec.to_string());
    }
    if let Ok((found, model)) = registry.model(name) {
        return info_model(found, model, json);
    }
    if let Ok((found, explainer)) = registry.explainer(name) {
        return info_explainer(registry, found, explainer, json);
    }
    if let Ok(metric) = metrics::find(name) {
        return info_metric(&metric.spec(), json);
    }
    if let Some(s) = SOURCES.iter().find(|s| s.name == name) {
        if json {
            return pretty(&encode(s)?);
        }
        return Ok(format!("dataset    {}: {}\nkeys       {}\n", s.name, s.title, s.keys));
    }
    let mut known: Vec<&str> =
        metrics::all().iter().map(|m| m.spec().name).chain(SOURCES.iter().map(|s| s.name)).collect();
    known.extend(BUILT_IN.iter().map(|(n, _)| *n));
    for found in &registry.found {
        known.extend(found.manifest.models.iter().map(|m| m.name.as_str()));
        known.extend(found.manifest.explainers.iter().map(|e| e.name.as_str()));
    }
    known.sort_unstable();
    let mut message = format!("nothing is named {name} (known: {})", known.join(", "));
    for rejected in &registry.rejected {
        message += &format!("\nnote: {} was rejected: {}", rejected.file.display(), rejected.reason);
    }
    Err(Error::input(message))
}

/// What an explainer needs of a model with default parameters, in a few words.
fn needs(plan: std::result::Result<Plan, String>) -> String {
    let sites = |names: &[String]| match names {
        [first, .., last] if names.len() > 4 => format!("{} sites, {first} .. {last}", names.len()),
        _ => names.join(", "),
    };
    match plan {
        Err(e) => format!("error: {e}"),
        Ok(Plan::NotApplicable { reason }) => format!("not applicable ({reason})"),
        Ok(Plan::Other) => "an answer of a newer SDK".into(),
        Ok(Plan::Run(needs)) => {
            let mut parts = Vec::new();
            if !needs.values.is_empty() {
                parts.push(format!("value of {}", sites(&needs.values)));
            }
            if !needs.gradients.is_empty() {
                parts.push(format!("gradient at {}", sites(&needs.gradients)));
            }
            if !needs.others.is_empty() {
                parts.push(format!("gradients of {} other classes there", needs.others.len()));
            }
            if needs.mean_mask {
                parts.push("the mean training mask".into());
            }
            if !needs.rules.is_empty() {
                parts.push(format!("rules {}", needs.rules.join(", ")));
            }
            if needs.fit.is_some() {
                parts.push("a fit on the training set".into());
            }
            if needs.model {
                let most = if needs.extra == Passes::default() {
                    String::new()
                } else {
                    format!(", {} an image", needs.extra)
                };
                parts.push(format!("further runs of the model{most}"));
            }
            if parts.is_empty() { "the image alone".into() } else { parts.join("; ") }
        }
    }
}
