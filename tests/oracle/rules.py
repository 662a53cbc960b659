"""Makes tests/oracle/golden/rules.safetensors: relevance at the input under modified backward rules, summed over channels and
over squares of 16 x 16 pixels. In the environment of make.py:

    .lightbox/oracle/bin/python tests/oracle/rules.py

DenseNet-121 is torchvision's, under Zennit's rules. For DeiT and PatchConvNet relevance itself is propagated, layer after
layer, by the equations of Achtibat et al. (arXiv:2402.05602) and Ali et al. (arXiv:2202.07304): a second derivation beside
Lightbox's, which modifies gradients. Both run in float64 on the goldens' weights and input, which are made from names. The
classes explained are those that each model ranks first.
"""

import json
import math
import pathlib

import torch
import torchvision
from make import OUT, unit
from safetensors.torch import load_file, save_file
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Gamma, Norm, Pass, ReLUDeconvNet, ReLUGuidedBackprop, ZPlus
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear


def fill(name, shape):
    """The goldens' weight of a name and shape, as in `lightbox_tests::fill`."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    u = unit(name, shape or [1]).reshape(shape)
    s = 2.0 * u - 1.0
    if name.endswith("running_mean"):
        t = 0.1 * s
    elif name.endswith("running_var"):
        t = 1.0 + 0.5 * u
    elif name.endswith(("gamma_1", "gamma_2")):
        t = 0.3 + 0.1 * s
    elif name.endswith(("cls_token", "dist_token", "pos_embed")):
        t = 0.5 * s
    elif len(shape) == 1:
        t = 1.0 + 0.1 * s if name.endswith("weight") else 0.1 * s
    else:
        t = s * math.sqrt(6.0 / math.prod(shape[1:]))
    return t.float().double()


def weights(name):
    keys = json.loads((OUT / f"{name}.keys.json").read_text())
    return {k: fill(k, shape) for k, shape in keys.items()}


def images():
    coarse = 4.0 * unit("input.coarse", (2, 3, 14, 14)) - 2.0
    coarse = nn.functional.interpolate(coarse.float(), size=(224, 224), mode="bilinear")
    return (coarse + (0.2 * unit("input.fine", (2, 3, 224, 224)) - 0.1).float()).double()


def squares(relevance):
    return nn.functional.avg_pool2d(relevance.sum(1, keepdim=True), 16)[:, 0].float() * 256


def same(name, logits):
    wanted = load_file(OUT / f"{name}.safetensors")["logits"].double()
    error = ((logits - wanted).abs().max() / wanted.abs().max()).item()
    assert error < 1e-4, f"{name} is not the golden's model: {error}"


# ---------------------------------------------------------------------------------------------------------- DenseNet


class DenseNet(torchvision.models.DenseNet):
    """torchvision's, with what it calls as functions as modules, so that Zennit sees them."""

    def __init__(self):
        super().__init__()
        self.relu5, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.classifier(self.pool(self.relu5(self.features(x))).flatten(1))


def densenet(x):
    model = DenseNet().double().eval()
    model.load_state_dict(weights("densenet121"))
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    logits = model(x).detach()
    same("densenet121", logits)
    target = nn.functional.one_hot(logits.argmax(1), 1000).double() * logits
    rules = {"linear:epsilon=0.1": Epsilon(0.1), "linear:gamma": Gamma(0.25), "linear:zplus": ZPlus()}
    for name, rule in rules.items():
        norm = Epsilon(0.1 if "epsilon" in name else 1e-6)
        layers = [(Convolution, rule), (Linear, rule), (BatchNorm, norm), (AvgPool, Norm()), (Activation, Pass())]
        with Gradient(model, LayerMapComposite(layers)) as attributor:
            _, relevance = attributor(x, target)
        yield f"densenet121.{name}", squares(relevance)
    # These are gradients, not relevance.
    one = (target != 0).double()
    for name, rule in (("relu:guided", ReLUGuidedBackprop()), ("relu:deconv", ReLUDeconvNet())):
        with Gradient(model, LayerMapComposite([(Activation, rule)])) as attributor:
            _, gradient = attributor(x, one)
        yield f"densenet121.{name}", squares(x * gradient)


# -------------------------------------------------------------------------- relevance in place of gradients, by Function


class Layer(torch.autograd.Function):
    """`forward(x...)`; the backward pass hands relevance to each input."""

    @staticmethod
    def forward(ctx, f, share, *inputs):
        ctx.share, ctx.inputs = share, [t.detach() for t in inputs]
        ctx.z = f(*ctx.inputs)
        return ctx.z.clone()

    @staticmethod
    def backward(ctx, relevance):
        return (None, None, *ctx.share(relevance, ctx.z, *ctx.inputs))


def quotient(r, z, e=1e-12):
    return r / (z + torch.where(z < 0, -e, e))


def transposed(f, x, r):
    """f^T r, of a linear f."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(f(x), x, r)[0]


def linear(x, w, b, gamma, f=nn.functional.linear):
    """Montavon et al.: what has the sign of the output counts 1 + gamma times. gamma None: epsilon 1e-6."""

    def share(r, z, x):
        if gamma is None:
            return (x * transposed(lambda x: f(x, w), x, quotient(r, z, 1e-6)),)
        total = 0
        for sign in (1, -1):
            part = torch.where(z >= 0 if sign > 0 else z < 0, r, 0.0)
            w1, w2 = (w.clamp(min=0), w.clamp(max=0)) if sign > 0 else (w.clamp(max=0), w.clamp(min=0))
            b1 = 0 if b is None else b + gamma * (b.clamp(min=0) if sign > 0 else b.clamp(max=0))
            pieces = [(x.clamp(min=0), w + gamma * w1), (x.clamp(max=0), w + gamma * w2)]
            whole = sum(f(xx, ww) for xx, ww in pieces)
            whole = whole + (b1 if b is None or whole.dim() != 4 else b1[:, None, None])
            r1 = quotient(part, whole, 1e-6)
            total = total + sum(xx * transposed(lambda x: f(x, ww), xx, r1) for xx, ww in pieces)
        return (total,)

    return Layer.apply(lambda x: f(x, w, b), share, x)


def conv(x, w, b, gamma, **how):
    return linear(x, w, b, gamma, lambda x, w, b=None: nn.functional.conv2d(x, w, b, **how))


def add(a, b):
    return Layer.apply(torch.add, lambda r, z, a, b: (a * quotient(r, z), b * quotient(r, z)), a, b)


def scale(x, factor):
    return Layer.apply(lambda x: x * factor, lambda r, z, x: (r,), x)


def gelu(x):
    return Layer.apply(nn.functional.gelu, lambda r, z, x: (r,), x)


def norm(x, w, b):
    """The deviation is a constant: the mean is taken off (a linear map), and the shift added."""
    off = lambda x: x - x.mean(-1, keepdim=True)
    y = Layer.apply(off, lambda r, z, x: (x * transposed(off, x, quotient(r, z)),), x)
    y = scale(y, w / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt().detach())
    return Layer.apply(lambda y: y + b, lambda r, z, y: (y * quotient(r, z),), y)


def softmax(x, detach):
    """Achtibat et al., eq. 14: R_i = x_i (R_i - s_i sum R). Ali et al.: nothing."""
    rule = lambda r, z, x: (x * 0.0 if detach else x * (r - z * r.sum(-1, keepdim=True)),)
    return Layer.apply(lambda x: x.softmax(-1), rule, x)


def matmul(a, b, uniform):
    """Half of the relevance to each factor; under Ali et al. the first is a constant, and all goes to the second."""

    def share(r, z, a, b):
        part = quotient(r, z) * (0.5 if uniform else 1.0)
        return a * (part @ b.transpose(-2, -1)), b * (a.transpose(-2, -1) @ part)

    return Layer.apply(torch.matmul, share, a, b)


def relevance(model, x, *rules):
    x = x.clone().requires_grad_()
    logits = model(x, *rules)
    target = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).double()
    return logits.detach(), squares(torch.autograd.grad(logits, x, target * logits.detach())[0])


def deit_of(p):
    def model(x, gamma, uniform):
        f = lambda x, name: linear(x, p[f"{name}.weight"], p[f"{name}.bias"], gamma)
        n = lambda x, name: norm(x, p[f"{name}.weight"], p[f"{name}.bias"])
        x = conv(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], gamma, stride=16).flatten(2).transpose(1, 2)
        x = torch.cat([p["cls_token"].expand(len(x), -1, -1), x], 1)
        x = add(x, p["pos_embed"].expand(len(x), -1, -1))
        for i in range(12):
            at = f"blocks.{i}"
            q, k, v = f(n(x, f"{at}.norm1"), f"{at}.attn.qkv").unflatten(2, (3, 3, 64)).permute(2, 0, 3, 1, 4)
            a = softmax(matmul(scale(q, 1 / 8), k.transpose(-2, -1), uniform), not uniform)
            y = matmul(a, v, uniform).transpose(1, 2).flatten(2)
            x = add(x, f(y, f"{at}.attn.proj"))
            x = add(x, f(gelu(f(n(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2"))
        return f(n(x, "norm")[:, 0], "head")

    return model


def patchconvnet_of(p):
    def model(x, gamma, uniform):
        get = lambda name: (p[f"{name}.weight"].flatten(1), p[f"{name}.bias"])
        f = lambda x, name: linear(x, *get(name), gamma)
        n = lambda x, name: norm(x, p[f"{name}.weight"], p[f"{name}.bias"])
        for i in range(4):
            x = conv(x, p[f"patch_embed.proj.{2 * i}.0.weight"], None, gamma, stride=2, padding=1)
            x = gelu(x) if i < 3 else x
        x = x.flatten(2).transpose(1, 2)
        for i in range(60):
            at = f"blocks.{i}.attn.qkv_pos"
            y = gelu(f(n(x, f"blocks.{i}.norm1"), f"{at}.0")).transpose(1, 2).unflatten(2, (14, 14))
            y = gelu(conv(y, p[f"{at}.2.weight"], p[f"{at}.2.bias"], gamma, padding=1, groups=384))
            y = y.flatten(2).transpose(1, 2)
            with torch.no_grad():
                g = nn.functional.linear(y.mean(1, keepdim=True), *get(f"{at}.4.conv_reduce")).relu()
                g = nn.functional.linear(g, *get(f"{at}.4.conv_expand")).sigmoid()
            x = add(x, scale(f(scale(y, g), f"{at}.5"), p[f"blocks.{i}.gamma_1"]))
        at = "blocks_token_only.0"
        token = p["cls_token"].expand(len(x), -1, -1)
        y = n(torch.cat([token, x], 1), f"{at}.norm1")
        q, k, v = (f(t, f"{at}.attn.{leaf}") for t, leaf in ((y[:, :1], "q"), (y, "k"), (y, "v")))
        a = softmax(matmul(scale(q, 384**-0.5), k.transpose(-2, -1), uniform), not uniform)
        y = f(matmul(a, v, uniform), f"{at}.attn.proj")
        token = add(token, scale(y, p[f"{at}.gamma_1"]))
        y = f(gelu(f(n(token, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
        token = add(token, scale(y, p[f"{at}.gamma_2"]))
        return f(n(token, "norm")[:, 0], "head")

    return model


def transformers(x):
    for name, make in (("deit_tiny_patch16_224", deit_of), ("S60", patchconvnet_of)):
        model = make(weights(name))
        for rule, gamma in (("linear:epsilon", None), ("linear:gamma", 0.25)):
            for attention in ("product:uniform", "softmax:detach"):
                logits, found = relevance(model, x, gamma, attention == "product:uniform")
                same(name, logits)
                yield f"{name}.{rule}+{attention}", found


if __name__ == "__main__":
    x = images()
    made = dict(densenet(x)) | dict(transformers(x))
    save_file(made, OUT / "rules.safetensors")
    for name, t in made.items():
        print(name, tuple(t.shape), f"{t.min():.3e} .. {t.max():.3e}, sum {t.sum((1, 2)).tolist()}")
