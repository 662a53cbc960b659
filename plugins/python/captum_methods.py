# /// script
# requires-python = ">=3.9"
# dependencies = ["torch>=2.0", "captum>=0.7"]
# ///
"""Captum's attributions of images (Kokhlikyan et al., arXiv:2009.07896), as they are, beside ours. Methods that need the forward
function alone apply to every model; those that differentiate or hook the network apply to models of Python in the same interpreter.
Channels are summed."""

import numpy as np

import lightbox as lb

LIBRARY = lb.Reference("Kokhlikyan et al.", "Captum: A unified and generic model interpretability library for PyTorch", "", 2020,
                       "arXiv:2009.07896")  # fmt: skip


def module_needs(model, **_):
    if not model.is_module_here:
        return lb.not_applicable(f"it differentiates the network itself, and {model.name} is no module of this interpreter")
    return lb.Needs(model=True)


def layer_needs(model, layer="", **_):
    found = module_needs(model)
    if not isinstance(found, lb.Needs):
        return found
    name = layer or model.cam_site
    if name is None or not any(s.name == name and s.is_map for s in model.sites):
        return lb.not_applicable(f"{model.name} has no feature map {name or ''}".rstrip())
    return found


def forward(ctx):
    """The logits as a function of a tensor, through whatever runs the model."""
    import torch

    def logits(images):
        with torch.no_grad():
            parts = [ctx.model.logits(part) for part in images.split(max(ctx.at_once, 1))]
            return torch.from_numpy(np.concatenate(parts))

    return logits


def attribute(ctx, make, **given):
    import torch

    images = ctx.tensor(ctx.images).requires_grad_(True)
    targets = torch.as_tensor(ctx.classes, device=images.device)
    with torch.enable_grad():
        found = make().attribute(images, target=targets, **given)
    return found.detach().sum(1)


def explainer(name, title, needs=module_needs, cost=""):
    return lb.explainer(name=f"captum-{name}", title=f"{title} of Captum", family="gradient", reference=LIBRARY, signed=True,
                        cost=cost, needs=needs)  # fmt: skip


def plain(name, title, class_name):
    """A method of one forward and one backward pass without parameters, by the name of its class."""

    def explain(ctx):
        import captum.attr

        return attribute(ctx, lambda: getattr(captum.attr, class_name)(ctx.module))

    explainer(name, title, cost="1 F, 1 B")(explain)


plain("saliency", "Saliency", "Saliency")
plain("inputxgradient", "Input x gradient", "InputXGradient")
plain("guidedbackprop", "Guided backpropagation", "GuidedBackprop")
plain("deconvolution", "Deconvolution", "Deconvolution")
plain("deeplift", "DeepLIFT", "DeepLift")
plain("lrp", "LRP", "LRP")


@explainer("integratedgradients", "Integrated gradients", cost="steps x (1 F, 1 B)")
def integrated_gradients(ctx, steps: int = lb.param(50, range=(1, 1000), text="points on the path, Gauss-Legendre")):
    from captum.attr import IntegratedGradients

    return attribute(ctx, lambda: IntegratedGradients(ctx.module), n_steps=steps, internal_batch_size=max(ctx.at_once, 1))


@explainer("gradcam", "GradCAM", needs=layer_needs, cost="1 F, 1 B")
def gradcam(ctx, layer: str = lb.param("", text="the layer; the one that is pooled if empty")):
    import torch
    from captum.attr import LayerGradCam

    layer = dict(ctx.module.named_modules())[(layer or ctx.spec.cam_site).split("@")[0]]
    images = ctx.tensor(ctx.images)
    targets = torch.as_tensor(ctx.classes, device=images.device)
    with torch.enable_grad():
        found = LayerGradCam(ctx.module, layer).attribute(images, target=targets, relu_attributions=True)
    return found.detach()[:, 0]


def forward_needs(model, **_):
    return lb.Needs(model=True)


@lb.explainer(name="captum-occlusion", title="Occlusion of Captum", family="perturbation", reference=LIBRARY, signed=True, needs=forward_needs)
def occlusion(
    ctx,
    window: int = lb.param(32, range=(1, 1024), unit="px", text="side of the square"),
    stride: int = lb.param(16, range=(1, 1024), unit="px", text="from one place to the next"),
):
    """The square is set to 0, the mean of the training images."""
    import torch
    from captum.attr import Occlusion

    images, channels = torch.tensor(ctx.images), ctx.images.shape[1]
    given = {"sliding_window_shapes": (channels, window, window), "strides": (channels, stride, stride)}
    targets = torch.as_tensor(ctx.classes)
    return Occlusion(forward(ctx)).attribute(images, target=targets, perturbations_per_eval=1, **given).sum(1)


@lb.explainer(name="captum-featureablation", title="Feature ablation of Captum", family="perturbation", reference=LIBRARY, signed=True,
              needs=forward_needs)  # fmt: skip
def feature_ablation(ctx, cells: int = lb.param(8, range=(2, 64), text="of the grid, a side")):
    """A grid of cells, each set to 0 in turn."""
    import torch
    from captum.attr import FeatureAblation

    images = torch.tensor(ctx.images)
    rows = torch.arange(images.shape[2]) * cells // images.shape[2]
    columns = torch.arange(images.shape[3]) * cells // images.shape[3]
    mask = (rows[:, None] * cells + columns)[None, None]
    targets = torch.as_tensor(ctx.classes)
    return FeatureAblation(forward(ctx)).attribute(images, target=targets, feature_mask=mask).sum(1)
