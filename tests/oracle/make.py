"""Makes tests/oracle/golden with the peers. Run from the project's root:

    python3 -m venv .lightbox/oracle && .lightbox/oracle/bin/pip install -r tests/oracle/requirements.txt
    .lightbox/oracle/bin/python tests/oracle/make.py

Every file is small and made from fixed seeds; the tests read the files and need no Python.
"""

import argparse
import collections
import json
import pathlib
import zlib

import numpy as np
import pydicom
import SimpleITK
import sklearn.metrics
import timm.models.vision_transformer
import torch
import torchvision
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

OUT = pathlib.Path(__file__).parent / "golden"


def unit(name, shape):
    """The goldens' numbers in [0, 1): splitmix64 seeded with the name's FNV-1a hash."""
    mask = 2**64 - 1
    state = 0xCBF29CE484222325
    for b in name.encode():
        state = ((state ^ b) * 0x100000001B3) & mask
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy(((z >> np.uint64(11)) * 0.5**53).reshape(shape))


def images(name, shape):
    """A batch made from a name, as the tests make it."""
    return (2.0 * unit(name, shape) - 1.0).float()


def average_precision():
    """scikit-learn's AP and AUROC: random, tied, constant and upsampled maps, 64 x 64 pixels."""
    rng = np.random.default_rng(0)
    maps, masks = [], []
    for k in range(24):
        mask = np.zeros((64, 64), np.uint8)
        y, x, r = rng.integers(8, 56), rng.integers(8, 56), rng.integers(1, 8)
        yy, xx = np.mgrid[:64, :64]
        mask[(yy - y) ** 2 + (xx - x) ** 2 <= r * r] = 1
        kind = k % 6
        if kind == 0:
            m = rng.standard_normal((64, 64))
        elif kind == 1:
            m = np.round(rng.random((64, 64)) * 4)
        elif kind == 2:
            m = np.full((64, 64), 0.25)
        elif kind == 3:
            low = torch.from_numpy(rng.standard_normal((1, 1, 7, 7)).astype(np.float32))
            m = torch.nn.functional.interpolate(low, size=(64, 64), mode="bilinear").relu().numpy()[0, 0]
        elif kind == 4:
            m = np.kron(rng.random((8, 8)), np.ones((8, 8)))
        else:
            m = np.where(rng.random((64, 64)) < 0.5, 0.0, -0.0) + (rng.random((64, 64)) < 0.01)
        maps.append(m.astype(np.float32))
        masks.append(mask)
    maps, masks = np.stack(maps), np.stack(masks)
    score = lambda f: np.array([f(g.ravel(), m.ravel()) for m, g in zip(maps, masks)])
    save_file(
        {
            "maps": maps,
            "masks": masks,
            "ap": score(sklearn.metrics.average_precision_score),
            "auroc": score(sklearn.metrics.roc_auc_score),
            "pooled": np.array([sklearn.metrics.average_precision_score(masks.ravel(), maps.ravel())]),
        },
        OUT / "ap.safetensors",
    )


def resize():
    """torchvision's antialiased bilinear resize of 8-bit images, by its PIL and its tensor path."""
    tensors = {}
    rng = np.random.default_rng(1)
    for k, (h, w, size) in enumerate([(320, 320, 224), (101, 67, 64), (40, 30, 96), (512, 300, 48)]):
        image = (np.add.outer(np.arange(h) * 7, np.arange(w) * 3) % 256 // 2 + rng.integers(0, 128, (h, w))).astype(np.uint8)
        pil = torchvision.transforms.functional.resize(Image.fromarray(image), [size, size])
        tensor = torchvision.transforms.functional.resize(torch.from_numpy(image)[None], [size, size], antialias=True)[0]
        tensors |= {f"{k}.image": image, f"{k}.pil": np.asarray(pil), f"{k}.tensor": tensor.numpy()}
    save_file(tensors, OUT / "resize.safetensors")


class SmallDenseNet(torchvision.models.DenseNet):
    """torchvision's own code at the shape of Lightbox's `densenet-small`."""

    def __init__(self):
        super().__init__(growth_rate=12, block_config=(3, 4, 4), num_init_features=24, num_classes=2)


def checkpoints():
    """One small DenseNet in every form of PyTorch file that is met, and its logits."""
    torch.manual_seed(0)
    model = SmallDenseNet().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    state = model.state_dict()
    old = collections.OrderedDict()
    for key, value in state.items():
        for name in ("norm", "conv"):
            for number in "12":
                if "denselayer" in key:
                    key = key.replace(f".{name}{number}.", f".{name}.{number}.")
        if not key.endswith("num_batches_tracked"):
            old[key] = value
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits = model(images)
    save_file({"images": images.numpy(), "logits": logits.numpy()}, OUT / "checkpoint.safetensors")
    torch.save(state, OUT / "plain.pth")
    torch.save(old, OUT / "old-keys.pth")
    args = argparse.Namespace(lr=1e-3, name="x")
    wrapped = {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 7, "args": args, "best": 0.91}
    torch.save(wrapped, OUT / "wrapped.pth")
    torch.save({"state_dict": {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()}}, OUT / "parameters.pth")
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, OUT / "half.pth")
    other = SmallDenseNet()
    other.load_state_dict(state)
    other.classifier = torch.nn.Linear(other.classifier.in_features, 5)
    torch.save(other.state_dict(), OUT / "five-classes.pth")


def forms():
    """A small state under every form of torch.save that is met: of today and before 1.6, an average alone, a whole module, none."""
    torch.manual_seed(2)
    tied = torch.rand(4)
    state = {"a.weight": torch.rand(2, 3), "a.bias": tied[1:3], "b": tied, "n": torch.tensor(7), "t": torch.rand(3, 2).t()}
    torch.save(state, OUT / "forms.pth")
    torch.save({"epoch": 1, "state_dict": state}, OUT / "forms-legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"model_ema": state}, OUT / "forms-ema.pth")
    torch.save(torch.nn.Linear(2, 2), OUT / "forms-module.pth")
    torch.save({"epoch": 1, "best": 0.5}, OUT / "forms-none.pth")


def small_deit(size, classes):
    """timm's own code at the shape of Lightbox's `deit-mini`."""
    return timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=16, embed_dim=64, depth=4, num_heads=4, num_classes=classes
    )


def transformers():
    """A small DeiT in the forms of facebookresearch ({"model": ...}) and of timm (.safetensors), its logits, and those at
    another input size with the position embeddings resized as facebookresearch/deit's main.py does for fine-tuning."""
    torch.manual_seed(1)
    model = small_deit(128, 5).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)
            # Small files: what float16 holds exactly.
            value.copy_(value.half().float())
    half = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    torch.save({"model": half}, OUT / "deit-facebook.pth")
    save_tensors(half, OUT / "deit-timm.safetensors")
    larger = small_deit(192, 5).eval()
    state = model.state_dict()
    prefix, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    grid = grid.reshape(1, 8, 8, 64).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(12, 12), mode="bicubic", align_corners=False)
    larger.load_state_dict(state | {"pos_embed": torch.cat([prefix, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)})
    with torch.no_grad():
        logits = {f"logits.{n}": m(images(f"deit.{n}", (2, 3, n, n))).numpy() for n, m in [(128, model), (192, larger)]}
    save_file(logits, OUT / "deit.safetensors")
    return model


def steps(model, name, optimizer, weights, size):
    """Eight steps of training and the logits afterwards; decay, strong enough to be seen, acts on tensors of two or more
    dimensions but those that timm's models except."""
    model.train()
    kept = getattr(model, "no_weight_decay", lambda: set())()
    decays = lambda name, p: p.dim() >= 2 and name not in kept
    groups = [[p for n, p in model.named_parameters() if decays(n, p) == wanted] for wanted in (True, False)]
    groups = [{"params": groups[0], "weight_decay": 5.0}, {"params": groups[1], "weight_decay": 0.0}]
    make = {"adamw": lambda: torch.optim.AdamW(groups, lr=1e-3), "sgd": lambda: torch.optim.SGD(groups, lr=1e-3, momentum=0.9)}
    optimizer = make[optimizer]()
    loss_of = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights))
    losses = []
    for step in range(8):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.9**step
        x = images(f"{name}.{step}", (5, 3, size, size))
        loss = loss_of(model(x), torch.arange(5) % len(weights))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits = model.eval()(images(f"{name}.0", (5, 3, size, size)))
    return {f"{name}.losses": np.array(losses), f"{name}.logits": logits.numpy()}


def training():
    """PyTorch's AdamW and SGD with weighted cross-entropy, on torchvision's DenseNet and timm's ViT."""
    tensors = {}
    for optimizer in ("adamw", "sgd"):
        model = SmallDenseNet()
        model.load_state_dict(torch.load(OUT / "plain.pth"))
        tensors |= steps(model, f"densenet.{optimizer}", optimizer, [0.5, 2.0], 64)
        tensors |= steps(transformers(), f"deit.{optimizer}", optimizer, [0.5, 2.0, 1.0, 1.0, 3.0], 128)
    save_file(tensors, OUT / "training.safetensors")


def fill(name, shape):
    """The goldens' weight of a name, for the shapes that `patchconvnet` has."""
    s = 2.0 * unit(name, shape) - 1.0
    if name.endswith(("gamma_1", "gamma_2")):
        return (0.3 + 0.1 * s).float()
    if name.endswith("cls_token"):
        return (0.5 * s).float()
    if len(shape) == 1:
        return (1.0 + 0.1 * s if name.endswith("weight") else 0.1 * s).float()
    return (s * (6.0 / np.prod(shape[1:])) ** 0.5).float()


def patchconvnet():
    """Checkpoints under PatchConvNet's own names at the shapes of `patchconvnet-mini` (a bare state dict) and
    `patchconvnet-mini-multi` (under `model`) with five classes. The weights are the goldens' fill of their names."""
    single, multi = patchconvnet_shapes(False), patchconvnet_shapes(True)
    torch.save({k: fill(k, s) for k, s in single.items()}, OUT / "patchconvnet.pth")
    torch.save({"model": {k: fill(k, s) for k, s in multi.items()}}, OUT / "patchconvnet-multi.pth")
    (OUT / "patchconvnet.keys.json").write_text(json.dumps(single))
    (OUT / "patchconvnet-multi.keys.json").write_text(json.dumps(multi))


def patchconvnet_shapes(multi):
    d, depth, classes = 64, 6, 5
    shapes = {"cls_token": (1, classes if multi else 1, d)}
    for i, (o, c) in enumerate([(d // 8, 3), (d // 4, d // 8), (d // 2, d // 4), (d, d // 2)]):
        shapes[f"patch_embed.proj.{2 * i}.0.weight"] = (o, c, 3, 3)
    for i in range(depth):
        b = f"blocks.{i}."
        shapes |= {b + "gamma_1": (d,), b + "norm1.weight": (d,), b + "norm1.bias": (d,)}
        convs = {"0": (d, d, 1, 1), "2": (d, 1, 3, 3), "4.conv_reduce": (d // 4, d, 1, 1), "4.conv_expand": (d, d // 4, 1, 1), "5": (d, d, 1, 1)}
        for leaf, shape in convs.items():
            shapes |= {f"{b}attn.qkv_pos.{leaf}.weight": shape, f"{b}attn.qkv_pos.{leaf}.bias": shape[:1]}
    b = "blocks_token_only.0."
    shapes |= {b + "gamma_1": (d,), b + "gamma_2": (d,)}
    linear = {b + f"attn.{leaf}": (d, d) for leaf in ("q", "k", "v", "proj")}
    linear |= {b + "mlp.fc1": (3 * d, d), b + "mlp.fc2": (d, 3 * d)}
    linear |= {f"head.{j}": (1, d) for j in range(classes)} if multi else {"head": (classes, d)}
    for name, shape in linear.items():
        shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
    for name in (b + "norm1", b + "norm2", "norm"):
        shapes |= {name + ".weight": (d,), name + ".bias": (d,)}
    return shapes


def medical():
    """The same 12-bit picture as MetaImage by SimpleITK (raw, compressed, floats, header + raw) and DICOM by pydicom."""
    y, x = np.mgrid[:24, :20]
    image = ((x * 157 + y * 89) % 4096).astype(np.uint16)
    save_file({"image": image.astype(np.int32)}, OUT / "medical.safetensors")
    itk = SimpleITK.GetImageFromArray(image)
    SimpleITK.WriteImage(itk, str(OUT / "u16.mha"), useCompression=False)
    SimpleITK.WriteImage(itk, str(OUT / "u16-zlib.mha"), useCompression=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image.astype(np.float32)), str(OUT / "f32.mhd"), useCompression=False)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image.astype(np.int16)[None]), str(OUT / "i16-slice.mha"))

    def dicom(name, pixels, photometric, syntax, slope=1, intercept=0):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        meta.TransferSyntaxUID = syntax
        d = FileDataset(str(OUT / name), {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID, d.Modality = meta.MediaStorageSOPClassUID, "1.2.3.4", "DX"
        d.Rows, d.Columns = pixels.shape
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, photometric
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.RescaleSlope, d.RescaleIntercept = slope, intercept
        d.PixelData = pixels.astype("<u2").tobytes()
        d.save_as(OUT / name, enforce_file_format=True)

    dicom("mono2.dcm", image, "MONOCHROME2", ExplicitVRLittleEndian)
    dicom("mono1.dcm", 4095 - image, "MONOCHROME1", ImplicitVRLittleEndian, slope=2, intercept=-100)
    Image.fromarray(image).save(OUT / "u16.png")


def main():
    OUT.mkdir(exist_ok=True)
    for make in (average_precision, resize, checkpoints, forms, transformers, training, patchconvnet, medical):
        make()
        print(make.__name__, flush=True)


if __name__ == "__main__":
    main()
