"""What peers say of metrics and statistics, for tests/tests/metrics.rs: writes golden/metrics.safetensors.

    pip install -r tests/oracle/metrics-requirements.txt
    python tests/oracle/metrics.py tests/oracle/golden/metrics.safetensors

Quantus 0.6.0 for what it is right in (maps without ties, no normalising), Captum 0.9.0, pytorch-grad-cam 1.5.7,
scikit-learn, scikit-image, SciPy. What Lightbox defines otherwise is compared on what both define.
"""

import sys
import warnings

import numpy as np

if not hasattr(np, "trapz"):  # Quantus 0.6.0 was written for an older NumPy.
    np.trapz = np.trapezoid
if not hasattr(np, "NaN"):
    np.NaN = np.nan

import captum.metrics
import quantus
import scipy.stats
import skimage.filters
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from safetensors.numpy import save_file
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

warnings.filterwarnings("ignore")
rng = np.random.default_rng(7)
out = {}


def keep(name, value, dtype=np.float64):
    out[name] = np.ascontiguousarray(np.asarray(value, dtype=dtype))


# Maps without ties, smooth and rough, positive and signed, and ellipses as masks.
N, SIDE = 12, 24
yy, xx = np.mgrid[:SIDE, :SIDE]
maps, masks = [], []
for i in range(N):
    cy, cx, ry, rx = rng.uniform(6, 18), rng.uniform(6, 18), rng.uniform(2, 5), rng.uniform(2, 5)
    mask = ((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2 <= 1
    oy, ox = cy + rng.normal(0, 3), cx + rng.normal(0, 3)
    bump = np.exp(-((yy - oy) ** 2 + (xx - ox) ** 2) / (2 * rng.uniform(2, 6) ** 2))
    a = bump + rng.uniform(0.02, 0.5) * rng.random((SIDE, SIDE))
    maps.append(a.astype(np.float32))
    masks.append(mask)
maps, masks = np.stack(maps), np.stack(masks)
assert all(len(np.unique(a)) == a.size for a in maps)
keep("maps", maps, np.float32)
keep("masks", masks, np.uint8)


class Dummy(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 2)


x = np.zeros((N, 1, SIDE, SIDE), np.float32)
y = np.zeros(N, int)
common = dict(disable_warnings=True, normalise=False, abs=False, display_progressbar=False)


def peer(metric):
    found = metric(
        model=Dummy(), x_batch=x, y_batch=y, a_batch=maps[:, None].copy(), s_batch=masks[:, None], device="cpu"
    )
    return np.asarray(found, float).ravel()


keep("hit", peer(quantus.PointingGame(**common)))
keep("top-k", peer(quantus.TopKIntersection(k=29, **common)))  # 5 % of 576
keep("relevance-rank", peer(quantus.RelevanceRankAccuracy(**common)))
keep("relevance-mass", peer(quantus.RelevanceMassAccuracy(**common)))
keep("pixel-auroc", peer(quantus.AUC(**common)))
keep("gini", peer(quantus.Sparseness(**common)))
keep("entropy", peer(quantus.Complexity(**common)) / np.log(SIDE * SIDE))

scaled = np.stack([(a - a.min()) / (a.max() - a.min()) for a in maps])
rounded = np.round(scaled * np.float32(65535.0))
keep("pixel-auroc-pooled", [roc_auc_score(masks.ravel(), rounded.ravel())])
otsu = [a > skimage.filters.threshold_otsu(a, nbins=256) for a in maps]
keep("iou-otsu", [jaccard_score(g.ravel(), p.ravel()) for g, p in zip(masks, otsu)])
keep("dice-otsu", [f1_score(g.ravel(), p.ravel()) for g, p in zip(masks, otsu)])
# The first six are for validation: the threshold of the greatest mean Dice, by scikit-learn.
at = lambda a, k: a >= np.float32(k / 10)
dice = [np.mean([f1_score(g.ravel(), at(a, k).ravel()) for a, g in zip(scaled[:6], masks[:6])]) for k in range(1, 10)]
best = int(np.argmax(dice)) + 1
keep("dice", [f1_score(g.ravel(), at(a, best).ravel()) for a, g in zip(scaled[6:], masks[6:])])
keep("iou", [jaccard_score(g.ravel(), at(a, best).ravel()) for a, g in zip(scaled[6:], masks[6:])])

# A small model with interactions: a logit of class 1, scores by the sigmoid; written out again in metrics.rs.
S = 8
weights = rng.normal(0, 0.6, (S, S)).astype(np.float32)
images = rng.normal(0, 1, (4, 1, S, S)).astype(np.float32)
images -= images.mean(axis=(2, 3), keepdims=True)
W = torch.tensor(weights, dtype=torch.float64)


class Small(torch.nn.Module):
    def forward(self, x):
        x = x.double()
        z = torch.tanh(x[:, 0] * W).sum((1, 2)) + 0.05 * (x[:, 0] * W).sum((1, 2)) ** 2
        return torch.stack([torch.zeros_like(z), z], 1)


class Scores(Small):
    def forward(self, x):
        return torch.softmax(super().forward(x), 1)


attributions = (images[:, 0] * weights + 0.1 * rng.normal(0, 1, (4, S, S))).astype(np.float32)
keep("model.weights", weights, np.float32)
keep("model.images", images, np.float32)
keep("model.maps", attributions, np.float32)
ones = np.ones(4, int)

# PixelFlipping gives the scores after each step; the image's own comes first. Eight equal steps, removed pixels 0.
flipping = quantus.PixelFlipping(
    features_in_step=S * S // 8,
    perturb_baseline=0.0,
    return_auc_per_sample=False,
    **common,
)
found = flipping(
    model=Scores().eval(), x_batch=images, y_batch=ones, a_batch=attributions[:, None].copy(), device="cpu", softmax=False
)
curves = np.asarray(found, float)
own = Scores()(torch.tensor(images)).numpy()[:, 1:]
curves = np.concatenate([own, curves], 1)
assert curves.shape == (4, 9)
keep("deletion", np.trapezoid(curves, dx=1 / 8, axis=1))

# Infidelity with its best factor: Captum, handed the squares that Lightbox's formula is given.
K, side = 24, 3
squares = rng.integers(0, S - side + 1, (4, K, 2))
zeroed = np.zeros((4, K, S, S), bool)
for i in range(4):
    for k in range(K):
        r, c = squares[i, k]
        zeroed[i, k, r : r + side, c : c + side] = True


def infidelity(i):
    calls = iter(range(K))

    def perturb(inputs):
        # Captum asks for all samples at once, an image repeated.
        m = torch.tensor(zeroed[i, : len(inputs)])[:, None]
        return m.to(inputs.dtype), torch.where(m, torch.zeros_like(inputs), inputs)

    return captum.metrics.infidelity(
        Small(),
        perturb,
        torch.tensor(images[i : i + 1], dtype=torch.float64),
        torch.tensor(attributions[i : i + 1, None], dtype=torch.float64),
        target=1,
        n_perturb_samples=K,
        max_examples_per_batch=K,
        normalize=True,
    ).item()


keep("infidelity.squares", squares, np.int64)
keep("infidelity", [infidelity(i) for i in range(4)])

# What Lightbox's own sets give: Spearman, Pearson, by SciPy, of lists of values with ties.
lists = np.round(rng.normal(0, 1, (6, 40)), 1)
keep("lists", lists)
keep("spearman", [[scipy.stats.spearmanr(a, b).statistic for b in lists] for a in lists])
keep("pearson", [[scipy.stats.pearsonr(a, b).statistic for b in lists] for a in lists])

# Noisy linear imputation without its noise.
picture = rng.normal(0, 1, (3, 20, 26)).astype(np.float32)
kept = (rng.random((4, 20, 26)) > np.array([0.1, 0.5, 0.9, 0.0])[:, None, None]).astype(np.float32)
kept[3, 5:15, 4:20] = 0
imputer = NoisyLinearImputer(noise=0.0)
keep("imputation.image", picture, np.float32)
keep("imputation.kept", kept, np.uint8)
keep("imputation", [imputer(torch.tensor(picture), torch.tensor(m)).numpy() for m in kept])

# Tests of differences. Some lists tie, some differ by zero, some are short: exact and approximate.
pairs = []
for n, digits in [(9, 6), (12, 1), (40, 6), (50, 6), (51, 6), (120, 2), (200, 1), (30, 0)]:
    a = rng.normal(0, 1, n)
    b = a + rng.normal(0.3, 1, n)
    pairs.append((np.round(a, digits), np.round(b, digits)))
for i, (a, b) in enumerate(pairs):
    d = a - b
    tied = len(np.unique(np.abs(d))) < len(d) or (d == 0).any()
    method = "exact" if len(d) <= 50 and not tied else "asymptotic"
    if tied and len(d) <= 25:
        # All signs: with ties, too, the law of few pairs is counted.
        method = scipy.stats.PermutationMethod(n_resamples=2 ** len(d) + 1)
    test = scipy.stats.wilcoxon(a, b, zero_method="pratt", correction=False, method=method)
    keep(f"wilcoxon.{i}", [a, b])
    keep(f"wilcoxon.{i}.p", [test.pvalue])
groups = np.round(rng.normal(0, 1, (5, 30)) + np.arange(5)[:, None] * 0.25, 1)
test = scipy.stats.friedmanchisquare(*groups)
keep("friedman.values", groups)
keep("friedman", [test.statistic, test.pvalue])
statistic = test.statistic
k, n = groups.shape
f = (n - 1) * statistic / (n * (k - 1) - statistic)
keep("friedman.f", [f, scipy.stats.f.sf(f, k - 1, (k - 1) * (n - 1))])
hits = (rng.random((2, 60)) < np.array([0.7, 0.4])[:, None]).astype(float)
only = [int(((hits[0] == 1) & (hits[1] == 0)).sum()), int(((hits[0] == 0) & (hits[1] == 1)).sum())]
keep("mcnemar.hits", hits)
keep("mcnemar", [scipy.stats.binomtest(only[0], sum(only), 0.5).pvalue])

save_file(out, sys.argv[1])
print(f"{len(out)} tensors: quantus {quantus.__version__}, captum {captum.__version__}, scipy {scipy.__version__}")
