"""Calls an explainer as the program would, for unit tests: without the program, a network or torch."""

import numpy as np

from .plugin import Bound, ModelSpec, Request


class _Host:
    """Answers what an explainer asks: a model is a function from images to logits."""

    module = None

    def __init__(self, logits, gradients, values):
        self.logits, self.gradients, self.values, self.lines = logits, gradients, values, []

    def ask(self, name, header=None, arrays=(), model=0):
        header = header or {}
        if name == "run":
            request = Request(header, list(arrays))
            found = [np.asarray(self.logits(request.images), np.float32)]
            return {"logits": 0, "outputs": {}, "values": {}, "grads": [], "products": []}, found
        if name == "cancelled":
            return {"cancelled": False}, []
        if name == "log":
            self.lines.append(header["line"])
        return {}, []


def model_spec(size=16, channels=3, classes=2, sites=(), cam_site=None, **more):
    """The description of a model that is not there: its input, and `sites`, a dictionary from name to (channels, grid)."""
    size = [size, size] if isinstance(size, int) else list(size)
    axes = ["batch", "channel", "depth", "height", "width"][: 2 + len(size)] if len(size) == 3 else ["batch", "channel", "height", "width"]
    described = [
        {"name": name, "role": "feature", "axes": axes, "channels": c, "grid": list(grid), "prefix": []}
        for name, (c, grid) in dict(sites).items()
    ]
    return {
        "name": "test", "title": "Test", "version": "0", "reference": {"title": "test"},
        "input": {"channels": channels, "size": size, "mean": [0.0] * channels, "std": [1.0] * channels},
        "outputs": [{"name": "logits", "kind": "classes", "classes": classes, "activation": "softmax"}],
        "sites": described, "cam_site": cam_site, "rules": [], **more,
    }  # fmt: skip


def bind(explainer, model=None, **params):
    """The explainer with a model's description and its parameters; `.plan` is what it needs."""
    return Bound(explainer, {"model": model or model_spec(), "params": params})


def explain(explainer, images, *, classes=None, logits=None, values=None, gradients=None, model=None, seed=0, **params):
    """Maps of images.

    Args:
        images: [B, C, H, W], normalised.
        classes: the classes to explain, 0 otherwise.
        logits: a function from images to logits [B, classes]; zeros otherwise.
        values, gradients: of the sites that the explainer asks for, by name.
        model: `model_spec(...)`; one that fits the images otherwise.
        params: the explainer's.
    """
    images = np.asarray(images, np.float32)
    described = model or model_spec(images.shape[2:], images.shape[1])
    count = described["outputs"][0]["classes"]
    run = logits or (lambda x: np.zeros((len(x), count), np.float32))
    bound = bind(explainer, described, **params)
    if bound.plan["plan"] != "run":
        raise AssertionError(f"it does not apply: {bound.plan['reason']}")
    arrays, places = [images, np.asarray(run(images), np.float32)], {"values": {}, "gradients": {}}
    for kind, given in (("values", values or {}), ("gradients", gradients or {})):
        for name, value in given.items():
            places[kind][name] = len(arrays)
            arrays.append(np.asarray(value, np.float32))
    classes = [0] * len(images) if classes is None else list(classes)
    header = {
        "images": 0, "logits": 1, "targets": [{"kind": "class", "class": int(c)} for c in classes],
        "ids": list(range(len(images))), "seed": seed, "at_once": len(images), **places,
    }  # fmt: skip
    reply, found = bound.explain(header, arrays, _Host(run, gradients, values))
    return found[reply["maps"]]


__all__ = ["ModelSpec", "bind", "explain", "model_spec"]
