"""What kernels are launched with: every row and column has its warps, no block is too large."""

from pathlib import Path

import pytest

from ggrun.devices.cuda.matvec import WARP, experts_shape, matvec_defines, matvec_shape, width_for
from tools.cuda_variants import variants


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0"])
@pytest.mark.parametrize("multiprocessors", [1, 30, 132])
@pytest.mark.parametrize("matrices", [1, 2])
@pytest.mark.parametrize("columns", [0, 1, 2, 3, 8, 9, 513])
@pytest.mark.parametrize(("rows", "k"), [(1, 32), (1, 1 << 20), (7, 4096), (4096, 14336), (128256, 8192)])
def test_matvec(name: str, rows: int, k: int, columns: int, matrices: int, multiprocessors: int) -> None:
    (teams, times), (lanes, split, together) = matvec_shape(name, rows, k, columns, multiprocessors, matrices)
    of_team = int(matvec_defines(name, columns)["ROWS"]) // matrices
    assert teams * together * of_team >= rows
    assert (teams - 1) * together * of_team < rows
    assert times * width_for(columns) >= columns
    assert times >= 1
    assert lanes == WARP
    assert split * together <= 8


def test_few_rows_are_shared_and_many_are_not() -> None:
    assert matvec_shape("Q8_0", 64, 16384, 1, 132).block[1] == 8
    assert matvec_shape("Q8_0", 128256, 8192, 1, 132).block[1] == 1
    assert matvec_shape("Q8_0", 64, 2048, 1, 132).block[1] == 1  # one stretch


def test_pairs_are_blocks_of_their_own() -> None:
    assert experts_shape("Q4_K", 768, 2048, 8, 132).grid[1] == 8
    assert experts_shape("Q4_K", 768, 2048, 0, 132).grid[1] == 1


def test_formats_bring_their_code_books(tmp_path: Path) -> None:
    path = tmp_path / "kernel.cu"
    path.write_text("// variants: FORMAT=Q4_K|IQ1_M|IQ3_S\n")
    plain, of_eights, of_fours = variants(path)
    assert plain == {"FORMAT": "Q4_K"}
    assert len(of_eights["CODE_BOOK"].split(",")) == 2 * 2048
    assert len(of_fours["CODE_BOOK"].split(",")) == 512
