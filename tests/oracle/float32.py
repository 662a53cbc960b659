"""How far float32 is from float64 in integrated gradients of DenseNet121: what two right answers may differ by.

    python float32.py        in the environment of bench-requirements.txt

Prints the largest difference of the maps, summed over channels and scaled to [0, 1], in two layouts of memory, which round
differently. Weights and image are random; 16 steps at the middles, one image of 224 x 224.
"""

import torch
import torchvision

torch.manual_seed(0)
model = torchvision.models.densenet121().eval()
image = torch.randn(1, 3, 224, 224)
target = int(model(image).argmax())


def integrated_gradients(image, layout):
    total = 0
    for step in range(16):
        at = (image * (step + 0.5) / 16).contiguous(memory_format=layout).requires_grad_(True)
        total = total + torch.autograd.grad(model(at)[:, target].sum(), at)[0]
    found = (total / 16 * image).double().sum(1)
    return (found - found.min()) / (found.max() - found.min())


plain = integrated_gradients(image, torch.contiguous_format)
model.to(memory_format=torch.channels_last)
channels_last = integrated_gradients(image, torch.channels_last)
model.to(memory_format=torch.contiguous_format).double()
exact = integrated_gradients(image.double(), torch.contiguous_format)
for name, found in [("contiguous", plain), ("channels last", channels_last)]:
    print(f"{name}: {float((found - exact).abs().max()):.1e} from float64")
