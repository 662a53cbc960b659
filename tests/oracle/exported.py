"""Exported networks against PyTorch, pytorch-grad-cam, Captum and Zennit. From the project's root, with
`tests/oracle/exported-requirements.txt` installed:

    python tests/oracle/exported.py FOLDER [NAME...]

Each network is made with random weights (batch norms calibrated, zero heads filled), exported to FOLDER by sdk/python, run by
`target/debug/lightbox explain`, and compared: logits to 1e-4, GradCAM with pytorch-grad-cam to 1e-3, guided backpropagation with
Captum and LRP with Zennit where they apply. Ends with 1 if any is off.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sdk/python"))
import lightbox  # noqa: E402

LIGHTBOX = ROOT / "target/debug/lightbox"


def tv(name, **more):
    def make():
        import torchvision

        models = torchvision.models
        return getattr(models.segmentation if name.startswith(("deeplab", "lraspp", "fcn")) else models, name)(
            weights=None, **({"weights_backbone": None} if name.startswith(("deeplab", "lraspp", "fcn")) else {}), **more
        )

    return make


def timm(name, **more):
    def make():
        import timm

        return timm.create_model(name, pretrained=False, **more)

    return make


def xrv():
    import torchxrayvision

    return torchxrayvision.models.DenseNet(weights=None, num_classes=18, in_channels=1)


def monai(name, **more):
    def make():
        import monai.networks.nets as nets

        return getattr(nets, name)(spatial_dims=3, in_channels=1, **more)

    return make


class First(nn.Module):
    """The main result of a network that gives a dictionary."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)["out"]


RGB = (3, 224, 224)
NETWORKS = {
    "alexnet": (tv("alexnet"), RGB),
    "vgg11_bn": (tv("vgg11_bn"), RGB),
    "resnet18": (tv("resnet18"), RGB),
    "resnet50": (tv("resnet50"), RGB),
    "densenet121": (tv("densenet121"), RGB),
    "googlenet": (tv("googlenet", aux_logits=False, init_weights=False), RGB),
    "convnext_tiny": (tv("convnext_tiny"), RGB),
    "swin_t": (tv("swin_t"), RGB),
    "vit_b_16": (tv("vit_b_16"), RGB),
    "efficientnet_b0": (tv("efficientnet_b0"), RGB),
    "mobilenet_v3_small": (tv("mobilenet_v3_small"), RGB),
    "regnet_y_400mf": (tv("regnet_y_400mf"), RGB),
    "shufflenet_v2_x0_5": (tv("shufflenet_v2_x0_5"), RGB),
    "maxvit_t": (tv("maxvit_t"), RGB),
    "timm_deit_small": (timm("deit_small_patch16_224"), RGB),
    "timm_swin_tiny": (timm("swin_tiny_patch4_window7_224"), RGB),
    "timm_convnext_nano": (timm("convnext_nano"), RGB),
    "timm_eva02_tiny": (timm("eva02_tiny_patch14_224"), RGB),
    "xrv_densenet": (xrv, (1, 224, 224)),
    "monai_densenet3d": (monai("DenseNet121", out_channels=2), (1, 64, 64, 64)),
    "deeplabv3_mobilenet": (lambda: First(tv("deeplabv3_mobilenet_v3_large")()), (3, 128, 128)),
    "lraspp_mobilenet": (lambda: First(tv("lraspp_mobilenet_v3_large")()), (3, 128, 128)),
}


def images(shape, count, seed):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def network(name):
    """As if it had been trained: no zero heads, no layer scales of 1e-6, running statistics that fit."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    for key, p in net.named_parameters():
        with torch.no_grad():
            if p.dim() > 1 and p.abs().max() == 0:
                p.normal_(0, 0.02)
            if key.endswith(("layer_scale", "gamma")):
                p.fill_(0.2)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for m in norms:
            m.momentum = None
        net.train()
        with torch.no_grad():
            net(images(shape, 4, 1))
        for m in norms:
            m.momentum = 0.1
    return net.eval(), shape


def relative(found, wanted):
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def info(file):
    text = subprocess.run([LIGHTBOX, "info", file, "--json"], check=True, capture_output=True, text=True).stdout
    described = json.loads(text)
    return described.get("model", described)


def to_first(site):
    """What brings a site's value to [B, C, grid...] as Lightbox hands it on."""
    if "token" in site["axes"]:
        prefix, grid = len(site["prefix"]), site["grid"]
        return lambda t: t[:, prefix:].transpose(1, 2).reshape(t.shape[0], t.shape[2], *grid)
    if "channels come last" in site["text"]:
        return lambda t: t.movedim(-1, 1)
    return lambda t: t


def gradcam(net, program, x, classes, site):
    """relu(sum over channels of (mean of the gradient over places) * A), of a module's output or of a value of the program."""
    modules = dict(net.named_modules())
    first = to_first(site)
    if site["name"] in modules and not any(getattr(m, "inplace", False) for m in net.modules()):
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        if x.dim() == 4:
            with GradCAM(net, [modules[site["name"]]], reshape_transform=first) as cam:
                targets = [ClassifierOutputTarget(int(c)) for c in classes]
                cam(input_tensor=x, targets=targets)
                values, grads = cam.activations_and_grads.activations[0], cam.activations_and_grads.gradients[0]
                values, grads = values.numpy(), grads.numpy()
                spatial = tuple(range(2, values.ndim))
                return np.maximum((grads.mean(spatial, keepdims=True) * values).sum(1), 0), "pytorch-grad-cam"

    # A value of the program itself, or a module whose output a later operator in place would change.
    graph = program.module()
    kept = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and n.op == "call_function":
                stack = n.meta.get("nn_module_stack") or {}
                paths = [v[0].replace("L['self'].", "") for v in stack.values()]
                kept[n.name] = (result, paths)
            return result

    x = x.clone().requires_grad_(True)
    with torch.enable_grad():
        result = Keep(graph).run(x)
        result = result[0] if isinstance(result, (tuple, list)) else result
        found = [t for name, (t, paths) in kept.items() if name == site["name"]]
        if not found:
            found = [t for t, paths in kept.values() if site["name"] in paths]
        value = found[-1]
        total = result.gather(1, torch.as_tensor(classes)[:, None]).sum()
        grad = torch.autograd.grad(total, value)[0]
    value, grad = first(value.detach()).numpy(), first(grad).numpy()
    spatial = tuple(range(2, value.ndim))
    return np.maximum((grad.mean(spatial, keepdims=True) * value).sum(1), 0), "autograd"


class Guided(torch.autograd.Function):
    """Springenberg et al.: positive gradients where the input is positive."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx, g):
        return g.clamp_min(0) * (ctx.saved_tensors[0] > 0)


def guided_backpropagation(net, x, classes):
    """With every ReLU replaced, modules and functions."""
    functional = torch.nn.functional
    old = functional.relu, torch.relu, nn.ReLU.forward
    functional.relu = lambda v, inplace=False: Guided.apply(v)
    torch.relu, nn.ReLU.forward = Guided.apply, lambda self, v: Guided.apply(v)
    try:
        x = x.clone().requires_grad_(True)
        total = net(x).gather(1, torch.as_tensor(classes)[:, None]).sum()
        return torch.autograd.grad(total, x)[0].sum(1).numpy()
    finally:
        functional.relu, torch.relu, nn.ReLU.forward = old


def zennit(name, net, x, classes, kind):
    """Relevance by Zennit in float32 or float64, summed over channels. AlexNet: epsilon for linear layers and zplus for convolutions. The
    others: epsilon throughout, for batch norms as maps of their own too, as ours has them; by it the result is the same as with
    batch norms merged into convolutions. Sums of branches and averages are shared without a stabiliser."""
    from zennit.composites import EpsilonPlus, LayerMapComposite
    from zennit.rules import Epsilon, Norm, Pass
    from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
    from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear
    from zennit.layer import Sum

    exact, epsilon = Norm(stabilizer=1e-14), Epsilon(epsilon=1e-6)
    layers = [(Activation, Pass()), (Sum, exact), (AvgPool, exact)]
    layers += [(kind, epsilon) for kind in (Convolution, Linear, BatchNorm)]
    canonizers = [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]
    composite = EpsilonPlus() if name == "alexnet" else LayerMapComposite(layer_map=layers, canonizers=canonizers)
    net, x = net.to(kind), x.to(kind).requires_grad_(True)
    with composite.context(net) as modified:
        result = modified(x)
        seed = torch.zeros_like(result)
        picked = result.detach().gather(1, torch.as_tensor(classes)[:, None])
        seed.scatter_(1, torch.as_tensor(classes)[:, None], picked)
        return torch.autograd.grad(result, x, seed)[0].sum(1).numpy()


# Networks whose ReLUs are all modules.
CAPTUM = ("alexnet", "vgg11_bn", "resnet18", "resnet50")
# Networks that Zennit has a canonizer of, or that need none.
ZENNIT = ("alexnet", "vgg11_bn", "resnet18", "resnet50")


def check(name, folder):
    net, shape = network(name)
    file, batch, raw = folder / f"{name}.pt2", folder / f"{name}.npy", folder / f"{name}.raw.safetensors"
    mean = [0.485, 0.456, 0.406] if shape[0] == 3 else 0.5
    program = lightbox.export(net, file, torch.zeros(2, *shape), mean=mean, std=0.25)
    x = images(shape, 3, 7)
    np.save(batch, x.numpy())
    described = info(file)
    with torch.no_grad():
        wanted = net(x)
    maps = wanted.dim() > 2
    command = [LIGHTBOX, "explain", batch, "--model", file, "--raw", raw, "--batch-size", "3", "--explainer", "saliency:channels=sum"]
    rules = described["rules"]
    if not maps:
        command += ["--explainer", "gradcam"]
        if "relu:guided" in rules:
            command += ["--explainer", "guidedbackprop:channels=sum"]
        if name in ZENNIT:
            command += ["--explainer", "lrp" if name == "alexnet" else "lrp:composite=epsilon"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return [f"lightbox explain: {done.stderr[-400:]}"], ""
    found = load_file(raw)
    faults, said = [], []

    def compare(what, a, b, limit):
        off = relative(a, b)
        said.append(f"{what} {off:.1e}")
        if not off <= limit:
            faults.append(f"{what} is {off:.1e} off")

    compare("logits", found["logits"], wanted.numpy(), 1e-4)
    if maps:
        return faults, ", ".join(said)
    classes = wanted.argmax(1).numpy()
    if list(found["target"]) != list(classes):
        faults.append("other classes")
    site = next(s for s in described["sites"] if s["name"] == described["cam_site"])
    cam, by = gradcam(net, program, x, classes, site)
    compare(f"GradCAM at {site['name']} ({by})", found["gradcam"].reshape(cam.shape), cam, 1e-3)
    key = next((k for k in found if k.startswith("guidedbackprop")), None)
    if key:
        guided = guided_backpropagation(network(name)[0], x, classes)
        compare("guided backpropagation", found[key].reshape(guided.shape), guided, 1e-3)
        # Captum replaces modules; what a network calls as a function it does not see.
        if name in CAPTUM:
            from captum.attr import GuidedBackprop

            copy = network(name)[0]
            for module in copy.modules():
                if hasattr(module, "inplace"):
                    module.inplace = False
            by_captum = GuidedBackprop(copy).attribute(x, target=torch.as_tensor(classes)).detach().sum(1).numpy()
            compare("Captum's", found[key].reshape(guided.shape), by_captum, 1e-3)
    if name in ZENNIT and not maps:
        relevance = next(value for key, value in found.items() if key.startswith("lrp"))
        exact, single = (zennit(name, network(name)[0], x, classes, kind) for kind in (torch.float64, torch.float32))
        # Divisions by sums near zero: the peer's own rounding is the measure.
        own = relative(single, exact)
        said.append(f"Zennit in float32 {own:.1e}")
        compare("LRP (Zennit)", relevance.reshape(exact.shape), exact, max(1e-3, 1.5 * own))
    return faults, ", ".join(said)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    bad = 0
    for name in sys.argv[2:] or NETWORKS:
        try:
            faults, said = check(name, folder)
        except Exception as e:
            faults, said = [f"{type(e).__name__}: {str(e)[:300]}"], ""
        print(f"{'FAIL' if faults else 'ok  '} {name}: {said}{'; ' if faults else ''}{'; '.join(faults)}", flush=True)
        bad += bool(faults)
        for path in folder.glob(f"{name}.*"):
            if path.suffix != ".pt2":
                path.unlink()
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
