import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dml.compare.pictures import queries
from tests.compare.drawn import drawn, png


def photo():
    """Noise over a slope, which PNG cannot make small."""
    pixels = np.linspace(0, 200, 96)[:, None, None] + np.random.default_rng(0).integers(0, 40, (96, 96, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def decoded(source):
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))


def test_every_row_has_the_same_queries():
    logs, comparison = drawn(3, 2)
    kept = (logs.retrievals["query"] > 0) | (logs.retrievals["run"] != "runs/Omniglot/1-0")
    found = queries(logs._replace(retrievals=logs.retrievals[kept]), comparison)
    assert [query.picture.path for query in found] == ["class1/query.png", "class2/query.png"]
    assert [[strip.row for strip in query.strips] for query in found] == [[0, 1, 2]] * 2


def test_neighbours_are_the_nearest_first():
    logs, comparison = drawn(1, 1)
    shuffled = logs.retrievals.sample(frac=1, random_state=0)
    (strip,) = queries(logs._replace(retrievals=shuffled), comparison, max_queries=1)[0].strips
    assert [each.similarity for each in strip.neighbours] == pytest.approx([0.9 - 0.05 * place for place in range(8)])


def test_at_most_so_many_queries_and_rows():
    logs, comparison = drawn(9, 1)
    found = queries(logs, comparison, max_queries=2, max_rows=4)
    assert [[strip.row for strip in query.strips] for query in found] == [[0, 1, 2, 3]] * 2


def test_variants_of_a_loss_are_shown_by_the_first():
    logs, comparison = drawn(3, 1)
    rows = comparison.rows.assign(loss=["SupAPLoss", "SupAPLoss", "FastAPLoss"])
    found = queries(logs, comparison._replace(rows=rows))
    assert [strip.row for strip in found[0].strips] == [0, 2]


def test_rows_without_pictures_are_left_out():
    logs, comparison = drawn(3, 1)
    some = logs.retrievals[logs.retrievals["run"] != "runs/Omniglot/0-0"]
    assert [strip.row for strip in queries(logs._replace(retrievals=some), comparison)[0].strips] == [1, 2]


def test_the_worst_queries_are_not_compared():
    logs, comparison = drawn(2, 1)
    assert queries(logs._replace(retrievals=logs.retrievals.assign(section="worst")), comparison) == []


def test_the_run_of_the_lowest_seed_is_shown():
    logs, comparison = drawn(1, 2)
    second = logs.retrievals.assign(run="runs/Omniglot/0-1", average_precision=0.1)
    both = logs._replace(retrievals=pd.concat([second, logs.retrievals]))
    assert queries(both, comparison)[0].strips[0].average_precision == 0.75


def test_photos_are_made_small_and_drawings_are_kept():
    logs, comparison = drawn(1, 1)
    retrievals = logs.retrievals.assign(image=[photo()] * len(logs.retrievals))
    (query, *_) = queries(logs._replace(retrievals=retrievals), comparison)
    assert base64.b64decode(query.picture.source.partition("base64,")[2]) == png(0)
    assert query.picture.is_small
    shown = query.strips[0].neighbours[0].picture
    assert len(shown.source) < len(photo()) / 2
    assert not shown.is_small
    error = np.asarray(decoded(shown.source).convert("RGB"), float) - np.asarray(Image.open(io.BytesIO(photo())), float)
    assert decoded(shown.source).size == (96, 96)
    assert np.abs(error).mean() < 15


@pytest.mark.parametrize("content", [None, b"", b"no image", png(0)[:60]], ids=["none", "empty", "text", "cut"])
def test_what_is_no_image_is_said_by_its_name(content):
    logs, comparison = drawn(1, 1)
    retrievals = logs.retrievals.assign(image=[content] * len(logs.retrievals))
    picture = queries(logs._replace(retrievals=retrievals), comparison)[0].strips[0].neighbours[0].picture
    assert (picture.path, picture.source) == ("class0/0.png", None)
