"""Lightbox in Python.

`export` writes a network as a `.pt2` file that Lightbox runs without Python. `explainer`, `model`, `param`, `Needs`, `Maps` and
`not_applicable` make plugins of Python files. Nothing here imports torch before it is needed.
"""

from .plugin import Context, Error, Maps, ModelHandle, Needs, Reference, Response, explainer, model, not_applicable, param

__all__ = [
    "Context", "Error", "Maps", "ModelHandle", "Needs", "Reference", "Response", "explainer", "export", "model", "not_applicable",
    "param",
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
