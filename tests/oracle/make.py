"""Makes tests/oracle/golden with the peers. Run from the project's root:

    python3 -m venv .lightbox/oracle && .lightbox/oracle/bin/pip install -r tests/oracle/requirements.txt
    .lightbox/oracle/bin/python tests/oracle/make.py

Every file is small and made from fixed seeds; the tests read the files and need no Python.
"""

import argparse
import collections
import pathlib
import zlib

import numpy as np
import pydicom
import SimpleITK
import sklearn.metrics
import torch
import torchvision
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).parent / "golden"


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
    for make in (average_precision, resize, checkpoints, medical):
        make()
        print(make.__name__, flush=True)


main()
