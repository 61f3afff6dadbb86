"""LandmarkMetrics against the official script's answers, and against its method on the worst order of ties."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.metrics import GoogleLandmarkMetrics, LandmarkMetrics
from tests.metrics.conftest import Judged

PARTS = {"E": ("easy",), "M": ("easy", "hard"), "H": ("hard",)}


def metrics_of(kind, scores, rows, **options):
    """Feed a matrix ``[Q, N]``: queries 0 to Q - 1 are unit vectors, so that a score is a number of the item."""
    num_queries, num_items = scores.shape
    metrics = kind(**options)
    metrics.begin(Judged(rows))
    embeddings = torch.cat([torch.eye(num_queries), torch.as_tensor(scores, dtype=torch.float32).T])
    index = torch.arange(num_queries + num_items)
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    is_query = index < num_queries
    for part in order.split(1000):
        metrics.update(embeddings[part], torch.zeros_like(part), part, is_query[part], ~is_query[part])
    return metrics


def worst_order(scores, good):
    """Items by score, of equal ones the good ones last."""
    return sorted(range(len(scores)), key=lambda item: (-scores[item], item in good))


def revisited(scores, judged, positive, k):
    """AP and precision at k of one query, by walking down the list; None if it has nothing to find."""
    good = {item for item, word in judged.items() if word in positive}
    if not good:
        return None
    ranking = [item for item in worst_order(scores, good) if item in good or item not in judged]
    places = [place for place, item in enumerate(ranking) if item in good]
    area = 0
    for found, place in enumerate(places):
        before = 1 if place == 0 else found / place
        area += (before + (found + 1) / (place + 1)) / 2 / len(good)
    depth = min(places[-1] + 1, k)
    return area, sum(place < depth for place in places) / depth


def google(scores, judged):
    found, total = 0, 0
    for place, item in enumerate(worst_order(scores, judged)[:100], start=1):
        if item in judged:
            found += 1
            total += found / place
    return total / min(len(judged), 100)


@st.composite
def evaluations(draw, words):
    """Up to 4 queries, up to 12 items, and few scores, so that they tie."""
    num_queries, num_items = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    cell = st.tuples(st.integers(-2, 2), st.sampled_from([None, *words]))
    rows = st.lists(cell, min_size=num_items, max_size=num_items)
    cells = draw(st.lists(rows, min_size=num_queries, max_size=num_queries))
    scores = np.array([[score for score, _ in row] for row in cells])
    judged = [{item: word for item, (_, word) in enumerate(row) if word} for row in cells]
    return scores, judged


def rows_of(judged):
    return [(query, len(judged) + item, word) for query, row in enumerate(judged) for item, word in row.items()]


def test_equals_the_official_script(real_data):
    folder = real_data / "revisitop"
    truth = pickle.loads((folder / "gnd_roxford5k.pkl").read_bytes())["gnd"]
    ranks = np.load(folder / "oracle_ranks_roxford5k.npz")["ranks"].astype(int)
    expected = json.loads((folder / "oracle_expected.json").read_text())["expected"]["roxford5k"]
    num_items, num_queries = ranks.shape
    scores = np.empty((num_queries, num_items))
    np.put_along_axis(scores, ranks.T, -np.arange(num_items)[None], axis=1)  # whole numbers: exact in float32
    rows = [
        (query, num_queries + item, word)
        for query, judged in enumerate(truth)
        for word in ("easy", "hard", "junk")
        for item in judged[word]
    ]
    metrics = metrics_of(LandmarkMetrics, scores, rows, block_size=32)
    actual = metrics.compute()
    index, per_query = metrics.per_query()
    order = index.argsort()
    for suffix, name in {"E": "easy", "M": "medium", "H": "hard"}.items():
        assert actual[f"mAP_{suffix}"].item() == pytest.approx(expected[name]["mAP"], abs=1e-7)
        for k in (1, 5, 10):
            assert actual[f"mP@{k}_{suffix}"].item() == pytest.approx(expected[name]["mP@k"][str(k)], abs=1e-7)
        theirs = [np.nan if value is None else value for value in expected[name]["ap"]]
        assert per_query[f"mAP_{suffix}"][order].tolist() == pytest.approx(theirs, abs=1e-7, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(evaluations(("easy", "hard", "junk")), st.sampled_from([1, 3, 64]))
@pytest.mark.filterwarnings("ignore:no query has")
def test_revisited_matches_a_walk_down_the_worst_order(evaluation, block_size):
    scores, judged = evaluation
    if not any(judged):
        return
    actual = metrics_of(LandmarkMetrics, scores, rows_of(judged), block_size=block_size).compute()
    assert list(actual) == [f"{name}_{part}" for name in ("mAP",) for part in PARTS] + [
        f"mP@{k}_{part}" for part in PARTS for k in (1, 5, 10)
    ]
    for part, positive in PARTS.items():
        for k in (1, 5, 10):
            found = [revisited(*query, positive, k) for query in zip(scores, judged, strict=True)]
            found = [values for values in found if values is not None] or [(0, 0)]
            area, precision = np.mean(found, axis=0)
            assert actual[f"mAP_{part}"].item() == pytest.approx(area, abs=1e-6)
            assert actual[f"mP@{k}_{part}"].item() == pytest.approx(precision, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(evaluations(("public",)), st.sets(st.integers(0, 3)))
@pytest.mark.filterwarnings("ignore:no query has")
def test_google_matches_a_walk_down_the_worst_order(evaluation, private):
    scores, judged = evaluation
    judged = [dict.fromkeys(row, "private" if query in private else "public") for query, row in enumerate(judged)]
    if not any(judged):
        return
    actual = metrics_of(GoogleLandmarkMetrics, scores, rows_of(judged)).compute()
    values = {query: google(scores[query], row) for query, row in enumerate(judged) if row}
    public = [value for query, value in values.items() if query not in private]
    secret = [value for query, value in values.items() if query in private]
    for name, part in {"": [*values.values()], "_public": public, "_private": secret}.items():
        assert actual[f"mAP@100{name}"].item() == pytest.approx(np.mean(part or [0]), abs=1e-6)


def test_google_looks_at_a_hundred_and_divides_by_what_fits():
    """Query 0 has 150 relevant items, of which every other item is one; query 1 has one, at place 101."""
    scores = -np.arange(300)[None].repeat(2, axis=0)
    judged = [dict.fromkeys(range(0, 300, 2), "public"), {100: "private"}]
    actual = metrics_of(GoogleLandmarkMetrics, scores, rows_of(judged)).compute()
    expected = sum((found + 1) / (2 * found + 1) for found in range(50)) / 100
    assert actual["mAP@100_public"].item() == pytest.approx(expected)
    assert actual["mAP@100_private"].item() == 0
    assert actual["mAP@100"].item() == pytest.approx(expected / 2)


def test_queries_without_judgements_and_items_that_were_not_embedded_are_left_out():
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    rows = [(0, 3, "easy"), (0, 77, "easy"), (55, 3, "easy")]
    index, values = metrics_of(LandmarkMetrics, scores, rows).per_query()
    assert index.tolist() == [0]
    assert values["mAP_E"].tolist() == [(0 + 1 / 2) / 2]


def test_a_query_in_the_gallery_does_not_retrieve_itself():
    embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    metrics = LandmarkMetrics()
    metrics.begin(Judged([(0, 1, "easy"), (1, 2, "hard"), (1, 0, "junk")]))
    metrics.update(embeddings, torch.zeros(3), torch.arange(3))
    values = metrics.compute()
    assert values["mAP_E"] == values["mAP_H"] == values["mP@1_M"] == 1


def test_repeated_images_count_once():
    scores, rows = np.array([[1.0, 3.0, 2.0]]), [(0, 1, "easy"), (0, 3, "hard")]
    metrics = metrics_of(LandmarkMetrics, scores, rows)
    expected = metrics.compute()
    once = [
        torch.cat(metrics.metric_state[name]) for name in ("embeddings", "labels", "index", "is_query", "is_gallery")
    ]
    metrics.update(*(column[1:3] for column in once))
    assert metrics.compute() == expected
    assert expected["mAP_M"].item() == pytest.approx(((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2)


def test_nothing_to_find_is_zero():
    metrics = metrics_of(LandmarkMetrics, np.ones((1, 2)), [(0, 1, "hard")])
    with pytest.warns(UserWarning, match=r"no query has a positive .*'mAP_E', 'mP@1_E'"):
        values = metrics.compute()
    assert values["mAP_E"] == values["mP@10_E"] == 0
    assert values["mAP_H"] > 0


@pytest.mark.parametrize("kind", [LandmarkMetrics, GoogleLandmarkMetrics])
def test_needs_judgements_it_knows(kind):
    with pytest.raises(ValueError, match=f"dataset is None; {kind.__name__} needs one with judgements"):
        kind().begin(None)
    with pytest.raises(ValueError, match=r"dataset is Judged, whose judgements\(\) is None"):
        kind().begin(Judged(None))
    with pytest.raises(ValueError, match=r"judgements are \['medium'\]"):
        kind().begin(Judged([(0, 1, kind.words[0]), (0, 2, "medium")]))
    metrics = kind()
    metrics.update(torch.eye(2), torch.zeros(2), torch.arange(2))
    with pytest.raises(ValueError, match=r"call begin\(dataset\) before compute"):
        metrics.compute()
