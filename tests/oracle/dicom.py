"""Makes tests/oracle/golden/dicom.safetensors: DICOM files (their bytes) and what pydicom shows of them, in [0, 1]. Run from
the project's root, as make.py:

    .lightbox/oracle/bin/python tests/oracle/dicom.py
"""

import io
import pathlib

import imagecodecs
import numpy as np
import pydicom
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).parent / "golden"
RNG = np.random.default_rng(5)
y, x = np.mgrid[:64, :66]
PICTURE = (1800 + 900 * np.sin(x / 9) * np.cos(y / 7) + RNG.integers(-60, 60, x.shape)).astype(np.uint16)
tensors = {}


def lut(first, data, bits, vr="US"):
    item = Dataset()
    item.add_new(0x00283002, vr, [len(data) % 65536, first, bits])
    item.add_new(0x00283006, "OW", np.asarray(data, np.uint16).tobytes())
    return Sequence([item])


def dataset(pixels, stored, syntax=ExplicitVRLittleEndian, photometric="MONOCHROME2", **more):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "2.25.7"
    meta.TransferSyntaxUID = syntax
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * pixels.itemsize, stored, stored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    for key, value in more.items():
        setattr(ds, key, value)
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    return ds


def full(values):
    values = values.astype(np.float64)
    return (values - values.min()) / (values.max() - values.min())


def windowed(ds, pixels):
    """pydicom's window, brought from its output range to [0, 1]."""
    shown = apply_voi_lut(apply_modality_lut(pixels, ds), ds)
    if "VOILUTSequence" in ds:
        return shown / (2.0 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1)
    if ds.PixelRepresentation:
        low, high = -(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1
    else:
        low, high = 0, 2**ds.BitsStored - 1
    if "ModalityLUTSequence" in ds:
        low, high = 0, 2 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    elif "RescaleSlope" in ds:
        low, high = (v * ds.RescaleSlope + ds.RescaleIntercept for v in (low, high))
    return (shown - low) / (high - low)


def keep(name, ds, unit, **options):
    buffer = io.BytesIO()
    ds.save_as(buffer, **options)
    tensors[f"{name}.file"] = np.frombuffer(buffer.getvalue(), np.uint8).copy()
    tensors[f"{name}.unit"] = np.asarray(unit, np.float32)


def window(name, **more):
    ds = dataset(PICTURE, 12, WindowCenter=1700, WindowWidth=900, **more)
    keep(name, ds, windowed(ds, PICTURE))


window("window-linear")
window("window-exact", VOILUTFunction="LINEAR_EXACT")
window("window-sigmoid", VOILUTFunction="SIGMOID")
signed = PICTURE.astype(np.int16) - 1500
ds = dataset(signed, 13, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[-300, 9], WindowWidth=[2500, 9])
keep("rescale-signed", ds, windowed(ds, signed))
curve = (65535 * np.linspace(0, 1, 3000) ** 2).astype(np.uint16)
ds = dataset(PICTURE, 12, VOILUTSequence=lut(500, curve, 16))
keep("voi-lut", ds, windowed(ds, PICTURE))
ds = dataset(PICTURE, 12, ModalityLUTSequence=lut(600, curve[::-1], 16), WindowCenter=30000, WindowWidth=40000)
keep("modality-lut", ds, windowed(ds, PICTURE))
ds = dataset(PICTURE, 12, photometric="MONOCHROME1", WindowCenter=1700, WindowWidth=900)
keep("monochrome1", ds, 1 - windowed(ds, PICTURE))
ds = dataset(PICTURE, 12, PresentationLUTShape="INVERSE", WindowCenter=1700, WindowWidth=900)
keep("inverse", ds, 1 - windowed(ds, PICTURE))
padded = PICTURE.copy()
padded[:, :9] = 0
inside = padded[:, 9:]
unit = np.zeros(padded.shape)
unit[:, 9:] = full(inside)
keep("padding", dataset(padded, 12, PixelPaddingValue=0), unit)
unit[:, 9:] = 1 - full(inside)
keep("padding-monochrome1", dataset(padded, 12, photometric="MONOCHROME1", PixelPaddingValue=0), unit)
eight = (PICTURE // 16).astype(np.uint8)
keep("eight-bits", dataset(eight, 8), eight / 255)
keep("eight-bits-monochrome1", dataset(eight, 8, photometric="MONOCHROME1"), 1 - eight / 255)
keep("implicit", dataset(PICTURE, 12, ImplicitVRLittleEndian), full(PICTURE))
keep("deflated", dataset(PICTURE, 12, DeflatedExplicitVRLittleEndian), full(PICTURE))
for name, pixels, stored in [("rle-16", PICTURE, 12), ("rle-8", eight, 8)]:
    ds = dataset(pixels, stored)
    ds.compress(RLELossless, encoding_plugin="pydicom")
    keep(name, ds, full(pixels) if stored > 8 else pixels / 255)
ds = dataset(PICTURE, 12)
ds.compress(JPEG2000Lossless)
keep("jpeg2000", ds, full(PICTURE))


def encapsulated(name, pixels, stored, syntax, code, unit):
    """Pixels as another encoder wrote them; what they are is what pydicom decodes."""
    ds = dataset(pixels, stored, syntax)
    ds.PixelData = encapsulate([code])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    keep(name, ds, unit(ds.pixel_array))


# The data set says signed, the code stream unsigned 13 bits (pydicom#1149): the data set is right.
words = np.tile(np.array([0, 1, 4095, 4096, 8191], np.uint16), (64, 13))
values = np.tile(np.array([0, 1, 4095, -4096, -1]), (64, 13))
ds = dataset(words.astype(np.int16), 13, JPEG2000Lossless)
ds.PixelData = encapsulate([bytes(encode_array(words, bits_stored=13, photometric_interpretation=2))])
ds["PixelData"].VR = "OB"
ds["PixelData"].is_undefined_length = True
assert (ds.pixel_array == values).all()
keep("jpeg2000-sign", ds, full(values))
buffer = io.BytesIO()
Image.fromarray(eight).save(buffer, "JPEG", quality=95)
encapsulated("jpeg-baseline", eight, 8, JPEGBaseline8Bit, buffer.getvalue(), lambda p: p / 255)
code = imagecodecs.ljpeg_encode(PICTURE, bitspersample=12)
encapsulated("jpeg-lossless", PICTURE, 12, JPEGLosslessSV1, code, full)
code = imagecodecs.jpegls_encode(PICTURE)
encapsulated("jpeg-ls", PICTURE, 12, JPEGLSLossless, code, lambda _: full(PICTURE))
ds = dataset(PICTURE, 12, ExplicitVRBigEndian)
ds.PixelData = PICTURE.astype(">u2").tobytes()
buffer = io.BytesIO()
pydicom.dcmwrite(buffer, ds, implicit_vr=False, little_endian=False, force_encoding=True)
assert (pydicom.dcmread(io.BytesIO(buffer.getvalue())).pixel_array == PICTURE).all()
tensors["big-endian.file"] = np.frombuffer(buffer.getvalue(), np.uint8).copy()
tensors["big-endian.unit"] = full(PICTURE).astype(np.float32)
ds = dataset(PICTURE, 12)
ds.preamble = None
buffer = io.BytesIO()
pydicom.dcmwrite(buffer, ds, enforce_file_format=False)
raw = buffer.getvalue()
tensors["no-preamble.file"] = np.frombuffer(raw, np.uint8).copy()
tensors["no-preamble.unit"] = full(PICTURE).astype(np.float32)
ds = dataset(PICTURE, 12)
del ds.file_meta
ds.preamble = None
keep("bare", ds, full(PICTURE), implicit_vr=True, little_endian=True, enforce_file_format=False)
save_file(tensors, OUT / "dicom.safetensors")
print({k: v.shape for k, v in tensors.items()})
