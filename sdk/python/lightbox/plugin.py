"""What the author of an explainer or a model in Python writes with, the counterpart of the SDK in Rust. It needs NumPy alone.

    import lightbox as lb

    @lb.explainer(title="Mine", family="perturbation", reference=lb.Reference("Nobody", "Mine", year=2026))
    def mine(ctx, steps: int = lb.param(10, range=(1, 1000), text="how many masks")):
        ...
        return maps  # [B, H, W], larger where the image speaks more for the target
"""

import contextlib
import enum
import hashlib
import inspect
import os
import pathlib
import typing

import numpy as np

from ._wire import Error

__all__ = [
    "Context", "Error", "Maps", "ModelHandle", "Needs", "Reference", "Response", "explainer", "not_applicable", "param",
]

FAMILIES = ("cam", "attention", "gradient", "perturbation", "relevance", "control", "other")
_LEAST, _MOST = -(2**63), 2**63 - 1


class Reference:
    """Where a method comes from: authors (last names, or `Who et al.`), title, venue, year, and `10.xxx/...` or `arXiv:...`."""

    def __init__(self, authors="", title="", venue="", year=0, id=""):
        self.authors, self.title, self.venue, self.year, self.id = authors, title, venue, year, id

    def spec(self):
        return vars(self).copy()


class _Param:
    def __init__(self, default, range=None, choices=None, unit="", text=""):
        self.default, self.range, self.choices, self.unit, self.text = default, range, choices, unit, text


def param(default, *, range=None, choices=None, unit="", text=""):
    """A parameter's default with its range (lowest, highest), its words, its unit and what it does. The type is that of the
    annotation, or of the default: int, float, bool, str, pathlib.Path, a `typing.Literal` of words."""
    return _Param(default, range, choices, unit, text)


class NotApplicable:
    def __init__(self, reason):
        self.reason = str(reason)


def not_applicable(reason):
    """What `plan` gives where a method does not apply to a model: why, without a full stop."""
    return NotApplicable(reason)


class Needs:
    """What an explainer wants of a batch.

    Args:
        values: sites whose values are wanted, by name.
        gradients: sites at which each image's target is differentiated.
        model: the explainer runs the model itself, by `ctx.model`.
        forward, partial, backward: how often for one image, at most.
        rules: backward rules under which the gradients are taken.
        mean_mask: the mean of the training set's masks.
        fit: sites whose values `fit` wants to see of the training set, or `[]` for the images alone; None for no fit.
        fit_images: how many images at most; 0 for all.
    """

    def __init__(self, values=(), gradients=(), *, model=False, forward=0, partial=0, backward=0, rules=(), mean_mask=False,
                 fit=None, fit_images=0):  # fmt: skip
        self.values, self.gradients, self.rules = list(values), list(gradients), list(rules)
        self.model, self.mean_mask = bool(model), bool(mean_mask)
        self.extra = {"forward": int(forward), "partial": int(partial), "backward": int(backward)}
        self.fit = None if fit is None else {"values": list(fit), "images": int(fit_images)}

    def spec(self):
        requires = [name for name, used in (("rules", self.rules), ("fit", self.fit is not None)) if used]
        return {
            "plan": "run", "values": self.values, "gradients": self.gradients, "others": [], "mean_mask": self.mean_mask,
            "model": self.model, "extra": self.extra, "rules": self.rules, "fit": self.fit, "requires": requires,
        }  # fmt: skip


class Maps:
    """Several maps of an image: `array` [B, K, H, W], and K names, each a column of the table."""

    def __init__(self, array, names=()):
        self.array, self.names = array, [str(n) for n in names]


class Site:
    """A place in a model: name, role, axes, channels, grid; see docs/wire.md."""

    def __init__(self, spec):
        self.__dict__.update(spec)

    @property
    def is_map(self):
        """A feature map [B, C, grid...]."""
        return self.axes[:2] == ["batch", "channel"] and bool(self.grid) and len(self.axes) == 2 + len(self.grid)

    @property
    def is_tokens(self):
        """Tokens [B, prefix + grid, C]."""
        return self.axes == ["batch", "token", "channel"] and bool(self.grid)

    def to_grid(self, value):
        """A value of this site, feature map or tokens, as [B, C, grid...]."""
        if self.is_map:
            return value
        if not self.is_tokens:
            raise Error(f"site {self.name} has no grid")
        skip = len(self.prefix)
        tokens = value[:, skip : skip + int(np.prod(self.grid))]
        return tokens.swapaxes(1, 2).reshape(tokens.shape[0], tokens.shape[2], *self.grid)


class ModelSpec:
    """A model as it describes itself; `raw` is the description of docs/wire.md."""

    def __init__(self, raw):
        self.raw = raw
        self.name, self.cam_site, self.attention_site = raw["name"], raw.get("cam_site"), raw.get("attention_site")
        self.sites = [Site({"prefix": [], "grid": [], "block": None, "start": False, **s}) for s in raw.get("sites", [])]
        given = raw["input"]
        self.channels, self.size = given["channels"], list(given["size"])
        self.mean, self.std = np.asarray(given["mean"], np.float32), np.asarray(given["std"], np.float32)
        self.rules, self.interpreter = raw.get("rules", []), raw.get("interpreter")
        outputs = raw.get("outputs") or [{}]
        self.classes, self.class_names = outputs[0].get("classes", 0), raw.get("class_names", [])
        self.activation = outputs[0].get("activation", "softmax")

    def site(self, name):
        """The site of a name."""
        for site in self.sites:
            if site.name == name:
                return site
        raise Error(f"model {self.name} has no site {name}")

    @property
    def is_module_here(self):
        """Whether this interpreter holds the network as a module: `ctx.module`."""
        import sys

        return self.interpreter == sys.executable


class Response:
    """What a run gives: `logits`, `outputs` and `values` by name, `gradients` (a dictionary a set of objectives)."""

    def __init__(self, logits, outputs=None, values=None, gradients=(), products=()):
        self.logits, self.outputs, self.values = logits, outputs or {}, values or {}
        self.gradients, self.products = list(gradients), list(products)

    def gradient(self, site, set=0):
        """The gradient at a site of a set of objectives."""
        return self.gradients[set][site]


class Request:
    """A run of a model, unpacked; see `RequestMessage` in docs/wire.md."""

    def __init__(self, header, arrays):
        known = {"patches", "objectives", "grads", "rules", "start", "pairs", "products", "objective:output", "objective:runner-up"}
        for name in header.get("requires", []):
            if name not in known:
                raise Error(f"the request requires `{name}`, which this version does not know", "unsupported")
        at = lambda place: None if place is None else arrays[place]
        self.images = at(header.get("images"))
        start = header.get("start")
        self.start = None if start is None else (start[0], at(start[1]))
        self.patches = [(p["site"], at(p.get("scale")), at(p.get("shift"))) for p in header.get("patches", [])]
        self.values, self.grads = header.get("values", []), header.get("grads", [])
        self.objectives = [[self._objective(o, at) for o in part] for part in header.get("objectives", [])]
        self.products = [(site, at(place)) for site, place in header.get("products", [])]
        self.rules, self.pairs = header.get("rules", []), header.get("pairs", False)

    @staticmethod
    def _objective(said, at):
        (kind, what), = said.items()
        return (kind, *((what[0], at(what[1])) if isinstance(what, list) else (None, at(what))))


class Model:
    """A model of this process. `run(request)` gives a `Response`; `network.Network` is one of any `torch.nn.Module`."""

    def to(self, device):
        """Moves it to a device, where it can be on another than the CPU."""

    def spec(self):
        """Its `ModelSpec` of docs/wire.md, as a dictionary."""
        raise NotImplementedError

    def run(self, request):
        """Runs it."""
        raise NotImplementedError

    def parameters(self):
        """Parameters and buffers by name."""
        return {}

    def load(self, parameters):
        """Takes parameters; a `LoadReport`."""
        raise Error("this model takes no checkpoint", "unsupported")

    def fork(self, edits):
        """A copy with some parameters replaced."""
        raise Error("this model cannot be copied", "unsupported")

    def answer_run(self, header, arrays):
        response = self.run(Request(header, arrays))
        packed = []

        def pack(value):
            packed.append(value)
            return len(packed) - 1

        each = lambda all: {name: pack(value) for name, value in all.items()}
        reply = {"logits": pack(response.logits), "outputs": each(response.outputs), "values": each(response.values)}
        reply["grads"] = [each(g) for g in response.gradients]
        reply["products"] = [each(p) for p in response.products]
        return reply, packed

    def answer_parameters(self, header, arrays):
        named = self.parameters()
        return {"arrays": [[name, n] for n, name in enumerate(named)]}, list(named.values())

    def answer_load(self, header, arrays):
        report = self.load({name: arrays[place] for name, place in header["arrays"]})
        return {"loaded": 0, "new": [], "unused": [], "notes": [], **report}, ()

    def answer_fork(self, header, arrays):
        return self.fork({name: arrays[place] for name, place in header["arrays"]})


class Host:
    """What can be asked of the program during a call."""

    def __init__(self, channel, module):
        self.channel, self.module = channel, module

    def ask(self, name, header=None, arrays=(), model=0):
        return self.channel.call(name, header, arrays, model)


class ModelHandle:
    """The model that is explained, wherever it runs: `ctx.model`."""

    def __init__(self, host, spec, number=0, module=None):
        self._host, self.spec, self._number, self._module = host, spec, number, module

    @property
    def module(self):
        """The `torch.nn.Module`, where this process holds it; else None."""
        return getattr(self._module, "module", None)

    def run(self, images=None, *, values=(), gradients=(), objectives=(), patches=(), start=None, rules=()):
        """Runs the model.

        Args:
            images: [B, C, H, W] float32, normalised as the images of the context are.
            values, gradients: sites, by name.
            objectives: what is differentiated: sets (lists) of `("class", classes)`, `("runner-up", classes)`,
                `("output", name, weights)` or `("site", name, weights)`.
            patches: `(site, scale, shift)`: the site's value becomes `value * scale + shift`; either may be None.
            start: `(site, value)`: the run begins there.
            rules: backward rules.
        """
        arrays = []

        def add(value, dtype=np.float32):
            if hasattr(value, "detach"):
                value = value.detach().cpu().numpy()
            arrays.append(np.ascontiguousarray(value, dtype))
            return len(arrays) - 1

        images = np.zeros([0] * (2 + len(self.spec.size)), np.float32) if images is None else images
        header = {"images": add(images), "values": list(values), "grads": list(gradients), "rules": list(rules)}
        requires = set()
        header["patches"] = []
        for site, scale, shift in patches:
            one = {"site": site, "scale": None if scale is None else add(scale), "shift": None if shift is None else add(shift)}
            header["patches"].append(one)
        header["objectives"] = [[self._objective(o, add, requires) for o in part] for part in objectives]
        if start is not None:
            header["start"] = [start[0], add(start[1])]
        for name, used in (("patches", patches), ("objectives", objectives), ("grads", gradients), ("rules", rules)):
            requires |= {name} if used else set()
        requires |= {"start"} if start is not None else set()
        header["requires"] = sorted(requires)
        reply, found = self._host.ask("run", header, arrays, self._number)
        each = lambda all: {name: found[place] for name, place in all.items()}
        grads = [each(g) for g in reply.get("grads", [])]
        return Response(found[reply["logits"]], each(reply.get("outputs", {})), each(reply.get("values", {})), grads)

    @staticmethod
    def _objective(said, add, requires):
        kind, *rest = said
        if kind in ("class", "runner-up"):
            requires |= {"objective:runner-up"} if kind == "runner-up" else set()
            return {kind: add(rest[0], np.int64)}
        requires |= {"objective:output"} if kind == "output" else set()
        return {kind: [rest[0], add(rest[1])]}

    def logits(self, images):
        """[B, classes] of normalised images."""
        return self.run(images).logits

    def scores(self, images):
        """The logits as scores, by the activation of the task: softmax, sigmoid, or as they are."""
        logits = self.logits(images)
        if self.spec.activation == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        if self.spec.activation == "linear":
            return logits
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def parameters(self):
        """Parameters by name."""
        reply, found = self._host.ask("parameters", {}, (), self._number)
        return {name: found[place] for name, place in reply["arrays"]}

    def fork(self, edits):
        """A copy with some parameters replaced, for this call."""
        header = {"arrays": [[name, n] for n, name in enumerate(edits)]}
        reply, _ = self._host.ask("fork", header, list(edits.values()), self._number)
        return ModelHandle(self._host, self.spec, reply["model"])


class Context:
    """A batch that is to be explained.

    Attributes:
        images: [B, C, H, W] float32, normalised; read-only, as all arrays here are. `tensor` gives a copy.
        targets: what is explained, a row: dictionaries with `kind`, and `class` where that is `class`.
        classes: the targets' classes, [B] int64.
        logits: [B, classes] float32.
        values, gradients: of the sites that the plan asked for, by name.
        ids: stable numbers of the images.
        records: what the data says of each: `name`, `patient`, `columns`.
        fitted: what `fit` gave, by name.
        spec: the model's description.
        model: the model, where the plan asked for it; `module`: its `torch.nn.Module`, where it is in this process.
    """

    def __init__(self, bound, header, arrays, host):
        at = lambda places: {name: arrays[place] for name, place in places.items()}
        self.images, self.logits = arrays[header["images"]], arrays[header["logits"]]
        self.targets = header["targets"]
        for target in self.targets:
            if target.get("kind") == "region":
                target["mask"] = arrays[target["mask"]]
        self.classes = np.asarray([t.get("class", 0) for t in self.targets], np.int64)
        self.outputs, self.values, self.gradients = at(header.get("outputs", {})), at(header["values"]), at(header["gradients"])
        self.ids, self.seed, self.at_once = header["ids"], header["seed"], header.get("at_once") or len(self.images)
        self.records, self.fitted = header.get("records", []), at(header.get("fitted", {}))
        mean = header.get("mean_mask")
        self.mean_mask = None if mean is None else arrays[mean]
        self.spec, self._host, self._name = bound.model, host, bound.explainer.name
        self.model = ModelHandle(host, bound.model, 0, host.module) if bound.needs.model else None

    @property
    def module(self):
        """The model as a `torch.nn.Module`. Raises an error where another process runs it."""
        found = getattr(self._host.module, "module", None)
        if found is None:
            raise Error(f"model {self.spec.name} is no module of this process", "unsupported")
        return found

    def tensor(self, array, device=None):
        """A copy of an array as a torch tensor, on the module's device where there is one."""
        import torch

        if device is None and self._host.module is not None:
            device = self._host.module.device
        return torch.tensor(np.asarray(array), device=device)

    def rng(self, b=0):
        """A generator for image `b`: the same in any batch, another one a seed and explainer."""
        words = hashlib.sha256(f"{self.seed}/{self._name}/{self.ids[b]}".encode()).digest()
        return np.random.default_rng(np.frombuffer(words, np.uint32))

    def progress(self, done, of):
        """How far the call has come; it is a sign of life, too."""
        self._host.ask("progress", {"done": int(done), "of": int(of)})

    def log(self, line):
        """A line for the user."""
        self._host.ask("log", {"line": str(line)})

    def check_cancelled(self):
        """Raises where the user wants the work to stop."""
        reply, _ = self._host.ask("cancelled")
        if reply.get("cancelled"):
            raise Error("cancelled", "cancelled")

    def read_image(self, path):
        """An image file as the model takes it, [C, H, W]."""
        reply, found = self._host.ask("read-image", {"path": os.fspath(path)})
        return found[reply["image"]]

    def batches(self):
        """Batches of the training set, in `fit`: dictionaries with `images`, `labels`, `masks`, `known`, `ids`, `values`, `logits`."""
        rewind = True
        while True:
            reply, found = self._host.ask("fit-batch", {"rewind": rewind})
            rewind, batch = False, reply.get("batch")
            if batch is None:
                return
            names = ("images", "labels", "masks", "known", "logits")
            yield {
                "ids": batch["ids"],
                "values": {name: found[place] for name, place in batch.get("values", [])},
                **{name: found[batch[name]] for name in names},
            }


class _FitContext(Context):
    def __init__(self, bound, header, host):
        self.target_class, self.seed = header.get("class"), header["seed"]
        self.spec, self._host, self._name, self.ids = bound.model, host, bound.explainer.name, [0]
        self.model = ModelHandle(host, bound.model, 0, host.module) if bound.needs.model else None


def _params_of(function):
    """The parameters of a function after its first, as `ParamSpec`s of docs/wire.md."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:
        hints = {}
    specs = []
    for name, argument in list(inspect.signature(function).parameters.items())[1:]:
        if argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            continue
        given = argument.default
        if given is argument.empty:
            raise TypeError(f"{function.__qualname__}: parameter {name} has no default")
        given = given if isinstance(given, _Param) else _Param(given)
        specs.append(_param_spec(name, hints.get(name), given))
    return specs


def _param_spec(name, hint, given):
    default, choices = given.default, given.choices
    if typing.get_origin(hint) is typing.Literal:
        choices, hint = list(typing.get_args(hint)), str
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        choices, hint = [m.value for m in hint], str
    default = default.value if isinstance(default, enum.Enum) else default
    hint = hint if isinstance(hint, type) else type(default)
    spec = {"name": name, "default": default, "unit": given.unit, "text": given.text}
    if choices is not None:
        spec.update(type="choice", choices=[str(c) for c in choices], default=str(default))
    elif hint is bool:
        spec["type"] = "flag"
    elif hint is int:
        low, high = given.range or (_LEAST, _MOST)
        spec.update(type="integer", min=int(low), max=int(high))
    elif hint is float:
        low, high = given.range or (-1.7976931348623157e308, 1.7976931348623157e308)
        spec.update(type="number", min=float(low), max=float(high), default=float(default))
    elif issubclass(hint, pathlib.PurePath):
        spec.update(type="path", default=os.fspath(default))
    elif hint is str:
        spec["type"] = "text"
    else:
        raise TypeError(f"parameter {name}: {hint.__name__} is none of int, float, bool, str, pathlib.Path, Literal, Enum")
    return spec


def _typed(spec, value):
    """A value of a parameter's type; what a command line gives is text."""
    kind = spec["type"]
    wrong = Error(f"parameter {spec['name']}: {value} is no {kind}")
    try:
        if kind == "integer":
            number = int(value) if isinstance(value, str) else value
            if isinstance(number, bool) or int(number) != number:
                raise wrong
            return int(number)
        if kind == "number":
            if isinstance(value, bool):
                raise wrong
            return float(value)
        if kind == "flag":
            found = {"true": True, "false": False}.get(value) if isinstance(value, str) else value
            if not isinstance(found, bool):
                raise wrong
            return found
    except (TypeError, ValueError):
        raise wrong from None
    if not isinstance(value, str):
        raise wrong
    return value


def _resolved(specs, given):
    """Values of parameters: what is given, or the defaults."""
    unknown = set(given) - {s["name"] for s in specs}
    if unknown:
        raise Error(f"there is no parameter {sorted(unknown)[0]}")
    values = {}
    for spec in specs:
        value = _typed(spec, given.get(spec["name"], spec["default"]))
        kind = spec["type"]
        if kind in ("integer", "number") and not spec["min"] <= value <= spec["max"]:
            raise Error(f"parameter {spec['name']}: {value} is not from {spec['min']} to {spec['max']}")
        if kind == "choice" and value not in spec["choices"]:
            raise Error(f"parameter {spec['name']}: {value} is none of {', '.join(spec['choices'])}")
        values[spec["name"]] = pathlib.Path(value) if kind == "path" else value
    return values


class Explainer:
    """An explainer of Python, made by `@lightbox.explainer`. It is called as the function that it was."""

    def __init__(self, made, name, title, family, reference, version, signed, formula, cost, notes, targets, any_dimensions, needs):
        is_class = inspect.isclass(made)
        self.made, self._needs = made, needs
        one = made() if is_class else None
        self._explain = one.explain if is_class else made
        self._plan = getattr(one, "plan", None) if is_class else None
        self._fit = getattr(one, "fit", None) if is_class else None
        # A bound method has no `self` any more; the context is the first argument of either.
        self.parameters = _params_of(self._explain)
        self.name = name or made.__name__.lower().replace("_", "-")
        if family not in FAMILIES:
            raise ValueError(f"family {family!r}: one of {', '.join(FAMILIES)}")
        reference = reference or Reference(title=title or self.name)
        self._spec = {
            "name": self.name, "title": title or made.__name__, "version": version, "reference": reference.spec(),
            "family": family, "signed": signed, "formula": formula, "cost": cost,
            "notes": notes or inspect.cleandoc(made.__doc__ or "").split("\n\n")[0].replace("\n", " "),
            "parameters": self.parameters, "cpu_only": True, "targets": list(targets), "any_dimensions": any_dimensions,
        }  # fmt: skip

    def __call__(self, *given, **named):
        return self.made(*given, **named)

    def spec(self):
        return self._spec

    def plan(self, model, params):
        if self._plan is not None:
            found = self._plan(model, **params)
        elif callable(self._needs):
            found = self._needs(model, **params)
        else:
            found = self._needs
        return Needs(model=True) if found is None else found

    def bind(self, message):
        return Bound(self, message)


class Bound:
    """An explainer with its model and parameters."""

    def __init__(self, explainer, message):
        for name in message.get("requires", []):
            if name not in ("target:region", "target:box", "target:output", "activation:sigmoid", "activation:linear"):
                raise Error(f"the run requires `{name}`, which this version does not know", "unsupported")
        self.explainer, self.model = explainer, ModelSpec(message["model"])
        self.params = _resolved(explainer.parameters, message.get("params", {}))
        spec = explainer.spec()
        other = [k for k in message.get("targets", []) if spec["targets"] and k not in spec["targets"]]
        if other:
            found = NotApplicable(f"it explains {' or '.join(spec['targets'])}, and the target is {other[0]}")
        elif not spec["any_dimensions"] and len(self.model.size) != 2:
            found = NotApplicable(f"it works on images of two axes, and {self.model.name} takes {len(self.model.size)}")
        else:
            found = explainer.plan(self.model, self.params)
        self.needs = found
        if isinstance(found, NotApplicable):
            self.plan = {"plan": "not-applicable", "reason": found.reason}
        elif isinstance(found, Needs):
            if found.fit is not None and explainer._fit is None:
                raise Error("the plan asks for a fit, and there is none")
            self.plan = found.spec()
        else:
            raise Error(f"plan gives lightbox.Needs or lightbox.not_applicable(...), not {type(found).__name__}")

    def _check(self, ctx):
        """An error where what the program gave does not fit together, so that no explainer needs to ask."""
        shape, rows = ctx.images.shape, len(ctx.images)
        if shape[1:] != (self.model.channels, *self.model.size):
            wanted = ", ".join(map(str, (self.model.channels, *self.model.size)))
            raise Error(f"images of shape {list(shape)}, expected [B, {wanted}]")
        if len(ctx.targets) != rows:
            raise Error(f"{len(ctx.targets)} targets for {rows} images")
        for name, value in [*ctx.values.items(), *ctx.gradients.items()]:
            site = self.model.site(name)
            if len(value) != rows or value.ndim != len(site.axes):
                raise Error(f"{name} of shape {list(value.shape)} for {rows} images, expected {' '.join(site.axes)}")

    def explain(self, header, arrays, host):
        ctx = Context(self, header, arrays, host)
        self._check(ctx)
        found = self.explainer._explain(ctx, **self.params)
        maps = found if isinstance(found, Maps) else Maps(found)
        if hasattr(maps.array, "detach"):
            maps.array = maps.array.detach().cpu().numpy()
        array = np.asarray(maps.array)
        if array.dtype == object or array.dtype.kind not in "fiub":
            raise Error(f"maps of {array.dtype}, numbers [B, H, W] are expected", "invalid-output")
        return {"maps": 0, "names": maps.names}, [array.astype(np.float32)]

    def fit(self, header, arrays, host):
        named = self.explainer._fit(_FitContext(self, header, host), **self.params)
        return {"arrays": [[name, n] for n, name in enumerate(named)]}, list(named.values())


class ModelEntry:
    """A model that a plugin offers, made by `@lightbox.model`: a function of its parameters that gives a model."""

    def __init__(self, make, name):
        self.make, self.name = make, name
        self.parameters = _params_of(make)

    def __call__(self, *given, **named):
        return self.make(*given, **named)

    def made(self, options):
        params = _resolved(self.parameters, options.get("params", {}))
        # The function's first argument: device, classes (0 for its own) and seed.
        found = self.make(Options(options), **params)
        if not isinstance(found, Model):
            raise Error(f"{self.name} gives {type(found).__name__}, lightbox.model(net, ...) is expected")
        found.to(options.get("device", "cpu"))
        found.name, found.parameter_specs = self.name, self.parameters
        return found


class Options:
    """How a model is wanted: `device` (`cpu`, `cuda:0`), `classes` (0 for its own number) and `seed` of random weights."""

    def __init__(self, raw):
        self.device, self.classes, self.seed = raw.get("device", "cpu"), raw.get("classes", 0), raw.get("seed", 0)


class Plugin:
    """What a file, or a notebook, offers."""

    def __init__(self, name, file=""):
        self.name, self.file, self.version = name, file, "0.1.0"
        self.explainers, self.models = {}, {}

    def add(self, entry):
        table = self.models if isinstance(entry, ModelEntry) else self.explainers
        if entry.name in table:
            raise Error(f"two of {self.file or self.name} have the name {entry.name}")
        table[entry.name] = entry

    def manifest(self):
        return {
            "plugin": self.name,
            "version": self.version,
            "models": [m.made({}).spec() for m in self.models.values()],
            "explainers": [e.spec() for e in self.explainers.values()],
        }

    def make_model(self, name, options):
        if name not in self.models:
            raise Error(f"this plugin has no model {name}")
        return self.models[name].made(options)

    def bind(self, name, message):
        if name not in self.explainers:
            raise Error(f"this plugin has no explainer {name}")
        return self.explainers[name].bind(message)


_collecting = []


@contextlib.contextmanager
def collecting(found):
    """What is decorated in the meantime is this plugin's."""
    _collecting.append(found)
    try:
        yield found
    finally:
        _collecting.pop()


def register(entry):
    """Hands an explainer or a model to the plugin whose file is being opened, if any."""
    if _collecting:
        _collecting[-1].add(entry)
    return entry


def explainer(made=None, *, name=None, title=None, family="other", reference=None, version="0.1.0", signed=False, formula="",
              cost="", notes="", targets=("class",), any_dimensions=False, needs=None):  # fmt: skip
    """Makes an explainer of a function `f(ctx, ...)`, or of a class with `explain(self, ctx, ...)` and, where it likes,
    `plan(self, model, ...)` and `fit(self, ctx, ...)`. Arguments after the first are the parameters, each with a default.

    Args:
        name: permanent, lower case; the function's otherwise.
        family: one of cam, attention, gradient, perturbation, relevance, control, other.
        signed: negative values speak against the target.
        formula, cost, notes: for `lightbox info`.
        targets: kinds of targets that it explains: class, region, box, output.
        any_dimensions: it explains volumes, too.
        needs: `Needs`, or a function of the model's `ModelSpec` and the parameters that gives `Needs` or `not_applicable(...)`;
            the model, unless it is said.
    """

    def decorate(made):
        return register(Explainer(made, name, title, family, reference, version, signed, formula, cost, notes, targets,
                                   any_dimensions, needs))  # fmt: skip

    return decorate if made is None else decorate(made)
