"""Writes a network as a `.pt2` file that Lightbox runs without Python. Depends on torch alone.

    import lightbox
    lightbox.export(net, "net.pt2", torch.zeros(2, 3, 224, 224), mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
                    classes=["cat", "dog"])

`torch.export.save` alone does too, with `dynamic_shapes=({0: torch.export.Dim("batch")},)`; what the images are divided by and
what the classes are called is then said in Lightbox's spec.
"""

import json
import os
import tempfile

import torch

__all__ = ["export"]


def export(
    module,
    path,
    example,
    *,
    mean=None,
    std=None,
    classes=None,
    activation=None,
    cam_site=None,
    strict=False,
    tolerance=1e-4,
):
    """Exports `module` in evaluation mode with a batch of any size, checks the program against the module on random inputs, and
    writes it to `path`.

    Args:
        module: a `torch.nn.Module` that takes one tensor [B, C, H, W] (or [B, C, D, H, W]) and gives logits [B, classes] or
            maps [B, classes, H, W]. Its mode, parameters and buffers are left as they were.
        path: the file, `NAME.pt2`.
        example: a tensor of the input's shape, float32, for instance `torch.zeros(2, 3, 224, 224)`. Of a batch of one, two are
            made, since an export would otherwise fix the batch.
        mean, std: a number a channel (or one for all): the network takes `(value in [0, 1] - mean) / std`. Without them Lightbox
            asks for them when the file is used.
        classes: names of the outputs, in their order.
        activation: "softmax", "sigmoid" or "linear": what makes scores of the logits; softmax unless it is said.
        cam_site: the module whose output class activation maps read; unless it is said, the tensor that is pooled.
        strict: as in `torch.export.export`.
        tolerance: the largest difference of the logits that is accepted, relative to the largest logit.

    Returns:
        The `torch.export.ExportedProgram`.

    Raises:
        ValueError: what is given does not fit together, or the program does not compute what the module does.
        Whatever `torch.export.export` raises for what it cannot export.
    """
    if not isinstance(example, torch.Tensor) or example.dim() < 3 or not example.is_floating_point():
        raise ValueError("example: a tensor of images [B, C, H, W] of floating point is expected")
    channels = example.shape[1]
    described = {}
    for name, value in (("mean", mean), ("std", std)):
        if value is not None:
            value = [float(v) for v in (value if hasattr(value, "__len__") else [value])]
            if len(value) not in (1, channels):
                raise ValueError(f"{name} has {len(value)} numbers, the example {channels} channels")
            described[name] = value * (channels if len(value) == 1 else 1)
    if (mean is None) != (std is None):
        raise ValueError("mean and std are given together")
    if std is not None and min(described["std"]) <= 0:
        raise ValueError("std is above 0")
    if activation is not None:
        if activation not in ("softmax", "sigmoid", "linear"):
            raise ValueError(f"activation {activation!r}: softmax, sigmoid or linear is expected")
        described["activation"] = activation
    if cam_site is not None:
        if cam_site not in dict(module.named_modules()):
            raise ValueError(f"cam_site: the network has no module {cam_site}")
        described["cam_site"] = cam_site

    shape, device = example.shape[1:], example.device
    draw = torch.Generator().manual_seed(0)
    images = lambda n: torch.randn(n, *shape, generator=draw).to(device=device, dtype=example.dtype)
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        dynamic = ({0: torch.export.Dim("batch", min=1, max=65535)},)
        two = example if example.shape[0] >= 2 else torch.cat([example, example])
        program = torch.export.export(module, (two,), dynamic_shapes=dynamic, strict=strict)
        run = program.module()
        for n in (1, 3):
            x = images(n)
            with torch.no_grad():
                wanted, found = _first(module(x)), _first(run(x))
            if wanted.shape != found.shape:
                raise ValueError(f"of {n} images the program makes {tuple(found.shape)}, the network {tuple(wanted.shape)}")
            off = (wanted - found).abs().max().item() / max(wanted.abs().max().item(), 1e-12)
            if not off <= tolerance:
                raise ValueError(f"of {n} images the program's result is {off:.1e} off the network's: it hangs on what it saw")
    finally:
        for m, mode in modes.items():
            m.training = mode
    if classes is not None:
        classes = [str(c) for c in classes]
        if len(classes) != wanted.shape[1]:
            raise ValueError(f"{len(classes)} classes are named, the network has {wanted.shape[1]} outputs")
        described["classes"] = classes

    path = os.fspath(path)
    # All of it or nothing: a file that is half written is none.
    handle, partial = tempfile.mkstemp(suffix=".pt2", dir=os.path.dirname(os.path.abspath(path)))
    os.close(handle)
    try:
        torch.export.save(program, partial, extra_files={"lightbox.json": json.dumps(described)})
        # Readable as any new file is, which a temporary one is not.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    return program


def _first(result):
    """The first tensor of a result that may be a tuple or a dictionary."""
    while not isinstance(result, torch.Tensor):
        result = next(iter(result.values())) if isinstance(result, dict) else result[0]
    return result
