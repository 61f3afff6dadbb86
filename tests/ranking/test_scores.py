"""score_blocks: a score is that of two embeddings, wherever they lie and whatever else is scored."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dml.ranking import score_blocks
from dml.ranking import scores as module


def embeddings(size, dimension=17, seed=0):
    return normalize(torch.randn(size, dimension, generator=torch.Generator().manual_seed(seed)), dim=1)


def blocks_of(queries, gallery, **options):
    """Rows and a copy of the scores of each block."""
    return [(rows, scores.clone()) for rows, scores in score_blocks(queries, gallery, **options)]


def scores_of(queries, *gallery, **options):
    return torch.cat([scores for _, scores in blocks_of(queries, gallery, **options)])


@pytest.mark.parametrize("num_items", [5, 64, 127, 128, 129, 2047, 2048, 2049, 4097])
@pytest.mark.parametrize("dimension", [1, 3, 17, 64, 129, 255, 513])
def test_duplicates_tie_wherever_they_are(dimension, num_items):
    kind = torch.randint(3, (num_items,), generator=torch.Generator().manual_seed(1))
    asked = torch.arange(131) % 2
    scores = scores_of(embeddings(2, dimension, seed=2)[asked], embeddings(3, dimension)[kind])
    for query in range(2):
        for item in range(3):
            assert len(scores[asked == query][:, kind == item].unique()) <= 1


@pytest.mark.parametrize("cuts", [[1], [64, 65], [700], [2048], [2049, 2100], [0, 1500, 1500]], ids=str)
def test_parts_of_the_gallery_change_no_bit(cuts):
    kind = torch.arange(3000) % 4
    parts = torch.tensor_split(embeddings(4)[kind], cuts)
    scores = scores_of(embeddings(9, seed=1), *parts)
    assert scores.shape == (9, 3000)
    assert torch.equal(scores, scores[:, :4][:, kind])
    assert torch.equal(scores, scores_of(embeddings(9, seed=1), embeddings(4)[kind]))  # nor do parts change a bit


@pytest.mark.parametrize("num_items", [129, 2049])
def test_the_place_of_an_item_or_a_query_changes_no_bit(num_items):
    queries, gallery = embeddings(150, seed=1), embeddings(num_items)
    scores = scores_of(queries, gallery)
    generator = torch.Generator().manual_seed(3)
    rows, columns = torch.randperm(150, generator=generator), torch.randperm(num_items, generator=generator)
    assert torch.equal(scores_of(queries[rows], gallery[columns]), scores[rows][:, columns])


@pytest.mark.parametrize("num_queries", [1, 2, 127, 128, 129, 256, 299])
@pytest.mark.parametrize("block_size", [1, 7, 128, 200, 1000])
def test_neither_other_queries_nor_the_size_of_blocks_change_a_bit(num_queries, block_size):
    queries, gallery = embeddings(300, seed=1), embeddings(210)
    blocks = blocks_of(queries[:num_queries], [gallery], block_size=block_size)
    assert all(len(scores) == rows.stop - rows.start <= block_size for rows, scores in blocks)
    assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == list(range(num_queries))
    assert torch.equal(torch.cat([scores for _, scores in blocks]), scores_of(queries, gallery)[:num_queries])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_tie_duplicates_too(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        scores = scores_of(embeddings(3, 65, seed=1), embeddings(1, 65).expand(2500, -1))
    finally:
        torch.set_num_threads(before)
    assert (scores == scores[:, :1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_gallery_in_a_file_is_that_in_memory(tmp_path, dtype):
    gallery = embeddings(4100).numpy().astype(dtype)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = torch.from_numpy(np.load(tmp_path / "gallery.npy", mmap_mode="c"))
    queries = embeddings(5, seed=1)
    expected = scores_of(queries, torch.from_numpy(gallery).float())
    assert torch.equal(scores_of(queries, mapped), expected)
    assert torch.equal(
        scores_of(queries, mapped[:2050], mapped[2050:]), scores_of(queries, *mapped.float().split(2050))
    )


@pytest.mark.parametrize("block_size", [1, 50, 128, 130])
@pytest.mark.parametrize("processes", [2, 3, 4, 9])
def test_shares_are_a_partition(processes, block_size):
    queries, gallery = embeddings(500, seed=1), embeddings(20)
    whole, seen = scores_of(queries, gallery), []
    for process in range(processes):
        for rows, scores in blocks_of(queries, [gallery], block_size=block_size, share=(process, processes)):
            seen += range(rows.start, rows.stop)
            assert torch.equal(scores, whole[rows])
    assert sorted(seen) == list(range(500))


@pytest.mark.parametrize("most", [1, 299, 300, 1000, 45_000])
def test_a_gallery_too_large_for_a_block_makes_smaller_blocks(monkeypatch, most):
    queries, gallery = embeddings(140, seed=1), embeddings(300)
    expected = scores_of(queries, gallery)
    monkeypatch.setattr(module, "_MAX_SCORES", most)
    blocks = blocks_of(queries, [gallery], block_size=100)
    assert all(len(scores) <= max(1, most // 300) for _, scores in blocks)
    assert torch.equal(torch.cat([scores for _, scores in blocks]), expected)
    shared = [blocks_of(queries, [gallery], block_size=100, share=(process, 3)) for process in range(3)]
    assert sorted(row for each in shared for rows, _ in each for row in range(rows.start, rows.stop)) == [*range(140)]


def test_a_block_is_overwritten_by_the_next():
    """As the docstring warns: no memory grows with the number of blocks."""
    kept = [scores for _, scores in score_blocks(embeddings(1024), [embeddings(10)], block_size=512)]
    assert kept[0].data_ptr() == kept[1].data_ptr()


@pytest.mark.parametrize(("num_queries", "sizes"), [(0, [5]), (3, [0]), (3, []), (3, [0, 4, 0]), (0, [])], ids=str)
def test_nothing_to_score(num_queries, sizes):
    blocks = blocks_of(embeddings(num_queries), [embeddings(size, seed=1) for size in sizes])
    assert sum(len(scores) for _, scores in blocks) == num_queries
    assert all(scores.shape[1] == sum(sizes) for _, scores in blocks)


def test_float64_is_exact_to_its_last_digits():
    queries, gallery = embeddings(4, 300, seed=1), embeddings(100, 300)
    scores = scores_of(queries, gallery, precision="float64")
    assert scores.dtype == torch.float64
    expected = queries.double() @ gallery.double().T
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-15)
    assert not torch.equal(scores.float().double(), scores)
    torch.testing.assert_close(scores_of(queries, gallery).double(), expected, rtol=0, atol=1e-6)


def test_bfloat16_rounds_scores():
    queries, gallery = embeddings(4, 64, seed=1), embeddings(100, 64)
    scores, exact = scores_of(queries, gallery, precision="bfloat16"), scores_of(queries, gallery)
    assert scores.dtype == torch.float32
    assert torch.equal(scores.bfloat16().float(), scores)
    assert 1e-4 < (scores - exact).abs().max() < 1e-2


@pytest.mark.parametrize("around", ["highest", "high", "medium"])
@pytest.mark.parametrize(("precision", "expected"), [("float32", "highest"), ("tf32", "high"), ("float64", "highest")])
def test_the_precision_of_products_is_the_one_asked_for(monkeypatch, around, precision, expected):
    seen, multiply = [], torch.mm

    def spy(*matrices, out):
        seen.append(torch.get_float32_matmul_precision())
        return multiply(*matrices, out=out)

    monkeypatch.setattr(torch, "mm", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(around)
    try:
        for _ in score_blocks(embeddings(600), [embeddings(10)], precision=precision):
            assert torch.get_float32_matmul_precision() == around  # also between the blocks
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [expected, expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_bit(dtype):
    queries, gallery = embeddings(4, 64, seed=1), embeddings(100, 64)
    with torch.autocast("cpu", dtype=dtype):
        scores = scores_of(queries, gallery)
    assert torch.equal(scores, scores_of(queries, gallery))


def test_there_is_no_gradient_and_arguments_stay_as_they_are():
    queries, gallery = embeddings(4).requires_grad_(), embeddings(9).requires_grad_()
    copies = queries.detach().clone(), gallery.detach().clone()
    assert not scores_of(queries, gallery).requires_grad
    assert torch.equal(queries, copies[0])
    assert torch.equal(gallery, copies[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named(value):
    broken = embeddings(2500)
    broken[2101, 3] = broken[2302, 16] = value
    with pytest.raises(ValueError, match=r"queries .*not finite, 2 .*\[2101, 2302\]"):
        scores_of(broken, embeddings(3))
    with pytest.raises(ValueError, match=r"gallery .*not finite, 2 .*\[2101, 2302\]"):
        scores_of(embeddings(3), broken)
    with pytest.raises(ValueError, match=r"gallery .*not finite, 2 .*\[2401, 2602\]"):  # rows of the whole gallery
        scores_of(embeddings(3), embeddings(300), broken)


def test_both_infinities_are_named_though_they_cancel():
    broken = embeddings(6)
    broken[1, 0], broken[4, 0] = torch.inf, -torch.inf
    with pytest.raises(ValueError, match=r"\[1, 4\]"):
        scores_of(broken, embeddings(3))


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 3e38), (torch.float16, 6e4)])
def test_large_numbers_are_finite_though_their_sum_is_not(dtype, value):
    gallery = torch.full((50, 2), value, dtype=dtype)
    scores = scores_of(torch.tensor([[1e-38, 0.0]]), gallery)
    assert (scores == scores[0, 0]).all()
    assert scores[0, 0].isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size is 0"),
        ({"precision": "float16"}, "precision is 'float16'.*float32"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        scores_of(embeddings(3), embeddings(3), **options)


@pytest.mark.parametrize(
    "gallery", [torch.ones(4, 16), torch.ones(17), torch.ones(1, 4, 17)], ids=lambda g: str(g.ndim)
)
def test_a_gallery_of_another_shape_is_refused(gallery):
    with pytest.raises(ValueError, match="gallery has shape"):
        scores_of(embeddings(3), embeddings(3), gallery)
