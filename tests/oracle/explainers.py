"""Makes tests/oracle/golden/explainers.safetensors: maps of the peers' explainers on two small models, torchvision's DenseNet at
the shape of `densenet-small` and timm's ViT at that of `deit-mini`, five classes each, with weights and input made from
their names. In the environment of make.py:

    .lightbox/oracle/bin/python tests/oracle/explainers.py

Models run in float64 where the peer allows it. Keys are MODEL.PEER.METHOD.
"""

import json
import math

import cv2
import numpy as np
import pytorch_grad_cam as P
import pytorch_grad_cam.score_cam
import torch
import torchcam.methods as T
import torchvision
from make import OUT, small_deit
from rules import fill, unit
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget
from safetensors.torch import save_file
from torch import nn

SIDE, CLASSES, TARGETS = 128, 5, [3, 1]
made = {}


def images(side=SIDE):
    coarse = 4.0 * unit("input.coarse", (2, 3, 14, 14)) - 2.0
    coarse = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (coarse + 0.2 * unit("input.fine", (2, 3, side, side)) - 0.1).float().double()


class SmallDenseNet(torchvision.models.DenseNet):
    """torchvision's, with what it calls as functions as modules, so that hooks see them."""

    def __init__(self):
        super().__init__(growth_rate=12, block_config=(3, 4, 4), num_init_features=24, num_classes=CLASSES)
        self.relu5, self.pool, self.flatten = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False

    def forward(self, x):
        return self.classifier(self.flatten(self.pool(self.relu5(self.features(x)))))


def filled(model, name):
    state = model.state_dict()
    (OUT / f"{name}.keys.json").write_text(json.dumps({k: list(v.shape) for k, v in state.items()}))
    model.load_state_dict({k: fill(k, list(v.shape)) for k, v in state.items()})
    return model.double().eval()


def densenet():
    return filled(SmallDenseNet(), "explainers-densenet")


def deit():
    model = filled(small_deit(SIDE, CLASSES), "explainers-deit")
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def put(key, value):
    value = torch.as_tensor(np.asarray(value.detach() if torch.is_tensor(value) else value)).float()
    made[key] = value.contiguous()
    print(key, tuple(value.shape), f"{value.min():.3e} .. {value.max():.3e}", flush=True)


# -------------------------------------------------------------------------------------------------- pytorch-grad-cam


def classes(targets):
    return [ClassifierOutputTarget(t) for t in targets]


def grid(tokens):
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)


def pytorch_grad_cam(name, model, layer, layers, transform):
    x, targets = images(), classes(TARGETS)
    # Raw maps, before the ReLU where the method leaves it to its base class.
    raw = dict(
        gradcam=P.GradCAM, hirescam=P.HiResCAM, elementwise=P.GradCAMElementWise, gradcampp=P.GradCAMPlusPlus,
        xgradcam=P.XGradCAM, layercam=P.LayerCAM, eigencam=P.EigenCAM, eigengradcam=P.EigenGradCAM,
        segeigencam=P.SegEigenCAM, kpcacam=P.KPCA_CAM, fem=P.FEM, scorecam=P.ScoreCAM,
    )  # fmt: skip
    for method, make in raw.items():
        cam = make(model=model, target_layers=[layer], reshape_transform=transform)
        cam(input_tensor=x, targets=targets)
        a = cam.activations_and_grads.activations[0].detach().numpy()
        g = cam.activations_and_grads.gradients[0].numpy() if cam.uses_gradients else None
        put(f"{name}.pgc.{method}", cam.get_cam_image(x, layer, targets, a, g, False))
        if method in ("gradcam", "layercam"):
            put(f"{name}.pgc.{method}.eigen", cam.get_cam_image(x, layer, targets, a, g, True))
            put(f"{name}.pgc.{method}.aug", cam(input_tensor=x, targets=targets, aug_smooth=True))
    several = P.GradCAM(model=model, target_layers=layers, reshape_transform=transform)
    put(f"{name}.pgc.gradcam.layers", several(input_tensor=x, targets=targets))
    refine = P.RefineCAM(model, layers, transform)
    put(f"{name}.pgc.refinecam", refine(input_tensor=x, targets=targets))
    if name == "densenet":  # it refuses tokens
        put(f"{name}.pgc.shapleycam", P.ShapleyCAM(model=model, target_layers=[layer])(input_tensor=x, targets=targets))
    with torch.no_grad():
        logits = model(x)
    others = [sorted(set(range(CLASSES)) - {t}, key=lambda j: abs(l[j] - l[t]))[:3] for t, l in zip(TARGETS, logits)]
    compared = [FinerWeightedTarget(t, o, 0.6) for t, o in zip(TARGETS, others)]
    put(f"{name}.pgc.finercam", P.FinerCAM(model, [layer], transform)(input_tensor=x, targets=compared))
    if name == "densenet":
        put(f"{name}.pgc.ablationcam", P.AblationCAM(model=model, target_layers=[layer])(input_tensor=x, targets=targets))
        put(f"{name}.pgc.fullgrad", P.FullGrad(model=model, target_layers=[])(input_tensor=x, targets=targets))


def shapleycam(model, layer):
    """Cai's equation with the exact Hessian-vector product, at tokens."""
    kept = []
    handle = layer.register_forward_hook(lambda _, __, y: kept.append(y))
    s = model(images())[range(2), TARGETS].sum()
    handle.remove()
    (g,) = torch.autograd.grad(s, kept, create_graph=True)
    (product,) = torch.autograd.grad(g, kept, kept[0].detach())
    put("deit.shapleycam", (grid(g - 0.5 * product).mean((2, 3), keepdim=True) * grid(kept[0])).sum(1))


def torch_cam(name, model):
    x = images()
    for method, make in dict(
        cam=lambda: T.CAM(model, "relu5", fc_layer="classifier", input_shape=(3, SIDE, SIDE)),
        scorecam=lambda: T.ScoreCAM(model, "relu5", input_shape=(3, SIDE, SIDE)),
        iscam=lambda: T.ISCAM(model, "relu5", input_shape=(3, SIDE, SIDE)),
    ).items():
        with make() as extractor:
            scores = model(x)
            put(f"{name}.torchcam.{method}", extractor(TARGETS, scores, normalized=False)[0])


def cams():
    model = densenet()
    put("densenet.logits", model(images()))
    layers = [model.features.denseblock1, model.features.denseblock2, model.relu5]
    pytorch_grad_cam("densenet", model, model.relu5, layers, None)
    torch_cam("densenet", model)
    model = deit()
    put("deit.logits", model(images()))
    layers = [model.blocks[0], model.blocks[1], model.blocks[2], model.blocks[3].norm1]
    pytorch_grad_cam("deit", model, model.blocks[3].norm1, layers, grid)
    shapleycam(model, model.blocks[3].norm1)


if __name__ == "__main__":
    P.score_cam.tqdm.tqdm = P.ablation_cam.tqdm.tqdm = lambda x: x
    cams()
    save_file(made, OUT / "explainers.safetensors")
