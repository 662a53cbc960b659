"""Makes tests/oracle/golden/explainers.safetensors: maps of the peers' explainers on two small models, torchvision's DenseNet at
the shape of `densenet-small` and timm's ViT at that of `deit-mini`, five classes each, with weights and input made from
their names. In the environment of make.py:

    .lightbox/oracle/bin/python tests/oracle/explainers.py

Models run in float64 where the peer allows it. Keys are MODEL.PEER.METHOD; maps of the image's size are means over 8 x 8
pixels.
"""

import json
import math

import captum.attr as C
import numpy as np
import pytorch_grad_cam as P
import pytorch_grad_cam.score_cam
import rules
import skimage.segmentation
import sklearn.cluster
import torch
import torchcam.methods as T
import torchvision
from make import OUT, small_deit
from rules import fill, unit
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget
from safetensors.torch import save_file
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.rules import Epsilon, Gamma, Norm, Pass, ZBox, ZPlus
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

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
    value = torch.as_tensor(np.asarray(value.detach() if torch.is_tensor(value) else value))
    if value.shape[-1] == SIDE:
        value = nn.functional.avg_pool2d(value[:, None].double(), 8)[:, 0]
    value = value.float()
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
    # torch-cam's objective, the mean of the references.
    kept = []
    handle = layer.register_forward_hook(lambda _, __, y: kept.append(y))
    logits = model(x)
    handle.remove()
    objective = sum(l[t] - 0.6 * l[o].mean() for l, t, o in zip(logits, TARGETS, others))
    (g,) = torch.autograd.grad(objective, kept)
    a, g = [transform(v) if transform else v for v in (kept[0], g)]
    put(f"{name}.finercam.mean", (g.mean((2, 3), keepdim=True) * a).sum(1).relu())
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


# ----------------------------------------------------------------------------------------------- Captum and Zennit


def captum(name, model):
    x, zero = images(), torch.zeros(2, 3, SIDE, SIDE).double()
    how = dict(target=TARGETS)
    put(f"{name}.logits.zero", model(zero))
    flat = lambda key, attribution: put(f"{name}.captum.{key}", attribution.sum(1))
    put(f"{name}.captum.saliency", C.Saliency(model).attribute(x, **how).amax(1))
    flat("inputxgradient", C.InputXGradient(model).attribute(x, **how))
    for rule in ("gausslegendre", "riemann_left", "riemann_middle", "riemann_trapezoid"):
        flat(f"ig.{rule}", C.IntegratedGradients(model).attribute(x, zero, n_steps=12, method=rule, **how))
    window = dict(strides=(3, 20, 20), sliding_window_shapes=(3, 48, 48), baselines=0.0)
    put(f"{name}.captum.occlusion", C.Occlusion(model).attribute(x, **window, **how)[:, 0])
    if name == "densenet":
        put(f"{name}.captum.guided", C.GuidedBackprop(model).attribute(x, **how).abs().amax(1))
        put(f"{name}.captum.deconv", C.Deconvolution(model).attribute(x, **how).abs().amax(1))
        flat("guidedgradcam", C.GuidedGradCam(model, model.relu5).attribute(x, **how))


class Secant(torch.autograd.Function):
    """Multipliers of DeepLIFT's rescale rule, of a batch and its baselines: `f` elementwise."""

    @staticmethod
    def forward(ctx, x):
        y = x.relu()
        dx, dy = x[: len(x) // 2] - x[len(x) // 2 :], y[: len(x) // 2] - y[len(x) // 2 :]
        m = torch.where(dx.abs() < 1e-12, (x[: len(x) // 2] > 0).double(), dy / torch.where(dx == 0, 1.0, dx))
        ctx.save_for_backward(torch.cat([m, m]))
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class SecantPool(torch.autograd.Function):
    """Max pooling, 3 x 3, stride 2, padding 1: each window hands its difference to the pixel that has the larger of the two
    maxima and the rest to the other's, and a pixel in several windows adds up (Captum keeps one)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return nn.functional.max_pool2d(x, 3, 2, 1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        n, (_, c, h, w) = len(x) // 2, x.shape
        padded = nn.functional.pad(x, (1, 1, 1, 1), value=-math.inf).reshape(2 * n * c, 1, h + 2, w + 2)
        windows = nn.functional.unfold(padded, 3, stride=2)  # [2 n c, 9, places]
        a, b = windows[: n * c], windows[n * c :]
        g = g[:n].reshape(n * c, 1, -1)
        (ya, ia), (yb, ib) = a.max(1, keepdim=True), b.max(1, keepdim=True)
        most = torch.maximum(ya, yb)
        difference = torch.where(torch.isinf(a), 1.0, a - b)
        part = torch.zeros_like(a)
        for index, amount in ((ia, most - yb), (ib, ya - most)):
            d = difference.gather(1, index)
            part.scatter_add_(1, index, torch.where(amount == 0, 0.0, g * amount / torch.where(d == 0, 1.0, d)))
        m = nn.functional.fold(part, (h + 2, w + 2), 3, stride=2)[..., 1:-1, 1:-1].reshape(n, c, h, w)
        return torch.cat([m, torch.zeros_like(m)])


class By(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def deeplift():
    model = densenet()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, By(Secant))
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, By(SecantPool))
    x = images()
    pair = torch.cat([x, torch.zeros_like(x)]).requires_grad_()
    logits = model(pair)
    logits[[0, 1], TARGETS].sum().backward()
    attribution = x * pair.grad[:2]
    gap = (logits[:2] - logits[2:])[[0, 1], TARGETS]
    assert (attribution.sum((1, 2, 3)) - gap).abs().max() < 1e-9, "the second derivation is not complete"
    put("densenet.deeplift", attribution.sum(1))


def zennit(name, model):
    x = images()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    low, high = (torch.as_tensor((v - mean) / std)[None, :, None, None].double() for v in (0.0, 1.0))
    logits = model(x).detach()
    target = nn.functional.one_hot(torch.tensor(TARGETS), CLASSES).double() * logits
    shared = [(BatchNorm, Epsilon(1e-6)), (AvgPool, Norm()), (Activation, Pass())]
    epsilon_plus = LayerMapComposite([(Convolution, ZPlus()), (Linear, Epsilon(1e-6))] + shared)
    box = SpecialFirstLayerMapComposite(
        [(Convolution, Gamma(0.25)), (Linear, Epsilon(1e-6))] + shared, [(Convolution, ZBox(low, high))]
    )
    for key, composite in (("epsilon-plus", epsilon_plus), ("epsilon-gamma-box", box)):
        with Gradient(model, composite) as attributor:
            put(f"{name}.zennit.{key}", attributor(x, target)[1].sum(1))


# ------------------------------------------------------------------------- attention, written down from the papers


class Net:
    """timm's ViT, step by step, with what the methods look at: attention a, its logits, tokens before, between and after."""

    def __init__(self, model, x, targets, detach=False):
        self.model, self.a, self.dots, self.z, self.mid, self.values = model, [], [], [], [], []
        t = model.patch_embed(x)
        t = torch.cat([model.cls_token.expand(len(x), -1, -1), t], 1) + model.pos_embed
        self.z.append(t)
        for block in model.blocks:
            y = block.norm1(t)
            y = y.detach() if detach else y
            q, k, v = block.attn.qkv(y).unflatten(2, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            dots = q @ k.transpose(-2, -1) * block.attn.scale
            a = dots.softmax(-1)
            a.retain_grad()
            self.a.append(a)
            self.dots.append(dots.detach())
            self.values.append(v.detach())
            t = t + block.attn.proj((a @ v).transpose(1, 2).flatten(2))
            self.mid.append(t.detach())
            t = t + block.mlp(block.norm2(t))
            self.z.append(t)
        self.logits = model.head(model.norm(t)[:, 0])
        self.score = self.logits[range(len(x)), targets].sum()

    def backward(self):
        self.score.backward(retain_graph=True)
        self.g = [a.grad for a in self.a]
        return self


def square(values):
    return values.unflatten(1, (math.isqrt(values.shape[1]),) * 2)


def attention():
    model, x = deit(), images()
    net = Net(model, x, TARGETS).backward()
    a, g = [t.detach() for t in net.a], net.g
    one = torch.eye(a[0].shape[-1]).double()
    put_map = lambda name, row: put(f"deit.{name}", square(row[:, 1:]))

    def rollout(layers, columns=False):
        result = one
        for f in layers:
            f = (f + one) / 2
            f = f / (f.sum(-1)[:, None, :] if columns else f.sum(-1, keepdim=True))
            result = f @ result
        return result[:, 0]

    def discard(f, share, spare):
        flat = f.flatten(1).clone()
        for row in flat:
            index = row.argsort()[: int(row.numel() * share)]
            row[index[index != 0] if spare else index] = 0
        return flat.view_as(f)

    put_map("rollout", rollout(t.mean(1) for t in a))
    put_map("rollout.max", rollout(discard(t.amax(1), 0.9, True) for t in a))
    put_map("rollout.columns", rollout((discard(t.amin(1), 0.5, True) for t in a), True))
    put_map("gradrollout", rollout((t * u).mean(1).relu() for t, u in zip(a, g)))
    put_map("gradrollout.reversed", rollout(discard((t * u).mean(1).relu(), 0.9, False) for t, u in zip(a, g[::-1])))

    weights = g[-1][:, :, 0, 1:].mean(-1, keepdim=True)
    put_map("attentiongradcam", (weights * a[-1][:, :, 0]).mean(1).relu())
    r = one
    for t, u in zip(a, g):
        r = r + (t * u).relu().mean(1) @ r
    put_map("gae", r[:, 0])

    path = [Net(model, x * at, TARGETS).backward().g[-1] for at in torch.linspace(0, 1, 20)]
    factor = torch.stack(path).mean(0).relu().mean(1)
    s = a[-1].mean(1)[:, :1]
    for t in a[-2:0:-1]:  # down to block 1
        s = s + s @ t.mean(1)
    put_map("tam", s[:, 0] * factor[:, 0])
    r = one
    for t, u in list(zip(a, g))[1:]:
        share = (t.transpose(-2, -1) @ u).abs().mean((-2, -1), keepdim=True)
        r = r + (share / share.sum(1, keepdim=True) * t).sum(1) @ r
    put_map("beyondintuition.heads", (factor * r)[:, 0])
    r = one
    for t, v, z, block in list(zip(a, net.values, net.z, model.blocks))[1:]:
        changed = v.transpose(1, 2).flatten(2) @ block.attn.proj.weight.T
        r = r + t.mean(1) @ torch.diag_embed(changed.norm(dim=-1) / z.norm(dim=-1)) @ r
    put_map("beyondintuition.tokens", (factor * r.abs())[:, 0])

    def change(b, c):
        cosine = nn.functional.cosine_similarity(b, c, dim=-1)
        return torch.diag_embed(c.norm(dim=-1) / b.norm(dim=-1) * cosine.softmax(-1))

    c = torch.diag_embed(net.z[0].norm(dim=-1))
    for t, u, b, m, e in zip(a, g, net.z, net.mid, net.z[1:]):
        c = (one + change(m, e)) @ (one + t.mean(1) @ change(b, m) * u.relu().mean(1)) @ c
    put_map("tokentm", c[:, 0])

    total = 0
    for t, z in zip(net.a, net.z[1:]):
        s = model.head(model.norm(z.mean(1)))[range(2), TARGETS].sum()
        (gradient,) = torch.autograd.grad(s, t, retain_graph=True)
        total = total + gradient.relu().mean((1, 2))
    put_map("legrad", total)
    cut = Net(model, x, TARGETS, detach=True).backward()
    put_map("agcam", sum((u.relu() * d.sigmoid()).sum(1)[:, 0] for u, d in zip(cut.g, cut.dots)))

    leaf = x.clone().requires_grad_()
    balanced = balanced_deit(model, leaf)
    assert (balanced - net.logits).abs().max() < 1e-9, "the values are not the model's"
    (gradient,) = torch.autograd.grad(balanced[[0, 1], TARGETS].sum(), leaf)
    put("deit.libragrad", (x * gradient).sum(1))
    vitcx(model, x)
    meaningful(model, x)
    # Every third patch left out, after the position embeddings.
    keep = [i for i in range(65) if i == 0 or i % 3]
    with torch.no_grad():
        t = model.patch_embed(x)
        t = torch.cat([model.cls_token.expand(2, -1, -1), t], 1) + model.pos_embed
        put("deit.dropped", model.head(model.norm(model.blocks(t[:, keep]))[:, 0]))

    # Relevance by the equations of rules.py, which checks the rules themselves on larger models.
    for name, uniform in (("attnlrp", True), ("cplrp", False)):
        leaf = x.clone().requires_grad_()
        logits = relevance_deit(model, leaf, uniform)
        seed = nn.functional.one_hot(torch.tensor(TARGETS), CLASSES).double() * logits.detach()
        put(f"deit.{name}", torch.autograd.grad(logits, leaf, seed)[0].sum(1))


def balanced_deit(model, x):
    """The small DeiT with LibraGrad's gradient: constant attention and deviations, GELU as x times a constant."""

    def norm(y, of):
        off = y - y.mean(-1, keepdim=True)
        return off / (off.square().mean(-1, keepdim=True) + of.eps).sqrt().detach() * of.weight + of.bias

    t = torch.cat([model.cls_token.expand(len(x), -1, -1), model.patch_embed(x)], 1) + model.pos_embed
    for block in model.blocks:
        q, k, v = block.attn.qkv(norm(t, block.norm1)).unflatten(2, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-2, -1) * block.attn.scale).softmax(-1).detach()
        t = t + block.attn.proj((a @ v).transpose(1, 2).flatten(2))
        y = block.mlp.fc1(norm(t, block.norm2))
        t = t + block.mlp.fc2(y * (0.5 * (1 + torch.erf(y / math.sqrt(2)))).detach())
    return model.head(norm(t, model.norm)[:, 0])


def vitcx(model, x):
    """Xie et al. without noise, with scikit-learn's clusters."""
    kept = []
    handle = model.blocks[3].norm1.register_forward_hook(lambda _, __, y: kept.append(y.detach()))
    with torch.no_grad():
        whole = model(x).softmax(1)
    handle.remove()
    maps = nn.functional.interpolate(grid(kept[0]), size=(SIDE, SIDE), mode="bilinear")
    scale = lambda m: (m - m.amin((1, 2), keepdim=True)) / (m.amax((1, 2), keepdim=True) - m.amin((1, 2), keepdim=True))
    result = []
    for image, channels, p, target in zip(x, maps, whole, TARGETS):
        masks = scale(channels)
        flat = nn.functional.normalize(masks.flatten(1), dim=1)
        cluster = sklearn.cluster.AgglomerativeClustering(
            n_clusters=None, metric="precomputed", linkage="complete", distance_threshold=0.1
        )
        labels = torch.from_numpy(cluster.fit((1 - flat @ flat.T).clamp(min=0).numpy()).labels_)
        joined = scale(torch.stack([masks[labels == k].sum(0) for k in range(int(labels.max()) + 1)]))
        with torch.no_grad():
            scores = model(image * joined[:, None]).softmax(1)[:, target]
        # Without noise the second term is the third.
        result.append((scores[:, None, None] * joined).sum(0) / joined.sum(0) / len(joined))
        print("clusters", len(joined))
    put("deit.vitcx", torch.stack(result))


def meaningful(model, x):
    """Fong and Vedaldi with PyTorch's Adam, towards the mean colour."""
    mask = torch.ones(2, 1, 28, 28).double().requires_grad_()
    optimizer = torch.optim.Adam([mask], lr=0.1)
    for _ in range(12):
        up = nn.functional.interpolate(mask, size=(SIDE, SIDE), mode="bilinear")
        p = model(x * up).softmax(1)[[0, 1], TARGETS]
        dy, dx = mask[:, :, 1:] - mask[:, :, :-1], mask[..., 1:] - mask[..., :-1]
        edges = dy.abs().pow(3).mean((1, 2, 3)) + dx.abs().pow(3).mean((1, 2, 3))
        loss = (p + 0.01 * (1 - mask).abs().mean((1, 2, 3)) + 0.2 * edges).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
    put("deit.meaningful", 1 - mask[:, 0])


def relevance_deit(model, x, uniform):
    """The small DeiT under gamma: 0.05 for linear maps, 0.25 for the patch embedding."""
    p = dict(model.named_parameters())
    f = lambda x, name: rules.linear(x, p[f"{name}.weight"], p[f"{name}.bias"], 0.05)
    n = lambda x, name: rules.norm(x, p[f"{name}.weight"], p[f"{name}.bias"])
    t = rules.conv(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], 0.25, stride=16).flatten(2).transpose(1, 2)
    t = rules.add(torch.cat([p["cls_token"].expand(len(x), -1, -1), t], 1), p["pos_embed"].expand(len(x), -1, -1))
    for i in range(4):
        at = f"blocks.{i}"
        q, k, v = f(n(t, f"{at}.norm1"), f"{at}.attn.qkv").unflatten(2, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        a = rules.softmax(rules.matmul(rules.scale(q, 0.25), k.transpose(-2, -1), uniform), not uniform)
        t = rules.add(t, f(rules.matmul(a, v, uniform).transpose(1, 2).flatten(2), f"{at}.attn.proj"))
        t = rules.add(t, f(rules.gelu(f(n(t, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2"))
    return f(n(t, "norm")[:, 0], "head")


def gradients():
    model = densenet()
    captum("densenet", model)
    zennit("densenet", model)
    deeplift()
    captum("deit", deit())


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


def superpixels():
    """scikit-image's felzenszwalb on smooth noise."""
    coarse = nn.functional.interpolate(unit("superpixels", (1, 3, 9, 8)), size=(48, 40), mode="bicubic")
    image = (coarse[0] + 0.05 * unit("superpixels.fine", (3, 48, 40))).permute(1, 2, 0).contiguous().float()
    made["superpixels.image"] = image
    for scale, sigma, size in ((50, 0.8, 20), (300, 0.5, 5)):
        labels = skimage.segmentation.felzenszwalb(image.double().numpy(), scale, sigma, size)
        made[f"superpixels.{scale}"] = torch.from_numpy(labels.astype(np.int64))
        print("superpixels", scale, labels.max() + 1)


if __name__ == "__main__":
    P.score_cam.tqdm.tqdm = P.ablation_cam.tqdm.tqdm = lambda x: x
    cams()
    gradients()
    attention()
    superpixels()
    save_file(made, OUT / "explainers.safetensors")
