"""What the recomputations of runs share: comparing numbers, convolutions, pooling, upsampling and masks. NumPy alone."""

import sys

import numpy as np

faults, compared = [], 0


def same(what, found, wanted, tolerance):
    """Absolute for numbers up to 1, relative above."""
    global compared
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        faults.append(f"{what}: shape {found.shape}, recomputed {wanted.shape}")
        return
    compared += max(found.size, 1)
    error = np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))
    if not np.all(error <= tolerance):
        worst = np.unravel_index(np.nanargmax(np.where(np.isnan(error), np.inf, error)), error.shape)
        faults.append(f"{what}: {found[worst]} stored, {wanted[worst]} recomputed")


def end(more=""):
    """Says how much was compared and the first faults; ends with 1 where there are some."""
    print(f"{compared} numbers compared, {len(faults)} differ{more}")
    for fault in faults[:12]:
        print(fault)
    sys.exit(bool(faults))


def conv(x, weight, stride=1, padding=0):
    """A convolution of [n, c, h, w], square."""
    n, c, h, w = x.shape
    out, _, k, _ = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))[:, :, ::stride, ::stride]
    rows, columns = windows.shape[2:4]
    patches = windows.transpose(1, 4, 5, 0, 2, 3).reshape(c * k * k, -1)
    return (weight.reshape(out, -1) @ patches).reshape(out, n, rows, columns).transpose(1, 0, 2, 3)


def pool(x, k, stride, padding, reduce):
    fill = -np.inf if reduce is np.max else 0.0
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=fill)
    return reduce(np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))[:, :, ::stride, ::stride], axis=(4, 5))


def upsample(m, side):
    """Bilinear, align_corners = False, float32, as a + (b - a) f."""
    h, w = m.shape

    def taps(n):
        at = np.maximum((np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(n / side) - np.float32(0.5), 0)
        low = np.minimum(at.astype(int), n - 1)
        return low, np.minimum(low + 1, n - 1), at - low.astype(np.float32)

    (y0, y1, fy), (x0, x1, fx) = taps(h), taps(w)
    m = m.astype(np.float32)
    rows = lambda y: m[y][:, x0] + (m[y][:, x1] - m[y][:, x0]) * fx
    top, bottom = rows(y0), rows(y1)
    return top + (bottom - top) * fy[:, None]


def ellipse(side, width, height, box):
    """A mask [side, side] of the pixels whose centre lies in the ellipse inscribed in the scaled box; else the pixel of its centre."""
    x, y, w, h = box
    sx, sy = side / width, side / height
    rx, ry, cx, cy = w * sx / 2, h * sy / 2, (x + w / 2) * sx, (y + h / 2) * sy
    yy, xx = np.mgrid[:side, :side] + 0.5
    inside = ((xx - cx) / rx) ** 2 + ((yy - cy) / ry) ** 2 <= 1
    if not inside.any() and 0 <= cx < side and 0 <= cy < side:
        inside[int(cy), int(cx)] = True
    return inside
