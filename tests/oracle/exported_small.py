"""Makes tests/oracle/golden/exported-*.pt2 and exported.safetensors: small networks that hold all that the interpreter has to
know, and what PyTorch computes with them. From the project's root, with torch 2.11:

    python tests/oracle/exported_small.py

For every module whose output is a tensor: its value and the gradient of the first class's logits there, under NAME.value.SITE and
NAME.grad.SITE.
"""

import json
import pathlib
import re
import sys
import zipfile

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import library, nn

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sdk/python"))
import lightbox  # noqa: E402

OUT = ROOT / "tests/oracle/golden"
tensors = {}


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, c):
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1), nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.BatchNorm2d(c)
        # Called twice, and in place.
        self.relu, self.gate = nn.ReLU(inplace=True), Gate(c)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.gate(self.bn2(self.conv2(y)))
        y += x
        return self.relu(y)


class Cnn(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 5, 2, 2), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.Sequential(Residual(8), nn.Conv2d(8, 12, 3, 2, 1), nn.Hardswish(inplace=True), Residual(12))
        self.avgpool, self.drop, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(p), nn.Linear(12, 5)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.stem(x)), inplace=True))
        x = self.layers(x)
        return self.fc(self.drop(torch.flatten(self.avgpool(x), 1)))


class Attention(nn.Module):
    def __init__(self, d, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * (d // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, d, heads, fused):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(d), Attention(d, heads, fused)
        self.norm2, self.mlp = nn.LayerNorm(d), nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    def __init__(self, fused):
        super().__init__()
        d = 16
        self.patch = nn.Conv2d(3, d, 8, 8)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, d)), nn.Parameter(torch.randn(1, 13, d))
        self.blocks = nn.ModuleList([Block(d, 2, fused) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Windows(nn.Module):
    """Shifted windows of 4 x 4, channels last, with a mask made of constants; as Swin."""

    def __init__(self, d, side, shift):
        super().__init__()
        self.shift, self.side, self.norm = shift, side, nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.register_buffer("index", torch.arange(16)[:, None] * 0 + torch.arange(16)[None], persistent=False)
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x):
        b, h, w, d = x.shape
        y = self.norm(x)
        y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // 4, 4, w // 4, 4, d).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, d)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        logits = (q * (d // 2) ** -0.5) @ k.transpose(-2, -1) + self.bias[self.index]
        if self.shift:
            mask = x.new_zeros(h, w)
            mask[-self.shift :, :] = 1
            mask = mask.view(h // 4, 4, w // 4, 4).permute(0, 2, 1, 3).reshape(-1, 16)
            mask = (mask[:, None] != mask[:, :, None]) * -100.0
            logits = logits.view(b, -1, 2, 16, 16) + mask[None, :, None]
            logits = logits.view(-1, 2, 16, 16)
        y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, d)
        y = self.proj(y).view(b, h // 4, w // 4, 4, 4, d).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, d)
        return x + torch.roll(y, (self.shift, self.shift), (1, 2))


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.stage = nn.Conv2d(3, 8, 4, 4), nn.Sequential(Windows(8, 8, 0), Windows(8, 8, 2))
        self.merge, self.last = nn.Linear(32, 16), Windows(16, 4, 0)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.stage(self.embed(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        x = self.norm(self.last(self.merge(x)))
        return self.head(x.mean((1, 2)))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 6, 3, 1, 1), nn.ReLU())
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3, 4)))


class Segment(nn.Module):
    """A class map, and a second result."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aux = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 3, 1), nn.Linear(6, 2)

    def forward(self, x):
        y = F.relu(self.body(x))
        up = F.interpolate(self.head(y), size=x.shape[2:], mode="bilinear", align_corners=False)
        return {"out": up, "aux": self.aux(y.mean((2, 3)))}


def fill(net, seed):
    torch.manual_seed(seed)
    for key, p in net.named_parameters():
        with torch.no_grad():
            p.copy_(torch.randn(p.shape) * (0.3 if p.dim() > 1 else 0.2) + (1 if "norm" in key and key.endswith("weight") else 0))
    for key, b in net.named_buffers():
        if key.endswith("running_var"):
            b.copy_(torch.rand(b.shape) + 0.5)
        elif key.endswith("running_mean"):
            b.copy_(torch.randn(b.shape) * 0.3)
    return net.eval()


def example(shape, count=3, seed=11):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def keep(name, net, shape, **more):
    """Exports a network and keeps what PyTorch says of its modules. Operators in place would change what a hook has kept."""
    lightbox.export(net, OUT / f"exported-{name}.pt2", torch.zeros(2, *shape), mean=0.5, std=0.25, **more)
    plain = net
    for module in plain.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    x, found, calls = example(shape).requires_grad_(True), {"input": None}, {}

    def hook(path):
        def keep_it(_, __, out):
            if isinstance(out, torch.Tensor) and path:
                n = calls[path] = calls.get(path, -1) + 1
                # What comes afterwards may add in place: it gets a copy.
                found[path if n == 0 else f"{path}@{n}"] = out
                return out.clone()
        return keep_it

    for path, module in plain.named_modules():
        module.register_forward_hook(hook(path))
    result = plain(x)
    result = result["out"] if isinstance(result, dict) else result
    found["input"] = x
    total = result.select(1, 0).sum()
    grads = torch.autograd.grad(total, list(found.values()), allow_unused=True)
    tensors[f"{name}.logits"] = result.detach()
    for (site, value), grad in zip(found.items(), grads):
        if grad is not None:
            tensors[f"{name}.value.{site}"], tensors[f"{name}.grad.{site}"] = value.detach(), grad
    for module in plain.modules():
        module._forward_hooks.clear()


def trained(name, net, shape):
    """One step of AdamW in training mode: the logits, and all parameters and buffers after it."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    x, y = example(shape, 4, 12), torch.tensor([0, 1, 2, 1])
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    tensors[f"{name}.train.loss"] = loss.detach()
    for key, value in net.state_dict().items():
        tensors[f"{name}.train.{key}"] = value.detach().clone()
    net.eval()


IMAGE = (3, 32, 32)
classes = ["a", "b", "c", "d", "e"]
cnn = fill(Cnn(), 1)
keep("cnn", cnn, IMAGE, classes=classes, activation="sigmoid")
trained("cnn", cnn, IMAGE)
vit = fill(Vit(True), 2)
keep("vit", vit, (3, 24, 32))
spelled = Vit(False).eval()
spelled.load_state_dict(vit.state_dict())
keep("spelled", spelled, (3, 24, 32))
keep("swin", fill(Swin(), 3), IMAGE)
keep("volume", fill(Volume(), 4), (1, 8, 10, 12))
keep("segment", fill(Segment(), 5), IMAGE)
save_file({k: v.contiguous().clone() for k, v in tensors.items()}, OUT / "exported.safetensors")

# What must be refused, and as what.
X = torch.zeros(2, 3, 8, 8)
BATCH = ({0: torch.export.Dim("batch", min=1, max=64)},)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


class Cond(Tiny):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: self.fc(v), lambda v: self.fc(-v), (self.conv(x).mean((2, 3)),))


class Autocast(Tiny):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = self.conv(x)
        return self.fc(y.float().mean((2, 3)))


class Two(Tiny):
    def forward(self, x, y):
        return super().forward(x + y)


@library.custom_op("mine::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@double.register_fake
def _(x):
    return torch.empty_like(x)


class Custom(Tiny):
    def forward(self, x):
        return super().forward(double(x))


def without_paths(path):
    """Stack traces name this machine's folders: only a file's name and its last folder are left. TorchScript's are left out."""
    folder = lambda line: re.sub(r'File "[^"]*?([^/"]+/[^/"]+)"', r'File "\1"', line)
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist() if not name.endswith(".debug_pkl")}
        how = {info.filename: info.compress_type for info in old.infolist()}
    for name in files:
        if name.endswith("models/model.json"):
            program = json.loads(files[name])

            def shorten(value):
                if isinstance(value, dict):
                    return {k: folder(v) if k == "stack_trace" and v else shorten(v) for k, v in value.items()}
                return [shorten(v) for v in value] if isinstance(value, list) else value

            files[name] = json.dumps(shorten(program)).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, data in files.items():
            # One date for all, so that the same networks give the same files.
            new.writestr(zipfile.ZipInfo(name), data, how[name])


def refuse(name, net, given=(X,), dynamic=BATCH):
    program = torch.export.export(net, given, dynamic_shapes=dynamic)
    torch.export.save(program, OUT / f"refused-{name}.pt2")


refuse("fixed", Tiny().eval(), dynamic=None)
refuse("training", Tiny().train())
refuse("cond", Cond().eval())
refuse("autocast", Autocast().eval())
refuse("two-inputs", Two().eval(), (X, X), BATCH * 2)
refuse("custom", Custom().eval())
refuse("half", Tiny().eval().bfloat16(), (X.bfloat16(),))
refuse("unsaid", Tiny().eval())
torch.jit.script(Tiny().eval()).save(OUT / "refused-torchscript.pt2")
torch.save(Tiny().state_dict(), OUT / "refused-checkpoint.pt2")
for made in [*OUT.glob("exported-*.pt2"), *OUT.glob("refused-*.pt2")]:
    without_paths(made)
print({k: tuple(v.shape) for k, v in tensors.items() if ".value." not in k and ".grad." not in k and ".train." not in k})
