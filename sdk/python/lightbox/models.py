"""`lightbox.model`: a network under a name, or the model that a network is."""

import inspect

from .plugin import ModelEntry, register

__all__ = ["model"]


def model(made=None, *, name=None, **given):
    """As a decorator of a function `f(options, ...)` that gives a model, it offers a model under a name. Called with a
    `torch.nn.Module` it gives the model itself; see `lightbox.network.Network` for the other arguments."""

    def decorate(made):
        return register(ModelEntry(made, name or made.__name__.lower().replace("_", "-")))

    if made is None:
        return decorate
    if inspect.isfunction(made) and not given:
        return decorate(made)
    from .network import Network

    return Network(made, name=name or type(made).__name__.lower(), **given)
