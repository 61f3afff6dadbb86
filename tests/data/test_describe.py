"""What ``dml data describe`` prints, against counts made by hand."""

import io
import re
from functools import partial
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from dml.data import HierarchicalSampler, RetrievalDataModule
from dml.data.datasets import IJBC, DataFrameDataset, InShop, StanfordOnlineProducts
from dml.data.describe import describe
from tests.data.datasets.miniatures import make_ijbc, make_inshop, make_sop


def described(dataset, root, *, epoch=False, **options):
    stream = io.StringIO()
    data = RetrievalDataModule(dataset, str(root), **options)
    describe(data, sampler=epoch, console=Console(file=stream, width=160))
    return stream.getvalue()


def cells(text, title):
    """Rows of the table of that title."""
    lines = text.splitlines()
    titled = next(number for number, line in enumerate(lines) if line.startswith(title))
    start = next(number for number in range(titled, len(lines)) if lines[number].startswith("┏"))
    table = []
    for line in lines[start:]:
        if line[:1] not in tuple("┏┃┡│├"):
            break
        if line[0] in "┃│":
            table.append([cell.strip() for cell in re.split("[┃│]", line)[1:-1]])
    return table


def listed(root, **columns):
    """A data set of images that nobody opens."""
    length = len(next(iter(columns.values())))
    pd.DataFrame({"path": [f"{row}.jpg" for row in range(length)], **columns}).to_csv(root / "index.csv", index=False)
    return root


class AsPublished(StanfordOnlineProducts):
    published: ClassVar = {"train": (48, 12, 2), "test": (48, None, 2)}


class WithUnlisted(StanfordOnlineProducts):
    published: ClassVar = {"train": (48, 12, 2), "val": (10, 5, 2)}


@pytest.fixture(scope="module")
def sop(tmp_path_factory):
    return make_sop(tmp_path_factory.mktemp("sop"))


def test_counts_of_each_split_roles_and_levels(tmp_path):
    assert cells(described(InShop, make_inshop(tmp_path)), "images and classes") == [
        ["split", "images", "queries", "gallery", "item", "category", "gender"],
        ["train", "48", "48", "48", "12", "4", "2"],
        ["published", "25,882", "", "", "3,997", "?", "?"],
        ["test", "48", "24", "24", "12", "4", "2"],
        ["published", "26,830", "", "", "3,985", "?", "?"],
    ]


def test_figures_that_differ_are_named(sop):
    text = described(StanfordOnlineProducts, sop)
    of_train = "images of train (48, published 59,551), product of train (12, published 11,318), category of train (2,"
    of_test = "images of test (48, published 60,502), product of test (12, published 11,316), category of test (2,"
    assert f"\nnot as published: {of_train} published 12), {of_test} published 12)\n" in text


def test_figures_that_match_and_those_unknown(sop):
    assert "\nas published; could not be compared: product of test\n" in described(AsPublished, sop)


def test_nothing_is_as_published_where_nothing_is_known(tmp_path):
    text = described(IJBC, make_ijbc(tmp_path))
    assert "\nno published count is known; could not be compared: images of test, subject of test\n" in text


def test_splits_on_one_side_only_could_not_be_compared(sop):
    text = described(WithUnlisted, sop)
    assert "\nas published; could not be compared: test, val (not here)\n" in text
    assert [row[0] for row in cells(text, "images and classes")] == ["split", "train", "published", "test"]


def test_published_figures_are_not_those_of_other_levels(sop):
    text = described(StanfordOnlineProducts, sop, levels=["category"])
    assert "no published count is known" in text
    assert cells(text, "images and classes")[1] == ["train", "48", "48", "48", "2"]
    assert "other columns, which data.levels can make levels of: product\n" in text


def test_class_sizes(tmp_path):
    """Two classes of one image, and one each of 2, 3, 4, 5 and 9."""
    sizes = [1, 1, 2, 3, 4, 5, 9]
    root = listed(tmp_path, label=np.repeat(np.arange(7), sizes))
    assert cells(described(DataFrameDataset, root), "images of a label") == [
        ["split", "images", "classes (label)", ""],
        ["train", "1", "2", "█" * 24],
        ["", "2", "1", "█" * 12],
        ["", "3 to 4", "2", "█" * 24],
        ["", "5 to 8", "1", "█" * 12],
        ["", "9 to 16", "1", "█" * 12],
        ["", "1 to 9, median 3", "7", ""],
    ]


def test_hierarchy(tmp_path):
    root = listed(tmp_path, fine=[0, 0, 1, 2, 3, 4], middle=[0, 0, 0, 0, 1, 2], coarse=[0, 0, 0, 0, 0, 1])
    assert cells(described(DataFrameDataset, root), "hierarchy") == [
        ["level", "in", "fewest", "mean", "most"],
        ["fine", "middle", "1", "1.7", "3"],
        ["middle", "coarse", "1", "1.5", "2"],
    ]


def test_one_level_has_no_hierarchy(tmp_path):
    assert "hierarchy" not in described(DataFrameDataset, listed(tmp_path, label=[0, 1]))


def test_held_out_classes(sop):
    text = described(StanfordOnlineProducts, sop, val_classes=0.25)
    assert [row[:2] + row[4:5] for row in cells(text, "with val_classes 0.25")[1:]] == [
        ["train", "36", "9"],
        ["val", "12", "3"],
        ["test", "48", "12"],
    ]
    assert cells(text, "images and classes")[1][1] == "48"  # as published, before


def test_other_columns_can_become_levels(tmp_path):
    root = listed(tmp_path, colour=[0, 1], item=[0, 1], shop=[2, 3])
    text = described(DataFrameDataset, root, levels=["item"])
    assert text.endswith("\nother columns, which data.levels can make levels of: colour, shop\n")


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("ClassBalancedSampler", {}),
        ("HierarchicalSampler", {"sampler": partial(HierarchicalSampler, batches_per_tuple=3)}),
    ],
)
def test_epoch_of_the_sampler(sop, name, sampler):
    options = {"classes_per_batch": 2, "samples_per_class": 5, "val_classes": 0.25, **sampler}
    text = described(StanfordOnlineProducts, sop, epoch=True, **options)
    data = RetrievalDataModule(StanfordOnlineProducts, str(sop), num_workers=0, image_size=8, **options)
    data.setup("fit")
    batches = list(data.train_dataloader())
    images = {row for batch in batches for row in batch["index"].tolist()}
    classes = {label for batch in batches for label in batch["labels"][:, 0].tolist()}
    repeats = [len(batch["index"]) - len(set(batch["index"].tolist())) for batch in batches]
    *counts, (rate, number, _) = cells(text, f"an epoch of {name} on train")[1:]
    assert rate == "images drawn in a second"
    assert int(number.replace(",", "")) > 0
    assert counts == [
        ["classes", str(len(classes)), "9"],
        ["images", str(len(images)), "36"],
        ["batches", str(len(batches)), ""],
        ["images in a batch", "10", ""],
        ["of those, seen before in the batch", f"{np.mean(repeats):.1f}", ""],
    ]
    assert np.mean(repeats) >= 2  # classes have 4 images


def test_epoch_needs_no_validation_split(sop):
    text = described(StanfordOnlineProducts, sop, epoch=True, classes_per_batch=4)
    assert ["classes", "12", "12"] in cells(text, "an epoch of")


def test_brackets_are_no_markup(tmp_path):
    root = tmp_path / "photos [old]"
    root.mkdir()
    text = described(DataFrameDataset, listed(root, label=[0, 1], **{"price [eur]": [3, 4]}), levels=["label"])
    assert text.startswith(f"DataFrameDataset in {root}\n")
    assert "levels of: price [eur]\n" in text
