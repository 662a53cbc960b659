"""Lightbox in Python.

`run` explains images of a network by several methods and scores every map; `explain`, `score` and `read` do parts of it; `export` writes
a network as a `.pt2` file that Lightbox runs without Python. `explainer`, `model`, `param`, `Needs`, `Maps` and `not_applicable`
make explainers and models, in a notebook or in files that the program loads. Nothing here imports torch before it is needed.
"""

from .models import model
from .plugin import Context, Error, Maps, ModelHandle, Needs, Reference, Response, explainer, not_applicable, param
from .session import Run, RunError, explain, read, run, score

__all__ = [
    "Context", "Error", "Maps", "ModelHandle", "Needs", "Reference", "Response", "Run", "RunError", "explain", "explainer",
    "export", "model", "not_applicable", "param", "read", "run", "score",
]  # fmt: skip
__version__ = "0.3.0"


def __getattr__(name):
    # `export` needs torch, which takes seconds to import.
    if name == "export":
        from .export import export

        # The import has set the name to the module of the same name.
        globals()["export"] = export
        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
