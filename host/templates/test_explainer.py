"""`python -m pytest` or `python FILE`, with the module lightbox on the path."""

import numpy as np
from FUNCTION import FUNCTION

from lightbox.testing import explain


def test_a_model_that_reads_one_corner_has_its_map_there():
    def logits(images):
        corner = images[:, :, :4, :4].sum((1, 2, 3))
        return np.stack([-corner, corner], 1)

    maps = explain(FUNCTION, np.ones((2, 3, 16, 16)), classes=[1, 0], logits=logits, cells=4)
    assert maps.shape == (2, 4, 4)
    assert maps[0, 0, 0] > 0 and maps[1, 0, 0] < 0
    assert np.abs(maps).sum() == np.abs(maps[:, 0, 0]).sum()


if __name__ == "__main__":
    test_a_model_that_reads_one_corner_has_its_map_there()
    print("1 test passed")
