"""The command `lightbox` of the wheel: the program inside it, which runs plugins in Python in this interpreter unless another is named."""

import importlib.util
import os
import sys


def main():
    found = importlib.util.find_spec("lightbox")
    binary = os.path.join(os.path.dirname(found.origin), "bin", "lightbox")
    os.environ.setdefault("LIGHTBOX_PYTHON", sys.executable)
    try:
        os.execv(binary, [binary, *sys.argv[1:]])
    except OSError as e:
        sys.exit(f"error: {binary}: {e.strerror} (hint: install the wheel of lightbox-saliency; in the project build it by `cargo xtask wheel`)")


if __name__ == "__main__":
    main()
