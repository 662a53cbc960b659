//! The sites of a program, with their roles: every module's output under the module's name, the parts of its attentions, and the
//! values that someone asked for by their name in the file.

use crate::attention::{Attention, Attentions, attentions, results};
use crate::layout::{Layout, layouts};
use crate::program::{Dim, Id, Program};
use lightbox_sdk::prelude::*;
use std::collections::{BTreeSet, HashMap};

/// Where a site's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// A value of the program; true where its channels come last and it is handed on as B C H W.
    Value(Id, bool),
    /// A part of `scaled_dot_product_attention`, which is spelled out where one is asked for: the node.
    Part(usize, AttentionPart),
}

/// What is found in a program.
#[derive(Debug)]
pub struct Sites {
    /// In the order in which they are computed.
    pub sites: Vec<Site>,
    /// Of each.
    pub from: Vec<From>,
    /// The places of a node's parts.
    pub of_part: HashMap<usize, Vec<usize>>,
    pub cam_site: Option<String>,
    pub attention_site: Option<String>,
    pub attentions: Attentions,
    /// Values that hang on the images.
    pub depends: Vec<bool>,
}

/// Average pools, whose input is the last feature map.
const POOLS: [&str; 9] = [
    "aten.adaptive_avg_pool1d",
    "aten.adaptive_avg_pool2d",
    "aten.adaptive_avg_pool3d",
    "aten.avg_pool1d",
    "aten.avg_pool2d",
    "aten.avg_pool3d",
    "aten.mean",
    "aten.dropout",
    "aten.contiguous",
];

struct Finder<'p> {
    program: &'p Program,
    layouts: Vec<Option<Layout>>,
    depends: Vec<bool>,
    /// Values that are written to later, which have no one value.
    written: BTreeSet<Id>,
    /// The node that makes a value.
    made: HashMap<Id, usize>,
    /// Names of the tokens before the grid's.
    first_is_class: bool,
}

impl Finder<'_> {
    /// A value of floating point that is a batch's.
    fn is_usable(&self, id: Id) -> bool {
        let value = &self.program.values[id];
        let rest = |shape: &[Dim]| shape[1..].iter().all(|d| matches!(d, Dim::Is(n) if *n > 0));
        value.floats
            && self.depends[id]
            && !self.written.contains(&id)
            && value.shape.as_ref().is_some_and(|s| s.first() == Some(&Dim::Batch) && rest(s))
    }

    fn prefix(&self, count: usize) -> Vec<String> {
        let name = |i: usize| if i == 0 && self.first_is_class { "cls".into() } else { format!("prefix{i}") };
        (0..count).map(name).collect()
    }

    fn tokens(&self, name: &str, channels: usize, grid: &[usize], prefix: usize) -> Site {
        Site { prefix: self.prefix(prefix), ..Site::tokens(name, channels, grid, &[]) }
    }

    /// A value as a site.
    fn site(&self, name: &str, id: Id) -> Site {
        let shape = self.program.values[id].shape.as_deref().unwrap_or_default();
        let sizes: Vec<usize> = shape[1..].iter().map(|d| if let Dim::Is(n) = d { *n as usize } else { 0 }).collect();
        match &self.layouts[id] {
            Some(Layout::First(grid)) => Site::feature(name, sizes[0], grid),
            Some(Layout::Last(grid)) => Site::feature(name, sizes[sizes.len() - 1], grid)
                .text("channels come last in the network; handed on as B C H W"),
            Some(Layout::Tokens { grid, prefix }) => self.tokens(name, sizes[1], grid, *prefix),
            _ if sizes.len() == 1 => Site::vector(name, Role::Other, sizes[0]),
            _ => {
                let axes = [vec![Axis::Batch], vec![Axis::Other; sizes.len()]].concat();
                let channels = sizes.first().copied().unwrap_or(1);
                Site { role: Role::Other, axes, channels, ..Site::feature(name, channels, []) }
            }
        }
    }

    /// The node that makes a value; that of an input is before all.
    fn at(&self, id: Id) -> usize {
        self.made.get(&id).map_or(0, |n| n + 1)
    }

    /// A module's value is what it makes last that is read outside of it, or the result. By path.
    fn modules(&self) -> HashMap<String, Id> {
        let mut readers: HashMap<Id, Vec<usize>> = HashMap::new();
        for (n, node) in self.program.nodes.iter().enumerate() {
            node.reads().for_each(|id| readers.entry(id).or_default().push(n));
        }
        let mut found = HashMap::new();
        for node in &self.program.nodes {
            for id in node.outputs.iter().flatten().filter(|id| self.is_usable(**id)) {
                for path in node.modules.iter().filter(|path| !path.is_empty()) {
                    let outside = |n: &usize| !self.program.nodes[*n].modules.contains(path);
                    let leaves =
                        self.program.outputs.contains(id) || readers.get(id).is_some_and(|all| all.iter().any(outside));
                    if leaves {
                        found.insert(path.clone(), *id);
                    }
                }
            }
        }
        found
    }

    /// The value that is pooled to what the head reads, going back from the last value with places of which the result is made.
    fn pooled(&self) -> Option<Id> {
        let result = self.program.outputs[0];
        let many = |id: &Id| self.layouts[*id].as_ref().is_some_and(|l| l.grid().iter().product::<usize>() > 1);
        let needed = self.program.needed(&[result], &BTreeSet::new());
        let made = |n: usize| self.program.nodes[n].outputs.iter().flatten().copied();
        let all = (0..self.program.nodes.len()).rev().filter(|n| needed[*n]).flat_map(made);
        let mut last = all
            .filter(|id| *id != result)
            .find(|id| many(id) && self.is_usable(*id) && !matches!(self.layouts[*id], Some(Layout::Flat(_))))?;
        // A segmentation's last map is one of classes; what its last convolution reads is the features.
        let classes = self.program.values[result].shape.as_ref().is_some_and(|s| s.len() > 2);
        if classes {
            let convolution = self.program.nodes.iter().enumerate().rev().find(|(n, node)| {
                needed[*n] && node.operator().starts_with("aten.conv") && node.value(0).is_some_and(|id| many(&id))
            });
            return convolution.and_then(|(_, node)| node.value(0)).filter(|id| self.is_usable(*id));
        }
        while let Some(node) = self.made.get(&last).map(|n| &self.program.nodes[*n])
            && POOLS.contains(&node.operator())
            && let Some(before) = node.value(0).filter(|id| many(id) && self.is_usable(*id))
        {
            last = before;
        }
        Some(last)
    }
}

impl Finder<'_> {
    /// A value as a site's origin.
    fn from(&self, id: Id) -> From {
        From::Value(id, matches!(self.layouts[id], Some(Layout::Last(_))))
    }

    /// What an attention's queries, keys and values are made of, before it is turned to [tokens, B, channels], as
    /// nn.MultiheadAttention does.
    fn read_by(&self, attentions: &Attentions, attention: &Attention) -> Option<Id> {
        let projection = attentions.projections.iter().filter(|n| **n < attention.first).max()?;
        let mut id = self.program.nodes[*projection].value(0)?;
        while !self.is_usable(id) {
            let node = &self.program.nodes[*self.made.get(&id)?];
            id = node.value(0).filter(|_| node.operator() == "aten.transpose")?;
        }
        Some(id)
    }

    /// What the last linear map reads, if it is the mean of a map over its places and nothing else.
    fn mean_of(&self, map: Id) -> Option<Id> {
        let node = |id: Id| self.made.get(&id).map(|n| &self.program.nodes[*n]);
        let head = node(self.program.outputs[0]).filter(|n| n.operator() == "aten.linear")?;
        let read = head.value(0).filter(|id| self.is_usable(*id))?;
        let channels = |id: Id| self.program.values[id].shape.as_ref().filter(|s| s.len() == 2).map(|s| s[1]);
        let moves = ["aten.flatten", "aten.view", "aten.reshape", "aten.squeeze", "aten.dropout", "aten.contiguous"];
        let mut id = read;
        loop {
            let at = node(id)?;
            id = at.value(0)?;
            let means = at.operator() == "aten.mean" || at.operator().starts_with("aten.adaptive_avg_pool");
            match means {
                true => {
                    let all = matches!(self.layouts[map].as_ref()?, Layout::First(_) | Layout::Last(_));
                    let one_a_channel = self.site("", map).channels as i64;
                    return (id == map && all && channels(read) == Some(Dim::Is(one_a_channel))).then_some(read);
                }
                false if moves.contains(&at.operator()) => {}
                false => return None,
            }
        }
    }
}

/// The module with a number in a row of such, that an attention is in: `blocks.3`, `encoder.layers.encoder_layer_3`.
fn block_of(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let at = parts.iter().position(|part| part.chars().last().is_some_and(|c| c.is_ascii_digit()))?;
    Some(parts[..=at].join("."))
}

/// Finds all sites. `asked` are names of the file's values, `cam_site` a site that takes the place of what is found.
pub fn sites(program: &Program, asked: &[&str], cam_site: &str) -> Result<Sites> {
    let depends = program.depends_on_images();
    let first = layouts(program, &depends, &HashMap::new());
    let told = results(program, &attentions(program, &first, &depends));
    let layouts = layouts(program, &depends, &told);
    let attentions = attentions(program, &layouts, &depends);
    let written = program.nodes.iter().flat_map(|n| n.writes.iter().copied()).collect();
    let made = program.nodes.iter().enumerate();
    let made = made.flat_map(|(n, node)| node.outputs.iter().flatten().map(move |id| (*id, n))).collect();
    // Whoever takes the first token alone for the head has one of the whole image.
    let takes_first = |node: &crate::program::Node| {
        node.operator() == "aten.select"
            && matches!(
                (node.inputs.get(1), node.inputs.get(2)),
                (Some(crate::program::Input::Int(1)), Some(crate::program::Input::Int(0)))
            )
            && node
                .value(0)
                .is_some_and(|id| matches!(&layouts[id], Some(Layout::Tokens { prefix, .. }) if *prefix > 0))
    };
    let first_is_class = program.nodes.iter().any(takes_first);
    let finder = Finder { program, layouts, depends, written, made, first_is_class };

    // Place in the order of the program, depth (what is outer comes later), site, where its value comes from.
    let mut all: Vec<(usize, usize, Site, From)> = Vec::new();
    let mut modules: Vec<(String, Id)> = finder.modules().into_iter().collect();
    modules.sort();
    for (path, id) in &modules {
        let depth = 100 - path.split('.').count().min(99);
        all.push((finder.at(*id), depth, finder.site(path, *id), finder.from(*id)));
    }
    let named = program.named();
    for name in asked {
        let id = named.get(name).copied().filter(|id| finder.is_usable(*id)).ok_or_else(|| {
            Error::invalid(format!("sites: the program has no value {name} of floating point that hangs on the images"))
        })?;
        if !modules.iter().any(|(path, _)| path == name) {
            all.push((finder.at(id), 0, finder.site(name, id), finder.from(id)));
        }
    }
    add_attention(&finder, &attentions, &modules, &mut all);

    let found = if cam_site.is_empty() { pooled_sites(&finder, &attentions, &mut all) } else { None };
    let input = program.input()?;
    all.sort_by(|a, b| (a.0, a.1, &a.2.name).cmp(&(b.0, b.1, &b.2.name)));
    let mut sites = vec![Site::input(input.0, &input.1)];
    let mut origin = vec![From::Value(program.images, false)];
    let mut seen: BTreeSet<String> = BTreeSet::from(["input".to_string(), "logits".to_string()]);
    for (_, _, site, from) in all {
        if seen.insert(site.name.clone()) {
            sites.push(site);
            origin.push(from);
        }
    }
    let result = program.outputs[0];
    let logits = finder.site("logits", result);
    sites.push(match logits.axes.len() {
        2 => Site::vector("logits", Role::Logits, logits.channels),
        _ => logits.role(Role::Logits),
    });
    origin.push(From::Value(result, false));

    // Where a run can begin; a start's batch is its first size, which must be the batch alone.
    for (site, from) in sites.iter_mut().zip(&origin).skip(1) {
        if let From::Value(id, _) = from
            && *id != result
        {
            site.start = program.cannot_start(*id).is_none();
        }
    }
    let mut of_part: HashMap<usize, Vec<usize>> = HashMap::new();
    for (place, from) in origin.iter().enumerate() {
        if let From::Part(node, _) = from {
            of_part.entry(*node).or_default().push(place);
        }
    }
    let cam_site = match cam_site {
        "" => found,
        named => Some(chosen(&sites, named)?),
    };
    let attention_site = sites.iter().rev().find(|s| s.is_attention()).map(|s| s.name.clone());
    let depends = finder.depends;
    Ok(Sites { sites, from: origin, of_part, cam_site, attention_site, attentions, depends })
}

/// The site that a user names for class activation maps.
fn chosen(sites: &[Site], named: &str) -> Result<String> {
    let wrong = |what: &str| Error::invalid(format!("cam_site = \"{named}\": {what}"));
    let site = sites.iter().find(|s| s.name == named);
    let site = site.ok_or_else(|| wrong("no site has this name; `lightbox info FILE.pt2` lists them"))?;
    match site.has_grid() {
        true => Ok(named.to_string()),
        false => Err(wrong("it is no feature map and no tokens of a grid")),
    }
}

/// The site of a value, by name: a module's, else one under the file's own name, which is added.
fn site_of(finder: &Finder<'_>, all: &mut Vec<(usize, usize, Site, From)>, id: Id) -> String {
    if let Some((_, _, site, _)) = all.iter().find(|(_, _, _, f)| matches!(f, From::Value(other, _) if *other == id)) {
        return site.name.clone();
    }
    let name = finder.program.values[id].name.clone();
    all.push((finder.at(id), 0, finder.site(&name, id), finder.from(id)));
    name
}

/// The site that class activation maps read, and the role of what the head reads of it.
fn pooled_sites(
    finder: &Finder<'_>,
    attentions: &Attentions,
    all: &mut Vec<(usize, usize, Site, From)>,
) -> Option<String> {
    let pooled = finder.pooled()?;
    // The mean over its places, where the head reads nothing else.
    if let Some(id) = finder.mean_of(pooled) {
        let name = site_of(finder, all, id);
        for (_, _, site, _) in all.iter_mut().filter(|(_, _, site, _)| site.name == name) {
            site.role = Role::Pooled;
        }
    }
    // Of tokens whose first is taken alone the others have no gradient behind the last attention: what it reads has.
    let prefixed = matches!(&finder.layouts[pooled], Some(Layout::Tokens { prefix, .. }) if *prefix > 0);
    let read = attentions.global.last().and_then(|attention| finder.read_by(attentions, attention));
    let chosen = read.filter(|_| prefixed && finder.first_is_class).unwrap_or(pooled);
    Some(site_of(finder, all, chosen))
}

/// The parts of each attention, and the roles of the blocks that they are in.
fn add_attention(
    finder: &Finder<'_>,
    attentions: &Attentions,
    modules: &[(String, Id)],
    all: &mut Vec<(usize, usize, Site, From)>,
) {
    let mut blocks: Vec<String> = Vec::new();
    for (number, attention) in attentions.global.iter().enumerate() {
        let Attention { module, heads, grid, prefix, channels, .. } = attention;
        // The outermost module with a number that holds this attention and no other.
        let of_others = |block: &String| {
            let inside = |a: &&Attention| a.module == *block || a.module.starts_with(&format!("{block}."));
            attentions.global.iter().filter(inside).count() > 1
        };
        let parts: Vec<&str> = module.split('.').collect();
        let block = (1..=parts.len()).map(|n| parts[..n].join(".")).find(|path| {
            block_of(path).as_ref() == Some(path) && !of_others(path)
                || path.rsplit('.').next().is_some_and(|p| p.ends_with(|c: char| c.is_ascii_digit()))
                    && !of_others(path)
        });
        let block = block.unwrap_or_else(|| module.clone());
        let place = attention.first + 1;
        let name = |part: &str| format!("{module}.{part}");
        let head = |part: &str, id: Option<Id>, kind: AttentionPart| {
            let axes = vec![
                Axis::Batch,
                Axis::Head,
                if kind == AttentionPart::Query { Axis::Query } else { Axis::Key },
                Axis::Channel,
            ];
            let site = Site { axes, ..finder.tokens(&name(part), *heads, grid, *prefix) };
            let site = site.role(Role::Attention(kind)).block(number).text(&format!("{channels} channels a head"));
            (site, id.map_or(From::Part(attention.node, kind), |id| From::Value(id, false)))
        };
        let spelled = attention.spelled;
        let mut add = |(site, from): (Site, From), at: usize| {
            let usable = match &from {
                From::Value(id, _) => finder.is_usable(*id),
                From::Part(..) => true,
            };
            if usable {
                all.push((at, 0, site, from));
            }
        };
        let made = |id: Id| finder.at(id);
        add(head("query", Some(attention.query), AttentionPart::Query), made(attention.query));
        if let Some(key) = attention.key {
            add(head("key", Some(key), AttentionPart::Key), made(key));
        }
        add(head("value", Some(attention.value), AttentionPart::Value), made(attention.value));
        let prefix_names: Vec<String> = finder.prefix(*prefix);
        let prefix_names: Vec<&str> = prefix_names.iter().map(String::as_str).collect();
        let weights = Site::attention(name("weights"), *heads, grid, &prefix_names, "tokens").block(number);
        let logits = Site { name: name("logits"), ..weights.clone() }.role(Role::Attention(AttentionPart::Logits));
        let origin = |kind, id: Option<Id>| id.map_or(From::Part(attention.node, kind), |id| From::Value(id, false));
        let at = |id: Option<Id>| id.map_or(place, made);
        add(
            (logits.text("scaled, before the softmax"), origin(AttentionPart::Logits, spelled.map(|s| s.0))),
            at(spelled.map(|s| s.0)),
        );
        add(
            (weights.text("softmaxed weights"), origin(AttentionPart::Weights, spelled.map(|s| s.1))),
            at(spelled.map(|s| s.1)),
        );

        // Sites of the block; the attention's own module gives what it adds to the tokens.
        let inside = |path: &str| path == block || path.starts_with(&format!("{block}."));
        for (_, _, site, from) in all.iter_mut().filter(|(_, _, site, _)| inside(&site.name)) {
            site.block = Some(number);
            if site.name == *module && site.is_tokens() {
                site.role = Role::Attention(AttentionPart::Output);
                if let From::Value(id, _) = from {
                    site.weight = projection_of(finder, *id).unwrap_or_default();
                }
            }
        }
        // What enters the first block.
        if number == 0 {
            let enters = entering(finder, modules, &block);
            if let Some(id) = enters {
                let known = all.iter().rposition(|(_, _, s, f)| {
                    matches!(f, From::Value(other, _) if *other == id) && s.is_tokens() && !inside(&s.name)
                });
                match known {
                    Some(at) => all[at].2.role = Role::Embedding,
                    None => {
                        let name = finder.program.values[id].name.clone();
                        let site = finder.site(&name, id).role(Role::Embedding);
                        all.push((finder.at(id), 0, site, From::Value(id, false)));
                    }
                }
            }
        }
        blocks.push(block);
    }
    for windows in &attentions.windowed {
        let text = format!("attention in windows of {} tokens", windows.tokens);
        for (_, _, site, _) in all.iter_mut().filter(|(_, _, site, _)| site.name == windows.module) {
            site.window = windows.tokens;
            site.text = if site.text.is_empty() { text.clone() } else { format!("{}; {text}", site.text) };
        }
    }
}

/// The tokens that a block reads and that are made outside of it.
fn entering(finder: &Finder<'_>, modules: &[(String, Id)], block: &str) -> Option<Id> {
    let end = modules.iter().find(|(path, _)| path == block).map(|(_, id)| *id)?;
    let wanted = match finder.layouts[end].as_ref()? {
        Layout::Tokens { grid, prefix } => (grid.clone(), *prefix),
        _ => return None,
    };
    let inside = |n: &&crate::program::Node| n.modules.iter().any(|m| m == block);
    let reads = finder.program.nodes.iter().filter(inside).flat_map(|n| n.reads().collect::<Vec<_>>());
    let outside = |id: &Id| {
        let node = finder.made.get(id).map(|n| &finder.program.nodes[*n]);
        let same = matches!(&finder.layouts[*id], Some(Layout::Tokens { grid, prefix }) if (grid, prefix) == (&wanted.0, &wanted.1));
        same && node.is_some_and(|n| n.modules.iter().all(|m| m != block)) && finder.is_usable(*id)
    };
    let mut reads = reads;
    reads.find(outside)
}

/// The parameter of the linear map that a value comes from, over what moves it and drops of it.
fn projection_of(finder: &Finder<'_>, mut id: Id) -> Option<String> {
    loop {
        let node = &finder.program.nodes[*finder.made.get(&id)?];
        match node.operator() {
            "aten.linear" => {
                let weight = node.value(1)?;
                return finder.program.weights.iter().find(|w| w.id == weight).map(|w| w.key.clone());
            }
            "aten.dropout" | "aten.view" | "aten.reshape" | "aten.transpose" | "aten.contiguous" | "aten.permute" => {
                id = node.value(0)?;
            }
            _ => return None,
        }
    }
}
