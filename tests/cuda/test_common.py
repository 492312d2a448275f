"""kernels/cuda/common.cuh: sums and maxima."""

from pathlib import Path

import numpy as np
import pytest

from tests.cuda.conftest import Card

SUMS = str(Path(__file__).parent / "sums.cu")


@pytest.mark.parametrize("k", [1, 100, 513])
def test_sums_and_maxima_of_a_block(card: Card, k: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, k)).astype(np.float32)
    total, most = card.zeros(3, np.float32), card.zeros(3, np.float32)
    card.run(SUMS, "sums", 3, 128, [card.array(x), total, most, np.int32(k)])
    np.testing.assert_allclose(card.read(total), x.sum(1, dtype=np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(card.read(most), x.max(1))
