"""A live `torch.nn.Module` as a model: every module's output is a site under the module's name, read, changed and differentiated by
hooks. Nothing of the module is changed: its mode, its parameters and its hooks are afterwards as they were."""

import copy
import math
import sys

import numpy as np
import torch

from .plugin import Error, Model, Reference, Response


def _first(result):
    """The first tensor of a result that may be a tuple or a dictionary; None where there is none."""
    while not isinstance(result, torch.Tensor):
        if isinstance(result, dict) and result:
            result = next(iter(result.values()))
        elif isinstance(result, (list, tuple)) and result:
            result = result[0]
        else:
            return None
    return result


def _is_site(value):
    """Whether a module's call counts as a site, or as one of several of the module."""
    return value is not None and value.is_floating_point() and value.dim() >= 2


def _replaced(result, value):
    """The same result with another first tensor."""
    if isinstance(result, torch.Tensor):
        return value
    if isinstance(result, dict):
        key = next(iter(result))
        return type(result)({**result, key: _replaced(result[key], value)})
    parts = (_replaced(result[0], value), *result[1:])
    return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)


class Network(Model):
    """A network of this process.

    Args:
        module: takes one tensor [B, C, H, W] (or a volume's [B, C, D, H, W]) and gives logits [B, classes].
        size: the input's, `224`, `(H, W)` or `(D, H, W)`.
        mean, std: a number a channel, or one: the module takes `(value in [0, 1] - mean) / std`.
        channels: of the input, 3 unless it is said.
        classes: names of the outputs, or how many there are; counted by a run otherwise.
        activation: softmax, sigmoid or linear: what makes scores of the logits.
        cam_site: the module whose output class activation maps read; the last feature map, or what the last attention reads,
            unless it is said.
        reference, title: for tables and lists.
        own_weights: the module has its weights; False where a checkpoint is to be loaded into it.
    """

    def __init__(self, module, *, size=224, mean=None, std=None, channels=3, classes=None, activation="softmax", cam_site=None,
                 name="network", title=None, reference=None, own_weights=True):  # fmt: skip
        if not isinstance(module, torch.nn.Module):
            raise Error(f"a torch.nn.Module is expected, not {type(module).__name__}")
        if (mean is None) != (std is None):
            raise Error("mean and std are given together")
        self.own_weights = own_weights
        self.module, self.name, self.title = module, name, title or type(module).__name__
        self.size = [size, size] if isinstance(size, int) else [int(n) for n in size]
        self.channels, self.activation = channels, activation
        each = lambda v: [float(x) for x in v] if hasattr(v, "__len__") else [float(v)] * channels
        self.mean, self.std = (each(0.0), each(1.0)) if mean is None else (each(mean), each(std))
        if len(self.mean) != channels or len(self.std) != channels:
            raise Error(f"mean has {len(self.mean)} numbers and std {len(self.std)}, the input {channels} channels")
        self.reference, self.parameter_specs, self._cam_site = reference or Reference(title=self.title), [], cam_site
        self.class_names = [str(c) for c in classes] if classes is not None and not isinstance(classes, int) else []
        self._classes = classes if isinstance(classes, int) else len(self.class_names) or None
        self._spec = None

    @property
    def device(self):
        """Of its parameters."""
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def to(self, device):
        """Moves it."""
        self.module.to(device)

    # ------------------------------------------------------------------------------ what it is

    def spec(self):
        if self._spec is None:
            self._spec = self._described()
        return {**self._spec, "name": self.name, "parameters": self.parameter_specs}

    def _described(self):
        seen, attended = [], []

        def after(path):
            def hook(module, given, result):
                value = _first(result)
                if _is_site(value):
                    seen.append((path, value))
                if "attention" in type(module).__name__.lower() and given and isinstance(given[0], torch.Tensor):
                    attended.append(given[0])

            return hook

        handles = [m.register_forward_hook(after(path)) for path, m in self.module.named_modules() if path]
        images = torch.zeros(2, self.channels, *self.size, device=self.device, dtype=self._dtype())
        try:
            with self._evaluating(), torch.no_grad():
                logits = _first(self.module(images))
        finally:
            for handle in handles:
                handle.remove()
        if logits is None or logits.dim() != 2:
            shape = None if logits is None else tuple(logits.shape)
            raise Error(f"the network gives {shape} for two images, logits [2, classes] are expected", "unsupported")
        classes = logits.shape[1]
        if self._classes not in (None, classes):
            raise Error(f"{self._classes} classes are named, the network has {classes} outputs")
        sites, names, last, of = [self._site("input", images, "input")], {}, None, {}
        for path, value in seen:
            names[path] = names.get(path, -1) + 1
            name = path if names[path] == 0 else f"{path}@{names[path]}"
            # Of a batch of windows or tokens there is no row an image.
            if value.shape[0] != 2:
                continue
            site = self._site(name, value)
            sites.append(site)
            of[id(value)] = name
            if site["grid"] and math.prod(site["grid"]) > 1:
                last = site
        cam = last["name"] if last else None
        if last and last["prefix"] and attended and id(attended[-1]) in of:
            cam = of[id(attended[-1])]
        if self._cam_site is not None:
            if not any(s["name"] == self._cam_site and s["grid"] for s in sites):
                raise Error(f"cam_site: the network has no module {self._cam_site} whose output has places")
            cam = self._cam_site
        sites.append({**self._site("logits", logits, "logits"), "axes": ["batch", "class"]})
        return {
            "title": self.title, "version": torch.__version__.split("+")[0], "reference": self.reference.spec(),
            "input": {"channels": self.channels, "size": self.size, "mean": self.mean, "std": self.std},
            "outputs": [{"name": "logits", "kind": "classes", "classes": classes, "activation": self.activation}],
            "sites": sites, "cam_site": cam, "attention_site": None, "rules": [], "trainable": False,
            "mixed_precision": False, "class_names": self.class_names, "own_weights": self.own_weights, "interpreter": sys.executable,
        }  # fmt: skip

    def _site(self, name, value, role=None):
        shape, spatial = list(value.shape[1:]), ["depth", "height", "width"][3 - len(self.size) :]
        site = {"name": name, "role": role or "other", "channels": shape[0], "grid": [], "prefix": [], "block": None, "query": "",
                "weight": "", "start": False, "text": ""}  # fmt: skip
        if len(shape) == 1 + len(self.size) and self._last(shape):
            site.update(role="feature", axes=["batch", "channel", *spatial], channels=shape[-1], grid=shape[:-1],
                        text="channels come last in the network; handed on as B C H W")  # fmt: skip
        elif len(shape) == 1 + len(self.size):
            site.update(role=role or "feature", axes=["batch", "channel", *spatial], grid=shape[1:])
        elif len(shape) == 1:
            site.update(axes=["batch", "channel"])
        elif len(shape) == 2 and self._grid(shape[0]):
            grid, prefix = self._grid(shape[0])
            names = ["cls", *(f"prefix{i}" for i in range(1, prefix))][:prefix]
            site.update(role="tokens", axes=["batch", "token", "channel"], channels=shape[1], grid=grid, prefix=names)
        else:
            site.update(axes=["batch", *["other"] * len(shape)])
        return site

    def _last(self, shape):
        """Whether a value's channels come last: its first axes have the image's proportions, and its last ones have not."""
        fits = lambda grid: all(abs(n * self.size[0] - grid[0] * s) < max(self.size) for n, s in zip(grid, self.size))
        return fits(shape[:-1]) and not fits(shape[1:]) and shape[0] > 1

    def _grid(self, tokens):
        """The grid of so many tokens, in the image's proportions, and how many stand before it."""
        for prefix in range(min(6, tokens)):
            scale = (tokens - prefix) / math.prod(self.size)
            grid = [round(n * scale ** (1 / len(self.size))) for n in self.size]
            if min(grid) > 1 and math.prod(grid) == tokens - prefix:
                return grid, prefix
        return None

    def _dtype(self):
        first = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        return torch.float32 if first is None else first.dtype

    def _evaluating(self):
        return _Evaluating(self.module)

    # ------------------------------------------------------------------------------ what it computes

    def run(self, request):
        if request.start is not None or request.rules:
            what = "begins at a site" if request.start is not None else f"has rule {request.rules[0]}"
            raise Error(f"no run of a module in Python {what}; export it (lightbox.export) for that", "unsupported")
        differentiates = bool(request.grads and request.objectives)
        wanted = {*request.values, *request.grads, *(p[0] for p in request.patches)}
        wanted |= {o[1] for part in request.objectives for o in part if o[0] == "site"}
        changes = {site: (scale, shift) for site, scale, shift in request.patches}
        kept = {}
        take = lambda a: torch.tensor(np.asarray(a), device=self.device)
        lasts = {s["name"] for s in self.spec()["sites"] if s["text"].startswith("channels come last")}
        turned = lambda name, value: value.movedim(-1, 1) if name in lasts else value
        back = lambda name, value: value.movedim(1, -1) if name in lasts else value

        def at(name, value):
            """A site's value: changed, kept, and handed on as a copy, which what comes after may write to."""
            value = turned(name, value)
            scale, shift = changes.get(name, (None, None))
            value = value if scale is None else value * take(scale)
            value = value if shift is None else value + take(shift)
            kept[name] = value
            return back(name, value.clone())

        calls = {}

        def after(path):
            def hook(module, given, result):
                value = _first(result)
                if not _is_site(value):
                    return None
                calls[path] = calls.get(path, -1) + 1
                name = path if calls[path] == 0 else f"{path}@{calls[path]}"
                return _replaced(result, at(name, value)) if name in wanted else None

            return hook

        paths = {name.split("@")[0] for name in wanted}
        handles = [m.register_forward_hook(after(path)) for path, m in self.module.named_modules() if path and path in paths]
        images = take(request.images).to(self._dtype())
        if differentiates:
            images.requires_grad_(True)
        try:
            with self._evaluating(), torch.set_grad_enabled(differentiates):
                if "input" in wanted:
                    images = at("input", images)
                logits = _first(self.module(images))
                if "logits" in wanted:
                    logits = at("logits", logits)
        finally:
            for handle in handles:
                handle.remove()
        missing = [name for name in wanted if name not in kept]
        if missing:
            raise Error(f"model {self.name} has no site {missing[0]}")
        gradients, products = [{} for _ in request.objectives if not differentiates], []
        if differentiates:
            nodes = [kept[name] for name in request.grads]
            directions = {name: take(direction) for name, direction in request.products}
            for i, part in enumerate(request.objectives):
                total = sum(self._objective(o, logits, kept, take) for o in part)
                again = i + 1 < len(request.objectives) or bool(directions)
                found = torch.autograd.grad(total, nodes, retain_graph=again, create_graph=bool(directions), allow_unused=True)
                found = [torch.zeros_like(n) if g is None else g for g, n in zip(found, nodes)]
                gradients.append(dict(zip(request.grads, found)))
                if directions:
                    products.append(self._products(dict(zip(request.grads, zip(nodes, found))), directions))
        plain = lambda t: t.detach().float().cpu()
        each = lambda all: {name: plain(value) for name, value in all.items()}
        values = {name: plain(kept[name]) for name in request.values}
        return Response(plain(logits), {}, values, [each(g) for g in gradients], [each(p) for p in products])

    @staticmethod
    def _products(nodes, directions):
        """The Hessian times a direction, by differentiating the gradient once more."""
        found = {}
        for name, direction in directions.items():
            node, gradient = nodes[name]
            zero = torch.zeros_like(node)
            if gradient.requires_grad:
                product = torch.autograd.grad((gradient * direction).sum(), node, retain_graph=True, allow_unused=True)[0]
                found[name] = zero if product is None else product
            else:
                found[name] = zero
        return found

    def _objective(self, objective, logits, kept, take):
        kind, name, value = objective
        if kind == "site":
            return (kept[name] * take(value)).sum()
        if kind == "output":
            if name != "logits":
                raise Error(f"model {self.name} has no output {name}")
            return (logits * take(value)).sum()
        classes = take(value).long()
        if kind == "runner-up":
            return logits.scatter(1, classes[:, None], -torch.inf).amax(1).sum()
        # A negative class is that of a rank.
        order = torch.sort(logits.detach(), dim=1, descending=True, stable=True).indices
        ranks = (-classes - 1).clamp(min=0)
        classes = torch.where(classes < 0, order.gather(1, ranks[:, None])[:, 0], classes)
        return logits.gather(1, classes[:, None]).sum()

    def parameters(self):
        return dict(self.module.state_dict())

    def load(self, parameters):
        own = self.module.state_dict()
        report = {"loaded": 0, "new": [], "unused": [n for n in parameters if n not in own], "notes": []}
        chosen = {}
        for name, value in own.items():
            given = parameters.get(name)
            if given is None:
                if name.endswith("num_batches_tracked"):
                    continue
                raise Error(f"the checkpoint has no {name}, which model {self.name} needs")
            if tuple(given.shape) != tuple(value.shape):
                raise Error(f"{name} is {list(given.shape)} in the checkpoint, and {list(value.shape)} in model {self.name}")
            chosen[name] = given
        self._take(chosen)
        report["loaded"] = len(chosen)
        return report

    def _take(self, parameters):
        own = self.module.state_dict()
        with torch.no_grad():
            for name, value in parameters.items():
                if name not in own:
                    raise Error(f"model {self.name} has no parameter {name}")
                own[name].copy_(torch.tensor(np.asarray(value)))

    def fork(self, edits):
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module)
        other._take(edits)
        return other


class _Evaluating:
    """Evaluation mode, and each module's own afterwards."""

    def __init__(self, module):
        self.modes = {m: m.training for m in module.modules()}
        self.module = module

    def __enter__(self):
        if any(self.modes.values()):
            self.module.eval()

    def __exit__(self, *_):
        for module, mode in self.modes.items():
            module.training = mode
