"""The peers of `cargo xtask bench`: one round for every line on stdin, its times in seconds on stdout."""

import sys
import time


def gradcam(name, batch, device):
    import torch
    import timm
    import torchvision
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def make():
        known = name == "densenet121"
        model = torchvision.models.densenet121(weights=None) if known else timm.create_model(name, pretrained=False)
        return model.eval().to(device)

    def grid(tokens):
        """As pytorch-grad-cam's documentation has it for ViTs: without the class token, channels first."""
        return tokens[:, 1:].reshape(len(tokens), 14, 14, -1).permute(0, 3, 1, 2)

    model, plain = make(), make()
    images = torch.randn(int(batch), 3, 224, 224, device=device)
    targets = [ClassifierOutputTarget(0)] * int(batch)
    if name == "densenet121":
        cam = GradCAM(model=model, target_layers=[model.features[-1]])
    else:
        cam = GradCAM(model=model, target_layers=[model.blocks[-1].norm1], reshape_transform=grid)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def round():
        start = time.perf_counter()
        cam(input_tensor=images, targets=targets)
        wait()
        middle = time.perf_counter()
        with torch.no_grad():
            plain(images)
        wait()
        return [middle - start, time.perf_counter() - middle]

    return round


def family(batch, device):
    """Eleven methods of class activation maps, a pass each, as their user calls them."""
    import pytorch_grad_cam as P
    import torch
    import torchvision
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = torchvision.models.densenet121(weights=None).eval().to(device)
    images = torch.randn(int(batch), 3, 224, 224, device=device)
    targets = [ClassifierOutputTarget(0)] * int(batch)
    methods = [P.GradCAM, P.HiResCAM, P.GradCAMElementWise, P.GradCAMPlusPlus, P.XGradCAM, P.LayerCAM, P.EigenCAM]
    methods += [P.EigenGradCAM, P.SegEigenCAM, P.KPCA_CAM, P.FEM]

    def round():
        start = time.perf_counter()
        for method in methods:
            with method(model=model, target_layers=[model.features[-1]]) as cam:
                cam(input_tensor=images, targets=targets)
        return [time.perf_counter() - start]

    return round


def ap(path):
    from safetensors.numpy import load_file
    from sklearn.metrics import average_precision_score

    state = load_file(path)
    maps = state["maps"].reshape(len(state["maps"]), -1)
    masks = state["masks"].reshape(len(maps), -1)

    def round():
        start = time.perf_counter()
        values = [average_precision_score(g, m) for g, m in zip(masks, maps)]
        return [time.perf_counter() - start, *values]

    return round


def main():
    round = {"gradcam": gradcam, "family": family, "ap": ap}[sys.argv[1]](*sys.argv[2:])
    for _ in sys.stdin:
        print(*map(repr, map(float, round())), flush=True)


main()
