"""Blocks of rows: all of them, once, none small, and products by them bit-equal to the whole one."""

from __future__ import annotations

import math

import pytest
import torch

from peftctl.merge.weights import BLOCK, blocks


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 127, 128, 1000, 4096, 14336, 128_257])
@pytest.mark.parametrize("row_bytes", [4, 4096, 57_344, 3 * BLOCK])
def test_every_row_is_in_one_block_and_none_is_small(rows: int, row_bytes: int) -> None:
    cuts = list(blocks(rows, row_bytes))
    assert [row for cut in cuts for row in range(cut.start, cut.stop)] == list(range(rows))
    assert all(cut.stop - cut.start >= min(rows, 64) for cut in cuts)
    assert all((cut.stop - cut.start) * row_bytes <= max(2 * BLOCK + 64 * row_bytes, 128 * row_bytes) for cut in cuts)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape", [(33, 65), (200, 96), (576, 1536), (1000, 777), (1536, 576), (4100, 2048), (512, 8192)], ids=str
)
def test_a_product_by_blocks_has_the_bits_of_the_whole_one(shape: tuple[int, int], threads: int) -> None:
    outputs, inputs = shape
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for rank in (1, 4, 7, 16, 64):
        down, up = torch.randn(rank, inputs), torch.randn(outputs, rank) / 50
        whole = up @ down
        for row_bytes in (4 * inputs, BLOCK // 64, BLOCK):  # as they come, many blocks, blocks of the least size
            assert all(torch.equal(up[cut] @ down, whole[cut]) for cut in blocks(outputs, row_bytes)), (rank, row_bytes)


def test_a_power_of_two_scales_without_rounding() -> None:
    torch.manual_seed(0)
    down, up = torch.randn(16, 300), torch.randn(500, 16)
    for scale in (0.25, 1.0, 2.0, 8.0):
        assert math.frexp(scale)[0] == 0.5
        assert torch.equal((up * scale) @ down, (up @ down) * scale)
