# /// script
# requires-python = ">=3.9"
# dependencies = ["torch>=2.0", "grad-cam>=1.5"]
# ///
"""The class activation maps of pytorch-grad-cam (Gildenblat et al., github.com/jacobgil/pytorch-grad-cam), as they are, beside ours. They
need the network as a module, and so apply to models of Python in the same interpreter. Resizing to the image and the normalising
to [0, 1] are the library's own."""

import numpy as np

import lightbox as lb

LIBRARY = lb.Reference("Gildenblat et al.", "PyTorch library for CAM methods", "GitHub", 2021, "")


def needs(model, layer=""):
    if not model.is_module_here:
        return lb.not_applicable(f"it hooks the network's modules, and {model.name} is no module of this interpreter")
    name = layer or model.cam_site
    if name is None:
        return lb.not_applicable(f"{model.name} has no feature map")
    if not any(site.name == name for site in model.sites):
        return lb.not_applicable(f"{model.name} has no layer {name}")
    if name not in ("input", "logits") and (model.site(name).is_map or model.site(name).is_tokens):
        return lb.Needs(model=True, forward=1, backward=1)
    return lb.not_applicable(f"layer {name} of {model.name} is no feature map and no tokens")


def run(method, ctx, layer):
    import torch
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    site = ctx.spec.site(layer or ctx.spec.cam_site)
    module = dict(ctx.module.named_modules())[site.name.split("@")[0]]
    last = site.text.startswith("channels come last")
    turn = None
    if last:
        turn = lambda value: value.movedim(-1, 1)
    elif site.is_tokens:
        turn = lambda value: site.to_grid(value)
    images = ctx.tensor(ctx.images)
    targets = [ClassifierOutputTarget(int(c)) for c in ctx.classes]
    with torch.enable_grad(), method(model=ctx.module, target_layers=[module], reshape_transform=turn) as cam:
        return np.asarray(cam(input_tensor=images, targets=targets))


def add(class_name, title, cost="1 F, 1 B"):
    def explain(ctx, layer: str = lb.param("", text="the layer; the one that is pooled if empty")):
        import pytorch_grad_cam

        return run(getattr(pytorch_grad_cam, class_name), ctx, layer)

    lb.explainer(explain, name=f"pytorch-grad-cam-{title.lower().replace('-', '')}", title=f"{title} of pytorch-grad-cam", family="cam",
                 reference=LIBRARY, cost=cost, needs=needs)  # fmt: skip


add("GradCAM", "GradCAM")
add("GradCAMPlusPlus", "GradCAMPP")
add("HiResCAM", "HiResCAM")
add("LayerCAM", "LayerCAM")
add("EigenCAM", "EigenCAM", "1 F")
add("XGradCAM", "XGradCAM")
