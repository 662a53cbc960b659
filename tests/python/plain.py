"""A network in NumPy alone, and explainers, for tests that go without torch: a convolution of 1 x 1, ReLU, the mean over places, and a
linear layer, differentiated by hand."""

import numpy as np

import lightbox as lb
from lightbox.plugin import Model, Response


class Plain(Model):
    def __init__(self, size, seed):
        draw = np.random.default_rng(seed)
        self.size, self.name, self.parameter_specs = size, "plain", []
        self.weights = {"mix": draw.normal(size=(6, 3)).astype(np.float32), "head": draw.normal(size=(2, 6)).astype(np.float32)}

    def spec(self):
        grid, site = [self.size, self.size], {"prefix": [], "block": None, "query": "", "weight": "", "start": False, "text": ""}
        axes = ["batch", "channel", "height", "width"]
        return {
            "name": self.name, "title": "Plain", "version": "0.1.0", "reference": {"title": "A network in NumPy"},
            "input": {"channels": 3, "size": grid, "mean": [0.5] * 3, "std": [0.25] * 3},
            "outputs": [{"name": "logits", "kind": "classes", "classes": 2, "activation": "softmax"}],
            "sites": [
                {**site, "name": "input", "role": "input", "axes": axes, "channels": 3, "grid": grid},
                {**site, "name": "features", "role": "feature", "axes": axes, "channels": 6, "grid": grid},
                {**site, "name": "logits", "role": "logits", "axes": ["batch", "class"], "channels": 2, "grid": []},
            ],
            "cam_site": "features", "attention_site": None, "rules": [], "parameters": self.parameter_specs, "trainable": False,
            "mixed_precision": False, "own_weights": True,
        }  # fmt: skip

    def run(self, request):
        if request.start is not None:
            raise lb.Error("no run begins at a site", "unsupported")
        values, patch = {}, {site: (scale, shift) for site, scale, shift in request.patches}

        def at(name, value):
            scale, shift = patch.get(name, (None, None))
            value = value if scale is None else value * scale
            values[name] = (value if shift is None else value + shift).astype(np.float32)
            return values[name]

        scale_of = lambda name: 1 if patch.get(name, (None, None))[0] is None else patch[name][0]
        x = at("input", request.images)
        z = np.einsum("kc,bchw->bkhw", self.weights["mix"], x)
        features = at("features", np.maximum(z, 0))
        logits = at("logits", features.mean((2, 3)) @ self.weights["head"].T)
        gradients = []
        for part in request.objectives:
            grads = {name: np.zeros_like(values[name]) for name in ("input", "features", "logits")}
            for kind, name, given in part:
                if kind == "site":
                    grads[name] = grads[name] + given
                elif kind == "output":
                    grads["logits"] = grads["logits"] + given
                else:
                    order = np.argsort(-logits, axis=1, kind="stable")
                    rows = np.arange(len(given))
                    chosen = np.where(given < 0, order[rows, np.maximum(-given - 1, 0)], given)
                    if kind == "runner-up":
                        chosen = np.where(order[:, 0] == given, order[:, 1], order[:, 0])
                    grads["logits"][rows, chosen] += 1
            back = grads["logits"] * scale_of("logits") @ self.weights["head"]
            grads["features"] = grads["features"] + back[:, :, None, None] / self.size**2
            inner = grads["features"] * scale_of("features") * (z > 0)
            grads["input"] = grads["input"] + np.einsum("kc,bkhw->bchw", self.weights["mix"], inner)
            gradients.append({name: grads[name].astype(np.float32) for name in request.grads})
        products = [{name: np.zeros_like(values[name]) for name, _ in request.products} for _ in request.objectives]
        return Response(logits, {}, {name: values[name] for name in request.values}, gradients, products)

    def parameters(self):
        return self.weights

    def load(self, parameters):
        self.weights = {name: np.array(parameters[name]) for name in self.weights}
        return {"loaded": len(self.weights)}

    def fork(self, edits):
        other = Plain(self.size, 0)
        other.name, other.weights = self.name, {**self.weights, **{n: np.array(v) for n, v in edits.items()}}
        return other


@lb.model
def plain(options, size: int = lb.param(64, range=(4, 512), unit="px", text="of the input")):
    return Plain(size, options.seed)


def at_the_pooled_site(model):
    if model.cam_site is None:
        return lb.not_applicable(f"{model.name} has no feature map")
    return lb.Needs([model.cam_site], [model.cam_site])


@lb.explainer(name="py-gradcam", title="GradCAM in Python", family="cam", needs=at_the_pooled_site,
              reference=lb.Reference("Selvaraju et al.", "Grad-CAM", "ICCV", 2017, "arXiv:1610.02391"))  # fmt: skip
def gradcam(ctx):
    """relu(sum over channels of the mean gradient times the value)."""
    site = ctx.spec.site(ctx.spec.cam_site)
    value, gradient = site.to_grid(ctx.values[site.name]), site.to_grid(ctx.gradients[site.name])
    return np.maximum((gradient.mean((2, 3), keepdims=True) * value).sum(1), 0)


@lb.explainer(name="py-occlusion", title="Occlusion in Python", family="perturbation", signed=True, cost="1 F a cell")
class Occlusion:
    """The fall of the target's logit where a cell of a grid is set to 0."""

    def plan(self, model, grid, fill):
        return lb.Needs(model=True, forward=grid * grid)

    def explain(self, ctx, grid: int = lb.param(4, range=(1, 32), text="cells a side"), fill: float = lb.param(0.0, unit="normalised")):
        b, _, h, w = ctx.images.shape
        rows, maps = np.arange(b), np.zeros((b, grid, grid), np.float32)
        for cell in range(grid * grid):
            ctx.check_cancelled()
            i, j = divmod(cell, grid)
            x = ctx.images.copy()
            x[:, :, i * h // grid : (i + 1) * h // grid, j * w // grid : (j + 1) * w // grid] = fill
            maps[:, i, j] = ctx.logits[rows, ctx.classes] - ctx.model.logits(x)[rows, ctx.classes]
            ctx.progress(cell + 1, grid * grid)
        return maps


@lb.explainer(name="py-noise", title="Noise in Python", family="control", needs=lb.Needs())
def noise(ctx):
    """A draw of its own for every image."""
    return np.stack([ctx.rng(b).random(ctx.images.shape[2:], np.float32) for b in range(len(ctx.images))])


@lb.explainer(name="py-fork", title="GradCAM of other weights", family="control", needs=lb.Needs(model=True))
def fork(ctx):
    """The difference that it makes to the logits when all parameters are halved."""
    other = ctx.model.fork({name: value * np.float32(0.5) for name, value in ctx.model.parameters().items() if value.dtype == np.float32})
    change = np.abs(other.logits(ctx.images) - ctx.model.logits(ctx.images)).sum(1)
    return np.ones(ctx.images.shape[2:], np.float32) * change[:, None, None] * np.linspace(0, 1, ctx.images.shape[3], dtype=np.float32)


@lb.explainer(name="py-fit", title="The mean of the training images", family="control")
class Fit:
    """The distance from the mean of the training images."""

    def plan(self, model):
        return lb.Needs(fit=[])

    def fit(self, ctx):
        total, count = 0.0, 0
        for batch in ctx.batches():
            total, count = total + batch["images"].sum(0), count + len(batch["images"])
        return {"mean": (total / count).astype(np.float32)}

    def explain(self, ctx):
        return np.abs(ctx.images - ctx.fitted["mean"]).sum(1)


@lb.explainer(name="py-nothing", title="Nothing", family="control", signed=True, needs=lb.Needs())
def nothing(ctx):
    """A value an image: what is left is the way there and back."""
    return ctx.images[:, 0, :1, :1]
