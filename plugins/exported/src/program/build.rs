//! A program from its JSON. What the file says is checked as it is read; an error names the node, its module and the line of source.

use super::{Call, Dim, Id, Input, Node, Num, Program, ValueInfo, Weight};
use crate::archive::{Archive, HOW, Stored, kind};
use lightbox_sdk::dispatch::{Alias, Operator};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;
use serde_json::Value as Json;
use std::collections::{BTreeSet, HashMap};

/// The schema that is known.
const MAJOR: i64 = 8;
/// More nodes than any network has: a program of 400 layers has some thousand.
const MOST_NODES: usize = 20_000;
/// The largest size of an axis.
const LARGEST: i64 = 1 << 20;
/// How deep graphs may lie in each other.
const MOST_NESTED: usize = 8;
/// Operators that may hand back what they were given, which their schemas do not say.
const SAME: [&str; 5] =
    ["aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout", "aten.type_as"];

#[derive(Default)]
struct Builder {
    values: Vec<ValueInfo>,
    /// What a name of the file means at this point of the program.
    now: HashMap<String, Id>,
    nodes: Vec<Node>,
    inputs: usize,
    views: HashMap<Id, Id>,
    batch: BTreeSet<Id>,
    /// The batch's symbol.
    symbol: String,
    depth: usize,
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the program is broken: {what}"))
}

/// The one entry of a union: its key and value.
fn union(json: &Json) -> Result<(&str, &Json)> {
    let entry = json.as_object().filter(|o| o.len() == 1).and_then(|o| o.iter().next());
    entry.map(|(k, v)| (k.as_str(), v)).ok_or_else(|| broken("an entry that should have one key"))
}

fn text(json: &Json) -> Result<&str> {
    json.as_str().ok_or_else(|| broken("a text is expected"))
}

fn list(json: &Json) -> Result<&[Json]> {
    json.as_array().map(Vec::as_slice).ok_or_else(|| broken("a list is expected"))
}

fn whole(json: &Json) -> Result<i64> {
    json.as_i64().ok_or_else(|| broken("a whole number is expected"))
}

/// Infinity and NaN are written as texts.
fn number(json: &Json) -> Result<f64> {
    match json.as_str() {
        Some("Infinity") => Ok(f64::INFINITY),
        Some("-Infinity") => Ok(f64::NEG_INFINITY),
        Some("NaN") => Ok(f64::NAN),
        _ => json.as_f64().ok_or_else(|| broken("a number is expected")),
    }
}

/// Paths of the modules that a node is in, from `KEY,PATH,CLASS;...`; the key of a second call ends in `@1`.
fn modules(stack: &str) -> Vec<String> {
    let one = |entry: &str| {
        let mut parts = entry.split(',');
        let (key, path) = (parts.next()?, parts.next()?);
        let call = key.find('@').map_or("", |at| &key[at..]);
        Some(format!("{path}{call}"))
    };
    stack.split(';').filter_map(one).collect()
}

/// The last line of a stack trace that is the network's own.
fn source_line(trace: &str) -> String {
    let mut lines = trace.lines().rev().filter(|l| l.trim_start().starts_with("File "));
    lines.next().map(|l| l.trim().chars().filter(|c| !c.is_control()).take(160).collect()).unwrap_or_default()
}

impl Builder {
    fn new_value(&mut self, name: &str, info: ValueInfo) -> Id {
        self.values.push(ValueInfo { name: name.into(), ..info });
        self.now.insert(name.into(), self.values.len() - 1);
        self.values.len() - 1
    }

    fn id(&self, name: &Json) -> Result<Id> {
        let name = text(name)?;
        self.now.get(name).copied().ok_or_else(|| broken(format!("no value {name} is computed before it is read")))
    }

    /// All values that share a value's memory.
    fn family(&self, id: Id) -> Vec<Id> {
        let root = |mut id: Id| {
            while let Some(up) = self.views.get(&id) {
                id = *up;
            }
            id
        };
        let own = root(id);
        (0..self.values.len()).filter(|other| root(*other) == own).collect()
    }

    fn num(&self, json: &Json) -> Result<Num> {
        Ok(match union(json)? {
            ("as_int", n) => Num::Is(whole(n)?),
            ("as_name", name) => Num::Of(self.id(name)?),
            (other, _) => return Err(broken(format!("a size of kind {other}"))),
        })
    }

    fn input(&self, json: &Json) -> Result<Input> {
        let (kind, v) = union(json)?;
        Ok(match kind {
            "as_none" => Input::None,
            "as_tensor" => Input::Value(self.id(&v["name"])?),
            "as_tensors" => {
                let one = |t: &Json| Ok(Some(self.id(&t["name"])?));
                Input::Tensors(list(v)?.iter().map(one).collect::<Result<_>>()?)
            }
            "as_optional_tensor" => match union(v)? {
                ("as_tensor", t) => Input::Value(self.id(&t["name"])?),
                _ => Input::None,
            },
            "as_optional_tensors" => {
                let one = |t: &Json| match union(t)? {
                    ("as_tensor", t) => Ok(Some(self.id(&t["name"])?)),
                    _ => Ok(None),
                };
                Input::Tensors(list(v)?.iter().map(one).collect::<Result<_>>()?)
            }
            "as_int" => Input::Int(whole(v)?),
            "as_float" => Input::Float(number(v)?),
            "as_bool" => Input::Bool(v.as_bool().ok_or_else(|| broken("true or false is expected"))?),
            "as_string" => Input::Text(text(v)?.into()),
            "as_ints" => Input::Ints(list(v)?.iter().map(|n| Ok(Num::Is(whole(n)?))).collect::<Result<_>>()?),
            "as_sym_ints" => Input::Ints(list(v)?.iter().map(|n| self.num(n)).collect::<Result<_>>()?),
            "as_floats" => Input::Floats(list(v)?.iter().map(number).collect::<Result<_>>()?),
            "as_bools" => Input::Bools(list(v)?.iter().map(|b| i64::from(*b == true)).collect()),
            "as_sym_int" | "as_sym_bool" | "as_sym_float" => match union(v)? {
                ("as_name", name) => Input::Value(self.id(name)?),
                (_, Json::Bool(b)) => Input::Bool(*b),
                (_, n) => match n.as_i64() {
                    Some(n) => Input::Int(n),
                    None => Input::Float(number(n)?),
                },
            },
            // libtorch's numbers, which are not the schema's.
            "as_scalar_type" => Input::Int(match whole(v)? {
                n @ 1..=12 => n - 1,
                13 => 15,
                n => return Err(Error::unsupported(format!("type {n}"))),
            }),
            "as_layout" => match whole(v)? {
                7 => Input::Int(0),
                n => return Err(Error::unsupported(format!("tensors of layout {n} (sparse ones)"))),
            },
            "as_memory_format" => Input::Int(match whole(v)? {
                1 => 0,
                4 => 1,
                n => n,
            }),
            "as_device" => Input::Device,
            other => return Err(Error::unsupported(format!("an argument of kind {other}"))),
        })
    }

    /// What the graph says of a value's type and sizes.
    fn info(&self, values: &Json, name: &str) -> ValueInfo {
        let meta = &values[name];
        let dim = |size: &Json| {
            let expression = &size["as_expr"];
            match (size["as_int"].as_i64(), expression["expr_str"].as_str()) {
                (Some(n), _) if (0..=LARGEST).contains(&n) => Dim::Is(n),
                (None, Some(text)) if text == self.symbol => Dim::Batch,
                _ => Dim::Other(expression["hint"]["as_int"].as_i64().unwrap_or(0)),
            }
        };
        let shape = meta["sizes"].as_array().map(|sizes| sizes.iter().map(dim).collect());
        let kind = meta["dtype"].as_i64().and_then(|n| kind(n).ok());
        let floats = matches!(kind, Some(Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16));
        ValueInfo { name: name.into(), shape, floats }
    }

    fn node(&mut self, json: &Json, graph: &Json, grad: bool, outer: &[String]) -> Result<()> {
        if self.nodes.len() >= MOST_NODES {
            return Err(broken(format!("more than {MOST_NODES} nodes")));
        }
        let full = text(&json["target"])?;
        let target = full.strip_prefix("torch.ops.").unwrap_or(full);
        let stack = json["metadata"]["nn_module_stack"].as_str();
        let modules = stack.map_or_else(|| outer.to_vec(), modules);
        let line = json["metadata"]["stack_trace"].as_str().map(source_line).unwrap_or_default();
        let at = |e: Error| {
            let module = modules.last().filter(|m| !m.is_empty()).map_or("the network itself", String::as_str);
            let line = if line.is_empty() { String::new() } else { format!(" ({line})") };
            Error { message: format!("{target} in {module}{line}: {}", e.message), ..e }
        };
        // Checks of the sizes, types and devices that the export saw; sizes are checked once, when a batch comes in.
        if target.starts_with("aten._assert") || target.starts_with("aten.sym_constrain") {
            return Ok(());
        }
        if let Some(name) = target.strip_prefix("higher_order.") {
            return self.higher_order(name, json, grad, &modules).map_err(at);
        }
        self.plain(full, target, json, graph, grad, &modules, &line).map_err(at)
    }

    /// A node that is a graph of its own.
    fn higher_order(&mut self, name: &str, json: &Json, grad: bool, modules: &[String]) -> Result<()> {
        let given: Vec<&Json> = list(&json["inputs"])?.iter().collect();
        match name.split('.').next().unwrap_or(name) {
            "wrap_with_set_grad_enabled" if given.len() >= 2 => {
                let on = given[0]["arg"]["as_bool"] == true;
                let graph = &given[1]["arg"]["as_graph"]["graph"];
                self.inline(graph, &given[2..], &json["outputs"], grad && on, modules)
            }
            "wrap_with_autocast" => Err(Error::unsupported(
                "the network uses torch.autocast, whose precision would be lost; export it without (in float32)",
            )),
            "cond" | "while_loop" | "map_impl" | "scan" => Err(Error::unsupported(format!(
                "torch.{name} chooses by the data what is computed; export the branch that is meant"
            ))),
            _ => Err(Error::unsupported("an operator on graphs")),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn plain(
        &mut self,
        full: &str,
        target: &str,
        json: &Json,
        graph: &Json,
        grad: bool,
        modules: &[String],
        line: &str,
    ) -> Result<()> {
        let mut parts = target.split('.');
        let mut part = || parts.next().unwrap_or("");
        let (space, name) = (part(), part());
        let overload = parts.next().unwrap_or("default");
        let given = list(&json["inputs"])?;
        let (mut written, mut in_place, mut writes) = (None, None, vec![]);
        let (call, inputs, target) = if !full.starts_with("torch.ops.") {
            let inputs = given.iter().map(|i| self.input(&i["arg"])).collect::<Result<Vec<_>>>()?;
            (Call::Sizes(format!("{space}.{name}")), inputs, target.to_string())
        } else {
            let find = |name: &str| Operator::find(&format!("{space}::{name}"), overload);
            let Some(mut op) = find(name)? else {
                let own = if space == "aten" { "" } else { ": a custom operator, whose code is not in the file" };
                return Err(Error::unsupported(format!("this libtorch has no operator {space}::{name}{own}")));
            };
            let mut target = target.to_string();
            if let Some(i) = op.arguments.iter().position(|a| a.1 == Alias::Writes) {
                let argument = given.iter().find(|g| g["name"] == op.arguments[i].0.as_str()).or(given.get(i));
                let Some(Input::Value(old)) = argument.map(|a| self.input(&a["arg"])).transpose()? else {
                    return Err(broken("it writes to no tensor"));
                };
                let family = self.family(old);
                let same = |plain: &Operator| plain.arguments.len() == op.arguments.len();
                let plain = name.strip_suffix('_').map(find).transpose()?.flatten().filter(same);
                match plain {
                    Some(plain) if family.len() == 1 && old >= self.inputs => {
                        written = Some(old);
                        in_place = Some((old, std::mem::replace(&mut op, plain)));
                        target = format!("{space}.{}.{overload}", name.trim_end_matches('_'));
                    }
                    _ if family.iter().any(|id| *id < self.inputs) => {
                        return Err(Error::unsupported(
                            "it changes a parameter, a buffer or the images; export the network in eval mode (.eval())",
                        ));
                    }
                    _ => writes = family,
                }
            }
            // The file has the names of the operator that it calls: `dropout_(self, ...)` is `dropout(input, ...)`.
            let called = in_place.as_ref().map_or(&op, |(_, op)| op);
            let mut inputs = Vec::with_capacity(called.arguments.len());
            for (argument, _) in &called.arguments {
                inputs.push(match given.iter().find(|i| i["name"] == argument.as_str()) {
                    // What a factory makes is on the model's device.
                    _ if argument == "device" => Input::Device,
                    Some(i) => self.input(&i["arg"])?,
                    None => Input::Default,
                });
            }
            if let Some(stray) = given.iter().find(|i| called.arguments.iter().all(|(n, _)| i["name"] != n.as_str())) {
                return Err(broken(format!("the operator has no argument {}", stray["name"])));
            }
            (Call::Operator(op), inputs, target)
        };
        // In training it writes to the running statistics, and its schema does not say so.
        if target == "aten.batch_norm.default" && matches!(inputs.get(5), Some(Input::Bool(true))) {
            return Err(Error::unsupported(
                "the network was exported in training mode, in which it changes with every batch; call .eval() before the export",
            ));
        }
        if let ("aten.sym_size.int", [Input::Value(of), Input::Int(dim)]) = (target.as_str(), &inputs[..])
            && let Some(shape) = &self.values[*of].shape
            && shape.get(*dim as usize) == Some(&Dim::Batch)
        {
            let (_, out) = union(list(&json["outputs"])?.first().ok_or_else(|| broken("no result"))?)?;
            let id = self.new_value(text(&out["as_name"])?, ValueInfo::default());
            self.batch.insert(id);
            return Ok(());
        }
        let mut outputs = Vec::new();
        for out in list(&json["outputs"])? {
            let (kind, v) = union(out)?;
            let names: Vec<&Json> = match kind {
                "as_tensor" => vec![&v["name"]],
                "as_tensors" => list(v)?.iter().map(|t| &t["name"]).collect(),
                "as_sym_int" | "as_sym_bool" | "as_sym_float" => vec![&v["as_name"]],
                "as_none" => vec![&Json::Null],
                other => return Err(Error::unsupported(format!("a result of kind {other}"))),
            };
            for name in names {
                outputs.push(match name.as_str().filter(|n| !n.is_empty()) {
                    Some(name) => {
                        let info = match kind.starts_with("as_tensor") {
                            true => self.info(&graph["tensor_values"], name),
                            false => ValueInfo::default(),
                        };
                        Some(self.new_value(name, info))
                    }
                    None => None,
                });
            }
        }
        if let (Some(old), Some(Some(new))) = (written, outputs.first()) {
            // All its names mean the new value.
            self.now.values_mut().filter(|id| **id == old).for_each(|id| *id = *new);
        } else if let Call::Operator(op) = &call {
            let shares = op.arguments.iter().position(|a| a.1 != Alias::Reads);
            let shares = shares.or(SAME.iter().any(|name| target.starts_with(name)).then_some(0));
            if let Some(Input::Value(from)) = shares.and_then(|i| inputs.get(i)) {
                self.views.extend(outputs.iter().flatten().map(|id| (*id, *from)));
            }
        }
        let (modules, line) = (modules.to_vec(), line.to_string());
        self.nodes.push(Node { target, call, inputs, outputs, modules, grad, in_place, writes, line });
        Ok(())
    }

    /// Puts a graph's nodes in place of the call of it.
    fn inline(&mut self, graph: &Json, given: &[&Json], outputs: &Json, grad: bool, modules: &[String]) -> Result<()> {
        self.depth += 1;
        if self.depth > MOST_NESTED {
            return Err(broken("graphs lie too deep in each other"));
        }
        for (name, given) in list(&graph["inputs"])?.iter().zip(given) {
            let (_, v) = union(name)?;
            let name = text(if v["name"].is_null() { &v["as_name"] } else { &v["name"] })?;
            if let Input::Value(id) = self.input(&given["arg"])? {
                self.now.insert(name.into(), id);
            }
        }
        for node in list(&graph["nodes"])? {
            self.node(node, graph, grad, modules)?;
        }
        let flat = |json: &Json| -> Result<Vec<Json>> {
            let mut all = Vec::new();
            for o in list(json)? {
                match union(o)? {
                    ("as_tensors", v) => all.extend(list(v)?.iter().map(|t| t["name"].clone())),
                    (_, v) => all.push(if v["name"].is_null() { v["as_name"].clone() } else { v["name"].clone() }),
                }
            }
            Ok(all)
        };
        for (inner, outer) in flat(&graph["outputs"])?.iter().zip(flat(outputs)?) {
            let id = self.id(inner)?;
            self.now.insert(text(&outer)?.into(), id);
        }
        self.depth -= 1;
        Ok(())
    }
}

impl Program {
    /// Reads the program, and finds its weights, by their keys, in the order of [`Program::weights`].
    ///
    /// # Errors
    /// Whatever is not as it must be: another schema, a fixed batch, several inputs, operators that this libtorch does not have,
    /// weights that are missing, of another shape or in half precision.
    pub fn load(archive: &Archive) -> Result<(Program, Vec<Stored>)> {
        let json = archive.json("models/model.json")?;
        let major = json["schema_version"]["major"].as_i64();
        if major != Some(MAJOR) {
            let major = major.map_or("no number".into(), |n| n.to_string());
            let by = json["torch_version"].as_str().map(|v| format!(", written by PyTorch {v}")).unwrap_or_default();
            return Err(archive
                .error(format!("the program is of schema {major}{by}; {MAJOR} is read, which PyTorch 2.11 writes")));
        }
        let program = Self::build(&json).map_err(|e| Error { message: archive.error(&e.message).message, ..e })?;
        let mut found = archive.stored("weights")?;
        if archive.has("data/constants/model_constants_config.json") {
            found.extend(archive.stored("constants")?);
        }
        let mut weights = Vec::new();
        for Weight { id, key, is_parameter, .. } in &program.weights {
            let stored = found.get(key).ok_or_else(|| archive.error(format!("the archive has no tensor {key}")))?;
            let said = program.values[*id].shape.as_deref();
            let same = |(dim, n): (&Dim, &i64)| !matches!(dim, Dim::Is(said) if said != n);
            if said.is_some_and(|dims| dims.len() != stored.sizes.len() || !dims.iter().zip(&stored.sizes).all(same)) {
                return Err(archive.error(format!("{key} has another shape than the program says")));
            }
            if *is_parameter && stored.kind != Kind::Float {
                let kind = stored.kind;
                return Err(
                    archive.error(format!("{key} is of type {kind:?}: export the network in float32 (.float())"))
                );
            }
            weights.push(stored.clone());
        }
        Ok((program, weights))
    }

    fn build(json: &Json) -> Result<Program> {
        let (graph, signature) = (&json["graph_module"]["graph"], &json["graph_module"]["signature"]);
        let specs = list(&signature["input_specs"])?;
        let images: Vec<&str> =
            specs.iter().filter_map(|s| s["user_input"]["arg"]["as_tensor"]["name"].as_str()).collect();
        let [images] = images[..] else {
            let n = images.len();
            return Err(Error::unsupported(format!(
                "the network takes {n} tensors, one is expected: wrap it in a module that takes the images alone"
            )));
        };
        let sizes = list(&graph["tensor_values"][images]["sizes"])?;
        let symbol = sizes.first().and_then(|s| s["as_expr"]["expr_str"].as_str());
        let symbol = symbol.ok_or_else(|| {
            Error::unsupported(format!(
                "it was exported for a fixed number of images. Export it with dynamic_shapes=({{0: torch.export.Dim(\"batch\")}},) \
                 and an example of two images; {HOW}"
            ))
        })?;
        if !(3..=5).contains(&sizes.len()) {
            return Err(Error::unsupported(format!(
                "its input has {} axes, [B, C, H, W] or [B, C, D, H, W] is expected",
                sizes.len()
            )));
        }
        if sizes[1..].iter().any(|s| s["as_int"].as_i64().is_none_or(|n| !(1..=1 << 16).contains(&n))) {
            return Err(Error::unsupported(
                "only the batch may be of any size: export it with fixed channels, height and width",
            ));
        }
        let mut b = Builder { symbol: symbol.into(), ..Builder::default() };
        let (mut weights, mut numbers) = (Vec::new(), Vec::new());
        for spec in specs {
            let (kind, spec) = union(spec)?;
            let name = match kind {
                "constant_input" => text(&spec["name"])?,
                _ if !spec["arg"]["name"].is_null() => text(&spec["arg"]["name"])?,
                _ => text(&union(&spec["arg"])?.1["name"])?,
            };
            let info = b.info(&graph["tensor_values"], name);
            let id = b.new_value(name, info);
            let (key, is_kept) = match kind {
                "parameter" => (text(&spec["parameter_name"])?, true),
                "buffer" => (text(&spec["buffer_name"])?, spec["persistent"] != false),
                "tensor_constant" => (text(&spec["tensor_constant_name"])?, false),
                "user_input" => continue,
                "constant_input" => {
                    numbers.extend(spec["value"]["as_int"].as_i64().map(|n| (id, n)));
                    continue;
                }
                "custom_obj" => {
                    return Err(Error::unsupported(
                        "the network has an object of TorchBind, whose code is not in the file",
                    ));
                }
                other => return Err(Error::unsupported(format!("an input of kind {other}"))),
            };
            weights.push(Weight { id, key: key.to_string(), is_parameter: kind == "parameter", is_kept });
        }
        b.inputs = b.values.len();
        for spec in list(&signature["output_specs"])? {
            let (kind, _) = union(spec)?;
            if kind.contains("mutation") {
                return Err(Error::unsupported(
                    "the network changes its buffers or its input; export it in eval mode (.eval())",
                ));
            }
        }
        for node in list(&graph["nodes"])? {
            b.node(node, graph, true, &[])?;
        }
        let mut outputs = Vec::new();
        for spec in list(&signature["output_specs"])? {
            if let Some(name) = spec["user_output"]["arg"]["as_tensor"].get("name") {
                outputs.push(b.id(name)?);
            }
        }
        if outputs.is_empty() {
            return Err(Error::unsupported("the program has no tensor as a result"));
        }
        let images = b.values.iter().position(|v| v.name == images).ok_or_else(|| broken("no images"))?;
        let Builder { values, nodes, batch, .. } = b;
        Ok(Program { values, nodes, weights, numbers, images, outputs, batch })
    }
}
