# /// script
# requires-python = ">=3.9"
# dependencies = ["torch>=2.0", "torchvision>=0.15"]
# ///
"""A classifier of torchvision by its name (TorchVision maintainers, github.com/pytorch/vision), with its published weights, or none.
Size, mean and std are ImageNet's, as its weights have them."""

import lightbox as lb


@lb.model(name="torchvision")
def torchvision_model(
    options,
    network: str = lb.param("resnet18", text="of torchvision.models.list_models()"),
    weights: str = lb.param("", text="published weights, which torchvision downloads: DEFAULT, IMAGENET1K_V1"),
    size: int = lb.param(224, range=(8, 4096), unit="px", text="of the input"),
):
    import torch
    import torchvision

    if network not in torchvision.models.list_models(module=torchvision.models):
        raise lb.Error(f"torchvision has no classifier {network}")
    torch.manual_seed(options.seed)
    net = torchvision.models.get_model(network, weights=weights or None)
    if options.classes:
        # The last linear layer is the head of each.
        name = [path for path, module in net.named_modules() if isinstance(module, torch.nn.Linear)][-1]
        head = net.get_submodule(name)
        if head.out_features != options.classes:
            parent = net.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], torch.nn.Linear(head.in_features, options.classes))
    return lb.model(net.eval(), size=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), title=network,
                    reference=lb.Reference("TorchVision maintainers", "TorchVision", "GitHub", 2016, ""),
                    own_weights=bool(weights))  # fmt: skip
