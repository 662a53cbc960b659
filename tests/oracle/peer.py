"""The peers of `cargo xtask bench`, as their users call them, in the environment of bench-requirements.txt.

    python peer.py FOLDER

FOLDER holds job.json (what to measure) and in.safetensors (weights under their checkpoint's names after `weights.`, images and
what else the row needs), so that both sides compute the same. A line on stdout says the versions; then for each line on
stdin, the name of one side, one round is run and its seconds are said. `outputs` writes what the last rounds gave to
out.safetensors.
"""

import importlib.metadata
import json
import math
import os
import pathlib
import sys
import time

folder = pathlib.Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
device = job.get("device", "cpu")
outputs = {}
os.environ["TQDM_DISABLE"] = "1"


def state():
    from safetensors.torch import load_file

    return load_file(folder / "in.safetensors")


def weights(everything):
    return {k.removeprefix("weights."): v for k, v in everything.items() if k.startswith("weights.")}


def wait():
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------------------ models


def patchconvnet(dim, depth, size, classes):
    """PatchConvNet of Touvron et al. (arXiv:2112.13692), which is in no package, in plain PyTorch: section 3 of the paper,
    with the names of its checkpoints."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    side = size // 16

    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_reduce, self.conv_expand = nn.Conv2d(dim, dim // 4, 1), nn.Conv2d(dim // 4, dim, 1)

        def forward(self, x):
            gate = self.conv_reduce(x.mean((2, 3), keepdim=True)).relu()
            return x * self.conv_expand(gate).sigmoid()

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
            pointwise = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
            self.qkv_pos = nn.Sequential(pointwise[0], nn.GELU(), depthwise, nn.GELU(), Squeeze(), pointwise[1])

        def forward(self, x):
            x = self.qkv_pos(x.transpose(1, 2).unflatten(2, (side, side)))
            return x.flatten(2).transpose(1, 2)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.attn, self.gamma_1 = nn.LayerNorm(dim, eps=1e-6), Branch(), nn.Parameter(torch.ones(dim))

        def forward(self, x):
            return x + self.gamma_1 * self.attn(self.norm1(x))

    class Gather(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
            self.weights = nn.Identity()

        def forward(self, x):
            logits = self.q(x[:, :1]) * dim**-0.5 @ self.k(x).transpose(1, 2)
            return self.proj(self.weights(logits.softmax(-1)) @ self.v(x))

    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.gamma_1, self.gamma_2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
            self.attn, self.mlp = Gather(), nn.Module()
            self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 3 * dim), nn.Linear(3 * dim, dim)

        def forward(self, token, x):
            token = token + self.gamma_1 * self.attn(self.norm1(torch.cat([token, x], 1)))
            return token + self.gamma_2 * self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(token))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            widths, stem = [3, dim // 8, dim // 4, dim // 2, dim], []
            for i in range(4):
                stem.append(nn.Sequential(nn.Conv2d(widths[i], widths[i + 1], 3, 2, 1, bias=False)))
                stem += [nn.GELU()] * (i < 3)
            self.patch_embed = nn.Module()
            self.patch_embed.proj = nn.Sequential(*stem)
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.blocks_token_only = nn.ModuleList([Pool()])
            self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))

        def forward(self, x):
            x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = block(x)
            token = self.cls_token.expand(len(x), -1, -1)
            return self.head(self.norm(self.blocks_token_only[0](token, x))[:, 0])

    return Model()


def make(name, everything, size=224):
    """The model with the weights that Lightbox has."""
    import timm
    import torchvision

    number = len(everything["weights.classifier.bias" if name.startswith("densenet") else "weights.head.bias"])
    if name.startswith("densenet"):
        model = getattr(torchvision.models, name)(weights=None, num_classes=number)
    elif name == "patchconvnet_s60":
        model = patchconvnet(384, 60, size, number)
    else:
        model = timm.create_model(name, pretrained=False, num_classes=number)
    model.load_state_dict(weights(everything), strict=True)
    return model.eval().to(device)


def whole(model):
    """torchvision's DenseNet with its last ReLU, pooling and classifier as modules: at the ReLU that follows the features in
    place, pytorch-grad-cam would pair its input's gradient with its output."""
    from torch import nn

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.relu5, self.classifier = model.features, nn.ReLU(), model.classifier

        def forward(self, x):
            return self.classifier(self.relu5(self.features(x)).mean((2, 3)))

    return Whole().eval()


def grid(prefix):
    """As pytorch-grad-cam's documentation has it for ViTs: without the class token, channels first."""

    def transform(tokens):
        tokens = tokens[:, prefix:]
        side = math.isqrt(tokens.shape[1])
        return tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)

    return transform


def classes(targets):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    return [ClassifierOutputTarget(t) for t in targets]


# -------------------------------------------------------------------------------------------------------------- rows


def explainers():
    """Forward pass, GradCAM and last attention of one model by every peer that can."""
    import pytorch_grad_cam as P
    import torch

    everything, name = state(), job["model"]
    images, targets = everything["images"].to(device), job["targets"]
    model = make(name, everything)
    dense = name.startswith("densenet")
    hooked = whole(make(name, everything)) if dense else make(name, everything)
    if dense:
        layer, transform = hooked.relu5, None
    elif name.startswith("patchconvnet"):
        layer, transform = hooked.blocks[-1], grid(0)
    else:
        layer, transform = hooked.blocks[-1].norm1, grid(1)
    cam = P.GradCAM(model=hooked, target_layers=[layer], reshape_transform=transform)

    def forward():
        with torch.no_grad():
            return model(images)

    sides = {"forward": forward, "pytorch-grad-cam": lambda: torch.tensor(cam(images, classes(targets)))}
    if dense:
        import captum.attr
        import torchcam.methods

        captured = whole(make(name, everything))
        by_captum = captum.attr.LayerGradCam(captured, captured.relu5)
        tapped = whole(make(name, everything))
        extractor = torchcam.methods.GradCAM(tapped, "relu5", input_shape=(3, 224, 224))

        def captum_map():
            found = by_captum.attribute(images, target=targets, relu_attributions=True)
            return captum.attr.LayerAttribution.interpolate(found, (224, 224), "bilinear")[:, 0]

        def torchcam_map():
            return extractor(targets, tapped(images))[0]

        sides |= {"captum": captum_map, "torch-cam": torchcam_map}
    else:
        # A hook on the weights of the last attention, which for that is not fused.
        watched, kept = make(name, everything), []
        if name.startswith("patchconvnet"):
            watched.blocks_token_only[0].attn.weights.register_forward_hook(lambda _, __, y: kept.append(y))
        else:
            watched.blocks[-1].attn.fused_attn = False
            watched.blocks[-1].attn.attn_drop.register_forward_hook(lambda _, __, y: kept.append(y))

        def attention():
            kept.clear()
            with torch.no_grad():
                watched(images)
            rows = kept[0] if kept[0].dim() == 4 else kept[0][:, None]
            rows = rows[:, :, 0, 1:].amax(1)
            side = math.isqrt(rows.shape[1])
            return rows.unflatten(1, (side, side))

        sides["attention"] = attention
    return sides


def cams():
    """A pass for each method, as their user calls them."""
    import pytorch_grad_cam as P
    import torch

    everything = state()
    images, targets = everything["images"].to(device), job["targets"]
    model = whole(make("densenet121", everything))
    methods = dict(
        gradcam=P.GradCAM, hirescam=P.HiResCAM, elementwise=P.GradCAMElementWise, gradcampp=P.GradCAMPlusPlus,
        xgradcam=P.XGradCAM, layercam=P.LayerCAM, eigencam=P.EigenCAM, eigengradcam=P.EigenGradCAM,
    )  # fmt: skip

    def run():
        found = []
        for method in methods.values():
            with method(model=model, target_layers=[model.relu5]) as cam:
                found.append(torch.tensor(cam(images, classes(targets))))
        return torch.stack(found)

    return {"pytorch-grad-cam": run}


def exported():
    """A network of torchvision or timm as it is, exported to the row's file before the first round."""
    import subprocess

    import pytorch_grad_cam as P
    import torch

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sdk/python"))
    import lightbox

    name, images = job["network"], state()["images"].to(device)
    torch.manual_seed(0)
    if name.startswith("deit"):
        import timm

        model = timm.create_model(name)
    else:
        import torchvision

        model = getattr(torchvision.models, name)(weights=None)
    for key, p in model.named_parameters():
        with torch.no_grad():
            if p.dim() > 1 and p.abs().max() == 0:
                p.normal_(0, 0.02)
            if key.endswith(("layer_scale", "gamma")):
                p.fill_(0.2)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if norms:
        for m in norms:
            m.momentum = None
        with torch.no_grad():
            model.train()(images[:4].cpu())
    model = model.eval()
    lightbox.export(model, job["file"], torch.zeros(2, 3, 224, 224), mean=0.5, std=0.25)
    # Lightbox's file and PyTorch's network are two processes; each has its weights once.
    model.to(device)
    layers = dict(
        resnet50=lambda: model.layer4, convnext_tiny=lambda: model.features, swin_t=lambda: model.permute,
        efficientnet_b0=lambda: model.features, deit_small_patch16_224=lambda: model.blocks[-1].norm1,
    )  # fmt: skip
    cam = P.GradCAM(model=model, target_layers=[layers[name]()], reshape_transform=grid(1) if name.startswith("deit") else None)

    def forward():
        with torch.no_grad():
            return model(images)

    def gradcam():
        return torch.tensor(cam(images, None))

    def memory():
        """The greatest memory of a process that makes the network, loads its weights and makes the same pass, MiB."""
        torch.save(model.state_dict(), job["file"] + ".pth")
        make = f"timm.create_model({name!r})" if name.startswith("deit") else f"torchvision.models.{name}(weights=None)"
        package = "timm" if name.startswith("deit") else "torchvision"
        code = (
            f"import torch, {package}\ntorch.set_num_threads({job['threads']})\nm = {make}.eval()\n"
            f"m.load_state_dict(torch.load({job['file'] + '.pth'!r}))\n"
            f"with torch.no_grad(): m(torch.zeros({len(images)}, 3, 224, 224))\n"
            # Of this process alone; getrusage would count what its parent had.
            "print(next(int(l.split()[1]) / 1024 for l in open('/proc/self/status') if l.startswith('VmHWM')))"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        return torch.tensor(float(done.stdout))

    return {"forward": forward, "pytorch-grad-cam": gradcam, "memory": memory}


def attributions():
    """Methods that run a model many times."""
    import captum.attr
    import pytorch_grad_cam as P
    import torch

    everything = state()
    images, targets = everything["images"].to(device), job["targets"]
    model = make("densenet121", everything)
    hooked = whole(make("densenet121", everything))
    method = job["method"]
    if method == "ig":
        attribute = captum.attr.IntegratedGradients(model).attribute

        def run():
            how = dict(n_steps=job["steps"], method="gausslegendre", internal_batch_size=job["at_once"])
            return attribute(images, torch.zeros_like(images), target=targets, **how).sum(1).detach()

        return {"captum": run}
    if method == "rise":
        # The paper's algorithm in plain PyTorch: the masks of eight cells, shifted, in batches. It draws masks as its user
        # would, and goes on with those that the other side drew.
        cells, keep, masks, side = 8, 0.1, job["masks"], images.shape[-1]
        given = everything["masks"].to(device)
        step = math.ceil(side / cells)

        @torch.no_grad()
        def run():
            found = []
            for image, target in zip(images, targets):
                total = torch.zeros(side, side, device=device)
                for start in range(0, masks, job["at_once"]):
                    n = min(job["at_once"], masks - start)
                    coarse = (torch.rand(n, 1, cells, cells, device=device) < keep).float()
                    fine = torch.nn.functional.interpolate(coarse, size=(cells + 1) * step, mode="bilinear")
                    shifts = torch.randint(0, step, (n, 2)).tolist()
                    drawn = torch.stack([f[:, y : y + side, x : x + side] for f, (y, x) in zip(fine, shifts)])
                    m = given[start : start + len(drawn), None]
                    score = model(image * m).softmax(1)[:, target]
                    total += (score[:, None, None] * m[:, 0]).sum(0)
                found.append(total / (masks * keep))
            return torch.stack(found)

        return {"plain PyTorch": run}
    cam = dict(scorecam=P.ScoreCAM, ablationcam=P.AblationCAM)[method](model=hooked, target_layers=[hooked.relu5])
    cam.batch_size = job["at_once"]
    return {"pytorch-grad-cam": lambda: torch.tensor(cam(images, classes(targets)))}


def pixel_ap():
    from safetensors.numpy import load_file
    from sklearn.metrics import average_precision_score

    everything = load_file(folder / "in.safetensors")
    maps, masks = (everything[k].reshape(len(everything[k]), -1) for k in ("maps", "masks"))

    def run():
        import torch

        found = [average_precision_score(g, m) for g, m in zip(masks, maps)]
        return torch.tensor(found, dtype=torch.float64)

    return {"scikit-learn": run}


def map_metrics():
    """Seven metrics of maps by Quantus, each as its user calls it."""
    import numpy as np

    if not hasattr(np, "trapz"):  # Quantus 0.6.0 was written for an older NumPy.
        np.trapz = np.trapezoid
    import quantus
    import torch

    everything = state()
    maps, masks = (everything[k].numpy()[:, None] for k in ("maps", "masks"))
    masks = masks.astype(bool)
    x, y = np.zeros_like(maps), np.zeros(len(maps), int)
    common = dict(disable_warnings=True, normalise=False, abs=False, display_progressbar=False)
    kinds = [
        quantus.PointingGame(**common),
        quantus.TopKIntersection(k=job["top"], **common),
        quantus.RelevanceRankAccuracy(**common),
        quantus.RelevanceMassAccuracy(**common),
        quantus.AUC(**common),
        quantus.Sparseness(**common),
        quantus.Complexity(**common),
    ]

    class Nothing(torch.nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 2)

    def run():
        how = dict(model=Nothing(), x_batch=x, y_batch=y, s_batch=masks, device="cpu")
        found = [np.asarray(m(a_batch=maps.copy(), **how), np.float64).ravel() for m in kinds]
        # Ours is of the greatest there can be.
        found[-1] /= np.log(maps[0].size)
        return torch.tensor(np.stack(found))

    return {"quantus": run}


def removal():
    """Highest first and lowest first by Quantus; the scores after each step."""
    import numpy as np
    import quantus
    import torch

    everything = state()
    images, targets = everything["images"].numpy(), np.array(job["targets"])
    maps = everything["maps"].numpy()[:, None]
    model = make("densenet121", everything)

    def flipping(a):
        metric = quantus.PixelFlipping(
            # Quantus gives each channel the map, and counts all three.
            features_in_step=3 * maps[0].size // job["steps"],
            perturb_baseline=0.0,
            return_auc_per_sample=False,
            disable_warnings=True,
            normalise=False,
            abs=False,
            display_progressbar=False,
        )
        how = dict(x_batch=images.copy(), y_batch=targets, a_batch=a.copy(), device=device, softmax=True)
        return np.asarray(metric(model=model, batch_size=len(images), **how), np.float64)

    return {"quantus": lambda: torch.tensor(np.stack([flipping(maps), flipping(maps.max() - maps)]))}


def decode():
    import numpy as np
    import torch
    from PIL import Image

    files = sorted(pathlib.Path(job["images"]).iterdir())

    def run():
        found = []
        for file in files:
            with Image.open(file) as image:
                grey = image.convert("L").resize((224, 224), Image.Resampling.BILINEAR)
                found.append((np.asarray(grey, np.float32) / 255 - 0.5) / 0.25)
        return torch.tensor(np.stack(found))

    torch.set_num_threads(1)
    return {"pillow": run}


def training():
    import torch

    everything = state()
    images, targets = everything["images"].to(device), torch.tensor(job["targets"], device=device)

    def run():
        # As Lightbox: AdamW, decay on weights of two dimensions and more.
        model = make(job["model"], everything).train()
        groups = [[p for p in model.parameters() if (p.dim() >= 2) == d] for d in (True, False)]
        kinds = [dict(params=groups[0], weight_decay=0.01), dict(params=groups[1], weight_decay=0.0)]
        optimizer = torch.optim.AdamW(kinds, lr=1e-4, betas=(0.9, 0.999), eps=1e-8)
        losses = []
        start = time.perf_counter()
        for x, y in zip(images.split(job["batch"]), targets.split(job["batch"])):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        wait()
        return torch.tensor(losses), time.perf_counter() - start

    return {"pytorch": run}


def script():
    """What a user writes today: decode by Pillow, GradCAM by pytorch-grad-cam, attention by a hook, average precision by
    scikit-learn. The whole process is timed by its caller."""
    import csv

    import numpy as np
    import pytorch_grad_cam as P
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from sklearn.metrics import average_precision_score, roc_auc_score

    rows = list(csv.DictReader(open(job["table"])))
    tested = [r["img_name"] for r in csv.DictReader(open(job["split"]))]
    marked = {r["image"] for r in rows if r["label"] == "1"}
    files, others = ([f for f in tested if (f in marked) == m] for m in (True, False))
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def image(name):
        with Image.open(pathlib.Path(job["table"]).parent / name) as opened:
            size = opened.size[0]
            grey = np.asarray(opened.convert("L").resize((224, 224), Image.Resampling.BILINEAR), np.float32) / 255
        mask = np.zeros((224, 224), np.uint8)
        y, x = np.mgrid[:224, :224] + 0.5
        for r in rows:
            if r["image"] == name and r["label"] == "1":
                left, top, w, h = (float(r[k]) * 224 / size for k in ("x", "y", "width", "height"))
                mask |= ((x - left - w / 2) / (w / 2)) ** 2 + ((y - top - h / 2) / (h / 2)) ** 2 <= 1
        return (grey[None] - mean) / std, mask

    found = {}
    for name, file in job["weights"].items():
        everything = {f"weights.{k}": v for k, v in load_file(file).items()}
        dense = name.startswith("densenet")
        model = make(name, everything)
        model = whole(model) if dense else model
        layer = model.relu5 if dense else model.blocks[-1].norm1
        cam = P.GradCAM(model=model, target_layers=[layer], reshape_transform=None if dense else grid(1))
        kept = []
        if not dense:
            model.blocks[-1].attn.fused_attn = False
            model.blocks[-1].attn.attn_drop.register_forward_hook(lambda _, __, y: kept.append(y.detach()))
        scores = []
        for start in range(0, len(files), job["batch"]):
            images, masks = zip(*(image(f) for f in files[start : start + job["batch"]]))
            images = torch.tensor(np.stack(images), device=device)
            kept.clear()
            maps = {"gradcam": cam(images, classes([1] * len(images)))}
            scores += [(s, 1) for s in cam.outputs.detach().softmax(1)[:, 1].tolist()]
            if kept:
                rows_ = kept[0][:, :, 0, 1:].amax(1).unflatten(1, (14, 14))[:, None]
                up = torch.nn.functional.interpolate(rows_, size=(224, 224), mode="bilinear")
                maps["attention"] = up[:, 0].cpu().numpy()
            for method, values in maps.items():
                for m, g in zip(values, masks):
                    ap = average_precision_score(g.ravel(), m.ravel())
                    found.setdefault(f"{name} {method}", []).append(ap)
        for start in range(0, len(others), job["batch"]):
            images = torch.tensor(np.stack([image(f)[0] for f in others[start : start + job["batch"]]]), device=device)
            with torch.no_grad():
                scores += [(s, 0) for s in model(images).softmax(1)[:, 1].tolist()]
        found[f"{name} auroc"] = roc_auc_score([l for _, l in scores], [s for s, _ in scores])
    print(json.dumps({k: float(np.mean(v)) for k, v in found.items()}))


def main():
    if job["row"] == "script":
        return script()
    # Packages print, too.
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(job["threads"])
    # On CUDA both sides compute in float32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows = [explainers, cams, exported, attributions, pixel_ap, map_metrics, removal, decode, training]
    sides = {r.__name__: r for r in rows}[job["row"].replace("-", "_")]()
    packages = dict(
        forward="torch", memory="torch", attention="torch", pytorch="torch", captum="captum", quantus="quantus", pillow="pillow",
    )  # fmt: skip
    packages |= {"pytorch-grad-cam": "grad-cam", "torch-cam": "torchcam", "plain PyTorch": "torch"}
    packages["scikit-learn"] = "scikit-learn"
    versions = {side: importlib.metadata.version(packages[side]) for side in sides}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        side = line.strip()
        if side == "outputs":
            save_file(outputs, folder / "half")
            os.replace(folder / "half", folder / "out.safetensors")
            print("0.0", file=answers, flush=True)
            continue
        start = time.perf_counter()
        given = sides[side]()
        wait()
        seconds = time.perf_counter() - start
        if isinstance(given, tuple):
            given, seconds = given
        outputs[side] = given.detach().cpu().contiguous()
        print(repr(seconds), file=answers, flush=True)


main()
