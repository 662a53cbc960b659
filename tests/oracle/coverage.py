"""How often nominal 95 % intervals hold the truth: the study behind the intervals of docs/results.md.

    python tests/oracle/coverage.py [DRAWS]

Test sets are drawn from laws whose mean (or AUROC) is known, and each interval is computed as it is defined; nothing of the
project is used. Printed in percent, with a standard error of at most 100 sqrt(0.05 * 0.95 / DRAWS) where coverage is nominal.
"""

import sys

import numpy as np
from scipy.stats import norm, rankdata, t as student

DRAWS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
RESAMPLES = 1000
rng = np.random.default_rng(20261128)


# ---- means ----------------------------------------------------------------------------------------------------------

def percentile(x, counts):
    means = counts @ x / len(x)
    return np.quantile(means, [0.025, 0.975])


def bca(x, counts):
    n, m = len(x), x.mean()
    means = counts @ x / n
    below = (np.mean(means < m) + np.mean(means <= m)) / 2
    if not 0 < below < 1:
        return m, m
    z0 = norm.ppf(below)
    d = (x.sum() - x) / (n - 1)
    d = d.mean() - d
    if not d.any():
        return m, m
    a = (d**3).sum() / (6 * ((d**2).sum()) ** 1.5)
    z = norm.ppf([0.025, 0.975])
    at = np.nan_to_num(norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))), nan=0.5)
    return np.quantile(means, np.sort(at))


def bootstrap_t(x, counts):
    n, m = len(x), x.mean()
    means = counts @ x / n
    var = (counts @ x**2 / n - means**2) / (n - 1)
    se = x.std(ddof=1) / np.sqrt(n)
    if se == 0:
        return m, m
    ok = var > 1e-3 * se**2
    t = (means[ok] - m) / np.sqrt(var[ok])
    lo, hi = np.quantile(t, [0.025, 0.975])
    return m - hi * se, m - lo * se


def t_interval(x, counts):
    half = student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return x.mean() - half, x.mean() + half


def score(m, var, n, df):
    """Wilson's score interval with the sample size that the variance of the mean is worth."""
    q = m * (1 - m)
    worth = q / var if var > 0 and q > 0 else n
    c = student.ppf(0.975, df)
    z = c * c / worth
    centre = (m + z / 2) / (1 + z)
    half = np.sqrt(z * (q + z / 4)) / (1 + z)
    return centre - half, centre + half


def score_t(x, counts):
    return score(x.mean(), x.var(ddof=1) / len(x), len(x), len(x) - 1)


def hall(x, counts):
    """Student's t with Hall's monotone correction for skewness (JRSS B 1992)."""
    n, m, s = len(x), x.mean(), x.std(ddof=1)
    if s == 0:
        return m, m
    k = ((x - m) ** 3).mean() / x.std() ** 3 / np.sqrt(n)

    def back(t):
        return t if abs(k) < 1e-9 else 3 / k * (np.cbrt(1 + k * (t - k / 6)) - 1)

    c = student.ppf(0.975, n - 1)
    return m - back(c) * s / np.sqrt(n), m - back(-c) * s / np.sqrt(n)


def chosen(x, counts, low=0.0, high=1.0):
    """What the project does: Hall's within the range; the score interval where values are hits and misses or nearly so."""
    m, n = x.mean(), len(x)
    if x.var() >= 0.8 * m * (1 - m) or x.min() == x.max():
        return score(m, x.var(ddof=1) / n, n, n - 1)
    lo, hi = hall(x, counts)
    return max(lo, low), min(hi, high)


LAWS = {
    "beta(.6,2.4)": (0.2, lambda n: rng.beta(0.6, 2.4, n)),
    "beta(2,2)": (0.5, lambda n: rng.beta(2, 2, n)),
    "beta(5,.5)": (5 / 5.5, lambda n: rng.beta(5, 0.5, n)),
    "hits .2": (0.2, lambda n: (rng.random(n) < 0.2) * 1.0),
    "hits .5": (0.5, lambda n: (rng.random(n) < 0.5) * 1.0),
    "hits .9": (0.9, lambda n: (rng.random(n) < 0.9) * 1.0),
    "hits, ties": (0.855, lambda n: np.where(rng.random(n) < 0.9, np.where(rng.random(n) < 0.1, rng.random(n), 1.0), 0.0)),
    "80 % zeros": (0.1, lambda n: (rng.random(n) < 0.2) * rng.beta(2, 2, n)),
    "exp": (1.0, lambda n: rng.exponential(1, n)),
    "normal": (0.0, lambda n: rng.normal(0, 1, n)),
}
OPEN = ("exp", "normal")
MEANS = {
    "percentile": percentile,
    "BCa": bca,
    "bootstrap-t": bootstrap_t,
    "t": t_interval,
    "score-t": score_t,
    "Hall": hall,
    "chosen": chosen,
}


def means():
    for name, (truth, draw) in LAWS.items():
        for n in (6, 8, 11, 20, 50, 100):
            held, width = {k: 0 for k in MEANS}, {k: 0.0 for k in MEANS}
            for _ in range(DRAWS):
                x = draw(n)
                counts = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
                for k, f in MEANS.items():
                    # A value without a bound has no score interval, and Hall's is chosen.
                    if name in OPEN:
                        f = {"score-t": None, "chosen": hall}.get(k, f)
                    if f is None:
                        continue
                    lo, hi = f(x, counts)
                    held[k] += lo <= truth + 1e-12 and truth <= hi + 1e-12
                    width[k] += hi - lo
            shown = [k for k in MEANS if not (name in OPEN and k == "score-t")]
            row = "  ".join(f"{k} {100 * held[k] / DRAWS:5.1f} ({width[k] / DRAWS:.2f})" for k in shown)
            print(f"{name:13} n={n:3}  {row}", flush=True)


# ---- AUROC ----------------------------------------------------------------------------------------------------------

def placements(pos, neg):
    """The AUROC, and DeLong's variance of it (Biometrics 1988)."""
    m, n = len(pos), len(neg)
    order = rankdata(np.concatenate([pos, neg]))
    v10 = (order[:m] - rankdata(pos)) / n
    v01 = 1 - (order[m:] - rankdata(neg)) / m
    return v10.mean(), v10.var(ddof=1) / m + v01.var(ddof=1) / n


def hanley(a, m, n):
    """Hanley and McNeil's variance with Newcombe's one N for both (Statistics in Medicine 2006, method 5)."""
    both = (m + n) / 2 - 1
    return a * (1 - a) / (m * n) * (1 + both * (1 - a) / (2 - a) + both * a / (1 + a))


def newcombe(a, m, n, design=1.0, c=norm.ppf(0.975)):
    """The AUROCs that a score test with that variance does not reject."""
    def end(inside, outside):
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(a - middle) <= c * np.sqrt(design * hanley(middle, m, n)):
                inside = middle
            else:
                outside = middle
        return inside
    return end(a, 0.0), end(a, 1.0)


def of_percentile(pos, neg):
    m, n = len(pos), len(neg)
    greater = (pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)
    a = rng.multinomial(m, np.full(m, 1 / m), RESAMPLES) @ greater / m
    means = (a * rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)).sum(1) / n
    return np.quantile(means, [0.025, 0.975])


def of_logit(pos, neg):
    a, v = placements(pos, neg)
    if v == 0 or not 0 < a < 1:
        return a, a
    half = norm.ppf(0.975) * np.sqrt(v) / (a * (1 - a))
    ends = np.log(a / (1 - a)) + np.array([-half, half])
    return 1 / (1 + np.exp(-ends))


def of_score(pos, neg):
    a, v = placements(pos, neg)
    least = min(len(pos), len(neg))
    return score(a, v, least, 2 * least - 2)


def of_newcombe(pos, neg):
    return newcombe(placements(pos, neg)[0], len(pos), len(neg))


def of_chosen(pos, neg):
    """Newcombe's, widened where DeLong's variance is the greater."""
    a, v = placements(pos, neg)
    h = hanley(a, len(pos), len(neg))
    return newcombe(a, len(pos), len(neg), max(1.0, v / h) if h > 0 else 1.0)


AUROCS = {"percentile": of_percentile, "logit DeLong": of_logit, "score-t": of_score, "Newcombe": of_newcombe, "chosen": of_chosen}


def aurocs():
    laws = {}
    for truth in (0.6, 0.76, 0.9, 0.96, 0.99):
        shift = np.sqrt(2) * norm.ppf(truth)
        laws[f"normal {truth}"] = (truth, lambda m, n, s=shift: (rng.normal(s, 1, m), rng.normal(0, 1, n)))
    # Unequal spread: sigma 2 of the positives.
    shift = np.sqrt(5) * norm.ppf(0.9)
    laws["spread 0.9"] = (0.9, lambda m, n: (rng.normal(shift, 2, m), rng.normal(0, 1, n)))
    for name, (truth, draw) in laws.items():
        for m, n in ((6, 6), (11, 11), (11, 40), (20, 20), (50, 50), (100, 100)):
            held, width = {k: 0 for k in AUROCS}, {k: 0.0 for k in AUROCS}
            for _ in range(DRAWS):
                pos, neg = draw(m, n)
                for k, f in AUROCS.items():
                    lo, hi = f(pos, neg)
                    held[k] += lo <= truth <= hi
                    width[k] += hi - lo
            row = "  ".join(f"{k} {100 * held[k] / DRAWS:5.1f} ({width[k] / DRAWS:.2f})" for k in AUROCS)
            print(f"AUROC {name:11} {m:3} + {n:3}  {row}", flush=True)


# ---- average precision ----------------------------------------------------------------------------------------------

def precision(scores, labels):
    order = np.argsort(-scores, kind="stable")
    hits = labels[order]
    return (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits == 1].mean()


def auprcs():
    for auc, share in ((0.76, 0.5), (0.9, 0.5), (0.96, 0.5), (0.9, 0.1)):
        shift = np.sqrt(2) * norm.ppf(auc)
        draw = lambda m, n: (np.concatenate([rng.normal(shift, 1, m), rng.normal(0, 1, n)]), np.r_[np.ones(m), np.zeros(n)])
        for m in (11, 20, 50, 100):
            n = round(m * (1 - share) / share)
            # The mean over test sets of this size: what the interval is about.
            truth = np.mean([precision(*draw(m, n)) for _ in range(4000)])
            held, width = 0, 0.0
            for _ in range(min(DRAWS, 500)):
                scores, labels = draw(m, n)
                value = precision(scores, labels)
                keep = ~np.eye(m + n, dtype=bool)
                without = np.array([precision(scores[k], labels[k]) for k in keep])
                parts = (without[:m], without[m:])
                var = sum((len(p) - 1) / len(p) * ((p - p.mean()) ** 2).sum() for p in parts)
                lo, hi = score(value, var, min(m, n), min(m, n) - 1)
                held += lo <= truth <= hi
                width += hi - lo
            k = min(DRAWS, 500)
            print(f"AUPRC (AUROC {auc}) {m:3} + {n:3}  score with the jackknife's variance {100 * held / k:5.1f} ({width / k:.2f})", flush=True)


for name, study in (("means", means), ("auroc", aurocs), ("auprc", auprcs)):
    if len(sys.argv) < 3 or sys.argv[2] == name:
        study()
