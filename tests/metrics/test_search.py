"""What Search ranks by: distractors in a file, embeddings on the host, stages and another ranking."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dml.metrics import HierarchicalMetrics, ReidentificationMetrics, RetrievalMetrics, Search
from dml.stages import DatabaseAugmentation, KReciprocal, QueryExpansion, Reranker, Stage

SIZE = 60


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randint(9, (SIZE,), generator=generator)
    embeddings = torch.randn(9, 8, generator=generator)[fine] + torch.randn(SIZE, 8, generator=generator)
    return normalize(embeddings, dim=1), torch.stack([fine, fine % 3], dim=1), torch.arange(100, 100 + SIZE)


def roles():
    """A third of the images queries, some of the gallery too."""
    return torch.arange(SIZE) % 3 == 0, torch.arange(SIZE) % 5 > 0


def distractors(number=40):
    return normalize(torch.randn(number, 8, generator=torch.Generator().manual_seed(9)), dim=1)


@pytest.fixture
def saved(tmp_path):
    np.save(tmp_path / "distractors.npy", distractors().numpy())
    return str(tmp_path / "distractors.npy")


def values_of(search, *roles, kind=RetrievalMetrics, items=None, **options):
    metrics = kind(recall_at=(1, 2), search=search, **options)
    metrics.update(*(items or batch()), *roles)
    return {name: value.item() for name, value in metrics.compute().items()}


class Spy(Stage):
    """Reverses the dimensions, which changes no score, and remembers what it saw."""

    def __call__(self, queries, gallery, own):
        self.queries, self.gallery, self.own = queries.clone(), gallery.clone(), own.clone()
        return queries.flip(1), gallery.flip(1)


class Farthest(Reranker):
    """The inner product, negated: the last shall be first."""

    def prepare(self, queries, gallery, own):
        self.shapes = queries.shape, gallery.shape, own.shape
        return lambda rows: -(queries[rows] @ gallery.T)


@pytest.mark.parametrize("kind", [RetrievalMetrics, HierarchicalMetrics])
@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "expected"])
def test_distractors_are_items_of_classes_of_their_own(saved, kind, ties):
    embeddings, labels, index = batch()
    alone = torch.arange(1000, 1040)
    more = (
        torch.cat([embeddings, distractors()]),
        torch.cat([labels, alone[:, None].repeat(1, 2)]),
        torch.cat([index, alone]),
    )
    asked = (torch.cat([roles()[0], torch.zeros(40).bool()]), torch.cat([roles()[1], torch.ones(40).bool()]))
    expected = values_of(Search(ties=ties), *asked, kind=kind, items=more)
    actual = values_of(Search(ties=ties, distractors=saved), *roles(), kind=kind)
    assert actual == pytest.approx(expected, abs=1e-6)
    assert actual["AP"] < values_of(Search(ties=ties), *roles(), kind=kind)["AP"]


def test_distractors_tie_with_what_they_are_a_copy_of(tmp_path):
    embeddings, labels, index = batch()
    np.save(tmp_path / "copies.npy", embeddings.numpy())
    values = values_of(Search(distractors=str(tmp_path / "copies.npy")), items=(embeddings, labels, index))
    assert values["R@1"] == 0  # before each item, its copy; and before all, the query's
    best = values_of(Search(ties="optimistic", distractors=str(tmp_path / "copies.npy")))
    assert best["R@2"] == values_of(Search(ties="optimistic"))["R@1"]


def test_distractors_are_in_each_gallery_of_re_identification(saved):
    assert (
        values_of(Search(distractors=saved), kind=ReidentificationMetrics)["reid_AP"]
        < values_of(Search(), kind=ReidentificationMetrics)["reid_AP"]
    )


def test_distractors_of_half_precision_are_what_they_are_in_full(tmp_path):
    half = distractors().half()
    for name, rows in (("half", half), ("full", half.float())):
        np.save(tmp_path / f"{name}.npy", rows.numpy())
    half, full = (values_of(Search(distractors=str(tmp_path / f"{name}.npy"))) for name in ("half", "full"))
    assert half == full


@pytest.mark.parametrize("stages", [(QueryExpansion(k=3),), (DatabaseAugmentation(k=4), QueryExpansion(k=2))], ids=len)
def test_stages_see_distractors(saved, stages):
    alone = values_of(Search(stages=stages), *roles())
    assert values_of(Search(stages=stages, distractors=saved), *roles()) != alone
    spy = Spy()
    values_of(Search(stages=(spy,), distractors=saved), *roles())
    assert torch.equal(spy.gallery, torch.cat([batch()[0][roles()[1]], distractors()]))


def broken_files():
    rows = np.ones((3, 8), np.float32)
    yield "no numbers", lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True), "cannot be read"
    yield "a pickle", lambda path: path.write_bytes(pickle.dumps([rows])), "cannot be read"
    yield "no npy", lambda path: path.write_text("x,y\n1,2\n"), "cannot be read"
    yield "an empty file", lambda path: path.write_bytes(b""), "cannot be read"
    yield "an archive", lambda path: np.savez(path.open("wb"), rows=rows), "distractors is"
    yield "float64", lambda path: np.save(path, rows.astype(float)), "float64 of shape.*must be float32 or float16"
    yield "integers", lambda path: np.save(path, rows.astype(int)), "must be float32 or float16"
    yield "other bytes", lambda path: np.save(path, rows.astype(">f4")), "must be float32 or float16"
    yield "one row", lambda path: np.save(path, rows[0]), r"shape \[8\]"
    yield "columns", lambda path: np.save(path, np.asfortranarray(rows)), "row order"
    yield "nothing", lambda path: None, "is no file"


@pytest.mark.parametrize(
    ("write", "message"), [case[1:] for case in broken_files()], ids=[case[0] for case in broken_files()]
)
def test_distractors_that_are_no_rows_are_refused(tmp_path, write, message):
    write(tmp_path / "distractors.npy")
    with pytest.raises(ValueError, match=message):
        Search(distractors=str(tmp_path / "distractors.npy"))


@pytest.mark.parametrize("stages", [(), (QueryExpansion(k=3),)], ids=["alone", "with a stage"])
def test_distractors_of_another_dimension_are_refused(tmp_path, stages):
    np.save(tmp_path / "distractors.npy", np.ones((3, 9), np.float32))
    with pytest.raises(ValueError, match=r"\[3, 9\]"):
        values_of(Search(distractors=str(tmp_path / "distractors.npy"), stages=stages))


def test_distractors_that_are_not_finite_are_refused(tmp_path):
    rows = distractors().numpy()
    rows[7, 2] = np.nan
    np.save(tmp_path / "distractors.npy", rows)
    with pytest.raises(ValueError, match=rf"not finite, 1 .*\[{SIZE + 7}\]"):
        values_of(Search(distractors=str(tmp_path / "distractors.npy")))


@pytest.mark.parametrize("kind", [RetrievalMetrics, HierarchicalMetrics, ReidentificationMetrics])
def test_keeping_embeddings_on_the_host_changes_no_bit(kind):
    assert values_of(Search(keep_on="cpu"), *roles(), kind=kind) == values_of(Search(), *roles(), kind=kind)


def test_float64_tells_apart_what_float32_ties():
    embeddings = torch.tensor([[1.0, 1e-5], [1.0, 1e-4], [1.0, 1.1e-4]])  # the third is nearer to the first by 1e-10
    asked = torch.tensor([True, False, False]), torch.ones(3).bool()
    for labels, expected in (([0, 1, 0], 1), ([0, 0, 1], 0)):
        items = embeddings, torch.tensor(labels), torch.arange(3)
        assert values_of(Search(precision="float64"), *asked, items=items)["R@1"] == expected
        assert values_of(Search(), *asked, items=items)["R@1"] == 0
        assert values_of(Search(ties="optimistic"), *asked, items=items)["R@1"] == 1


def test_a_stage_is_told_which_item_each_query_is():
    spy = Spy()
    expected = values_of(Search(), *roles())
    assert values_of(Search(stages=(spy,)), *roles()) == pytest.approx(expected, abs=1e-6)
    is_query, is_gallery = roles()
    assert torch.equal(spy.queries, batch()[0][is_query])
    assert torch.equal(spy.gallery, batch()[0][is_gallery])
    assert torch.equal(spy.own >= 0, is_gallery[is_query])
    both = spy.own >= 0
    assert torch.equal(spy.gallery[spy.own[both]], spy.queries[both])


def test_stages_come_one_after_the_other():
    first, second = Spy(), Spy()
    values_of(Search(stages=(first, second)), *roles())
    assert torch.equal(second.queries, first.queries.flip(1))
    assert torch.equal(second.gallery, first.gallery.flip(1))
    assert torch.equal(second.own, first.own)


@pytest.mark.parametrize("block_size", [None, 1, 7, 1024])
def test_another_ranking_takes_the_place_of_inner_products(block_size):
    reranker = Farthest()
    values = values_of(Search(reranker=reranker), *roles(), block_size=block_size)
    embeddings, labels, _ = batch()
    scores = -(embeddings @ embeddings.T)
    scores[:, ~roles()[1]] = -torch.inf
    scores.fill_diagonal_(-torch.inf)
    first = labels[scores.argmax(dim=1), 0] == labels[:, 0]
    relevant = (labels[:, 0, None] == labels[:, 0]) & (scores > -torch.inf)
    asked = roles()[0] & relevant.any(dim=1)
    assert values["R@1"] == pytest.approx(first[asked].float().mean().item())
    assert reranker.shapes == ((20, 8), (48, 8), (20,))


def test_seconds_are_those_of_the_last_evaluation():
    search = Search(stages=(Spy(), QueryExpansion(k=2)), reranker=KReciprocal(k1=5, k2=2))
    values_of(search, *roles())
    first = search.seconds.copy()
    assert list(first) == ["1. Spy", "2. QueryExpansion", "KReciprocal"]
    assert all(0 <= spent < 10 for spent in first.values())
    values_of(search, *roles())
    assert list(search.seconds) == list(first)
    values_of(Search(), *roles())
    assert Search().seconds == {}


def test_a_search_can_be_copied_and_sent(saved):
    search = Search(distractors=saved, ties="expected", stages=(QueryExpansion(k=2),))
    expected = values_of(search)
    for twin in (copy.deepcopy(search), pickle.loads(pickle.dumps(search))):
        assert values_of(twin) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ties": "average"}, "ties is 'average'.*expected"),
        ({"precision": "half"}, "precision is 'half'.*tf32"),
        ({"keep_on": "gpu"}, "keep_on is 'gpu'.*cpu"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Search(**options)
