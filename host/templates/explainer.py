# /// script
# requires-python = ">=3.9"
# dependencies = ["numpy"]
# ///
"""What the method does, and its formula. `lightbox check FILE` tests it; `lightbox info NAME` shows what is said here."""

import numpy as np

import lightbox as lb


def needs(model, cells):
    """What it wants of a model, before anything is run; or why it does not apply."""
    if len(model.size) != 2:
        return lb.not_applicable(f"it works on images of two axes, and {model.name} takes volumes")
    return lb.Needs(model=True, forward=cells * cells)


@lb.explainer(
    name="NAME",
    title="FUNCTION",
    family="perturbation",
    signed=True,
    formula="the fall of the logit where a cell is set to the mean image",
    cost="1 F a cell",
    reference=lb.Reference("Nobody et al.", "The paper of the method", "Venue", 2026, "arXiv:0000.00000"),
    needs=needs,
)
def FUNCTION(ctx, cells: int = lb.param(7, range=(1, 64), text="of the grid, a side")):
    """A sentence or two about the method, for `lightbox info`."""
    count, _, height, width = ctx.images.shape
    rows, maps = np.arange(count), np.zeros((count, cells, cells), np.float32)
    for cell in range(cells * cells):
        i, j = divmod(cell, cells)
        changed = ctx.images.copy()
        changed[:, :, i * height // cells : (i + 1) * height // cells, j * width // cells : (j + 1) * width // cells] = 0
        fall = ctx.logits[rows, ctx.classes] - ctx.model.logits(changed)[rows, ctx.classes]
        maps[:, i, j] = fall
        ctx.progress(cell + 1, cells * cells)
    return maps
