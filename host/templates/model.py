# /// script
# requires-python = ">=3.9"
# dependencies = ["torch"]
# ///
"""A network under a name: any `torch.nn.Module`, whose modules become sites. `lightbox check FILE` tests it."""

import lightbox as lb


@lb.model(name="NAME")
def FUNCTION(options, width: int = lb.param(16, range=(1, 1024), text="channels")):
    import torch
    from torch import nn

    torch.manual_seed(options.seed)
    network = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, options.classes or 2),
    )  # fmt: skip
    # Without own weights a checkpoint is loaded into it: --weights FILE, or weights = "FILE" in a spec.
    return lb.model(network, size=64, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], own_weights=False)
