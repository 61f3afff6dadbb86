"""LogRetrievalMetrics and MetricsTable, in a real trainer over embeddings that are given."""

import re

import pandas as pd
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dml.callbacks import LogIntervals, LogRetrievalMetrics, MetricsTable
from dml.data import RetrievalDataModule
from dml.metrics import LandmarkMetrics, ReidentificationMetrics, RetrievalMetrics, Search, TemplateMetrics
from dml.models import TimmEmbedder
from dml.module import RetrievalModule
from dml.stages import DatabaseAugmentation, KReciprocal, QueryExpansion
from tests.callbacks.conftest import Colours, Spread

# In order of angle: items 0 1 5 2 3 4, of classes 0 0 1 1 2 2. All but 2 and 3 find their like first.
ANGLES = torch.tensor([0.0, 0.1, 1.0, 1.1, 1.25, 0.8])
LABELS = torch.tensor([0, 0, 1, 2, 2, 1])


class Given(LightningModule):
    """Serves fixed embeddings; training moves one number."""

    def __init__(self, angles=ANGLES, is_query=None, is_gallery=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.angles = angles
        everything = torch.ones(len(angles), dtype=torch.bool)
        self.is_query = everything if is_query is None else is_query
        self.is_gallery = everything if is_gallery is None else is_gallery

    def _evaluate(self, index):
        angles = self.angles[index]
        return {
            "embeddings": torch.stack([angles.cos(), angles.sin()], dim=1),
            "labels": LABELS[index].unsqueeze(1),
            "index": index,
            "is_query": self.is_query[index],
            "is_gallery": self.is_gallery[index],
        }

    def training_step(self, batch, batch_idx):
        self.log("train/loss", self.weight)
        return self.weight

    def validation_step(self, batch, batch_idx):
        return self._evaluate(batch)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader():
    return DataLoader(torch.arange(6), batch_size=4)


def trainer(tmp_path, *callbacks, **changes):
    arguments = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **{**arguments, **changes})


def test_metrics_of_the_whole_split_are_logged(tmp_path):
    run = trainer(tmp_path, LogRetrievalMetrics(RetrievalMetrics(recall_at=[1, 2])))
    run.validate(Given(), loader(), verbose=False)
    assert run.callback_metrics["val/R@1"].item() == pytest.approx(4 / 6)
    run.test(Given(), loader(), verbose=False)
    assert run.callback_metrics["test/R@2"].item() == 1


def test_each_evaluation_starts_anew_and_the_sanity_check_is_not_one(tmp_path):
    callback = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1]))
    run = trainer(tmp_path, callback, num_sanity_val_steps=2)
    run.fit(Given(), loader(), loader())
    index, values = callback.per_query
    assert index.tolist() == list(range(6))
    assert values["R@1"].tolist() == [1, 1, 0, 0, 1, 1]


def test_queries_and_gallery_can_differ(tmp_path):
    is_query = torch.tensor([True, False, True, False, False, False])
    callback = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1]))
    trainer(tmp_path, callback).test(Given(is_query=is_query, is_gallery=~is_query), loader(), verbose=False)
    index, values = callback.per_query
    assert index.tolist() == [0, 2]
    assert values["R@1"].tolist() == [1, 0]


def test_an_embedding_that_is_not_finite_names_its_image(tmp_path):
    angles = ANGLES.clone()
    angles[5] = torch.nan
    with pytest.raises(ValueError, match=r"1 embeddings are not finite, those of images \[5\]"):
        trainer(tmp_path, LogRetrievalMetrics(RetrievalMetrics())).test(Given(angles), loader(), verbose=False)


def said(caplog, stage):
    """What was printed of the costs of an evaluation."""
    return [record.message for record in caplog.records if record.message.startswith(f"{stage}: ")]


@pytest.mark.parametrize(
    ("missing", "unanswerable"),
    [
        ([], 0),
        ([4], 1),  # 3 has lost the other of its class, and 4 still finds 3
        ([3, 4, 5], 3),
    ],
)
def test_queries_that_nothing_can_answer_are_counted(tmp_path, missing, unanswerable):
    is_gallery = torch.ones(6, dtype=torch.bool)
    is_gallery[missing] = False
    run = trainer(tmp_path, LogRetrievalMetrics(RetrievalMetrics(recall_at=[1])))
    for stage, evaluate in (("val", run.validate), ("test", run.test)):
        evaluate(Given(is_gallery=is_gallery), loader(), verbose=False)
        logged = {name for name in run.callback_metrics if "unanswerable" in name}
        assert logged == ({f"{stage}/unanswerable"} if unanswerable else set())
        assert all(run.callback_metrics[name] == unanswerable for name in logged)


class Growing(Given):
    """Has all images in its gallery only in its second epoch."""

    def on_validation_epoch_start(self):
        self.is_gallery = torch.arange(6) != 4 if self.current_epoch == 0 else torch.ones(6, dtype=torch.bool)


def test_a_count_of_unanswerable_queries_is_not_left_from_the_epoch_before(tmp_path, capsys):
    callbacks = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1])), MetricsTable()
    run = trainer(tmp_path, *callbacks, num_sanity_val_steps=0)
    run.fit(Growing(), loader(), loader())
    assert run.callback_metrics["val/unanswerable"] == 0
    first, second = capsys.readouterr().out.split("validation, epoch ")[1:]
    for table, cells in ((first, ["1.0000", "1.0000"]), (second, ["0.0000", "0.0000"])):  # the fewer, the better
        rows = [row.strip("│").split("│") for row in table.splitlines() if row.startswith("│")]
        assert [row[-1].strip() for row in rows] == cells


def test_what_stages_cost_is_printed(tmp_path, caplog):
    search = Search(stages=[DatabaseAugmentation(k=1), QueryExpansion(k=1)], reranker=KReciprocal(k1=2, k2=1))
    callback = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1], search=search))
    trainer(tmp_path, callback).test(Given(), loader(), verbose=False)
    (line,) = said(caplog, "test")
    assert re.fullmatch(
        r"test: 1\. DatabaseAugmentation \d\.\d s, 2\. QueryExpansion \d\.\d s, KReciprocal \d\.\d s", line
    )
    assert list(search.seconds) == ["1. DatabaseAugmentation", "2. QueryExpansion", "KReciprocal"]


def test_without_stages_no_cost_is_printed(tmp_path, caplog):
    trainer(tmp_path, LogRetrievalMetrics(RetrievalMetrics())).test(Given(), loader(), verbose=False)
    assert not said(caplog, "test")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"flip": True}, ["view x1", "view x1 mirrored"]),
        ({"scales": [1.0, 0.5]}, ["view x1", "view x0.5"]),
    ],
    ids=["one", "mirrored", "scales"],
)
def test_what_views_cost_is_printed(make_trainer, root, caplog, options, expected):
    batches = {"classes_per_batch": 2, "samples_per_class": 2, "eval_batch_size": 5, "num_workers": 0}
    data = RetrievalDataModule(Colours, str(root), eval_transforms=[v2.Resize((64, 64))], **batches)
    embedder = TimmEmbedder("test_resnet", embedding_dim=4, pretrained=False, **options)
    run = make_trainer(LogRetrievalMetrics(RetrievalMetrics()))
    run.validate(RetrievalModule(embedder, Spread()), data, verbose=False)
    lines = [line.removeprefix("val: ").split(", ") for line in said(caplog, "val")]
    assert [re.sub(r" \d\.\d s$", "", part) for line in lines for part in line] == expected
    assert embedder.view_seconds == {}  # the next evaluation starts anew


def test_the_table_leaves_the_ends_of_intervals_out(tmp_path, capsys):
    run = trainer(tmp_path, LogRetrievalMetrics(RetrievalMetrics(recall_at=[1])), LogIntervals(), MetricsTable())
    run.test(Given(), loader(), verbose=False)
    assert {"test/AP_low", "test/AP_high", "test/R@1_low", "test/R@1_high"} <= run.callback_metrics.keys()
    table = next(line for line in capsys.readouterr().out.splitlines() if "mAP@R" in line)
    assert [cell.strip() for cell in table.strip("┃").split("┃")] == ["", "AP", "mAP@R", "RP", "R@1"]


class Turning(Given):
    """Gets worse in its second epoch: two classes swap places."""

    def on_validation_epoch_start(self):
        if self.current_epoch == 1:
            self.angles = ANGLES[[0, 2, 1, 3, 4, 5]]


def test_the_table_shows_the_best_beside_the_last(tmp_path, capsys):
    callbacks = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1])), MetricsTable()
    trainer(tmp_path, *callbacks, num_sanity_val_steps=0).fit(Turning(), loader(), loader())
    first, second = capsys.readouterr().out.split("validation, epoch ")[1:]
    cells = {row.split("│")[1].strip(): row.split("│")[2:-1] for row in second.splitlines() if row.startswith("│")}
    now, best = ([cell.strip() for cell in cells[name]] for name in ("now", "best"))
    assert best[-1] == f"{4 / 6:.4f}"
    assert float(now[-1]) < float(best[-1])
    assert first.startswith("0, step 2")
    assert second.startswith("1, step 4")


class Landmarks(Colours):
    """To the query c-3, which sees c-0, c-1, c-2, a-2, b-3 in this order, one is easy, one junk and one hard."""

    @classmethod
    def read_judgements(cls, root):
        words = {"c-0-both": "easy", "c-2-both": "junk", "b-3-gallery": "hard"}
        rows = [("c-3-query.png", f"{item}.png", word) for item, word in words.items()]
        return pd.DataFrame(rows, columns=["query", "item", "judgement"])


class Faces(Colours):
    """Each image is a template: those numbered 0 are in the galleries, a and b in the first, c in the second."""

    @classmethod
    def read_index(cls, root):
        index = super().read_index(root)
        gallery = index["colour"].map({"a": 1, "b": 1, "c": 2}).where(index["path"].str[2] == "0", 0)
        return index.assign(template=pd.factorize(index["path"])[0], media=0, gallery=gallery)

    @classmethod
    def read_pairs(cls, root):
        return pd.DataFrame({"template_a": [0, 0, 8], "template_b": [1, 4, 4], "same": [True, False, False]})


@pytest.mark.parametrize(
    ("dataset", "metrics", "expected", "queries"),
    [
        (Colours, ReidentificationMetrics(recall_at=[3]), {"CMC@3": 1}, None),  # there are three identities
        (Landmarks, LandmarkMetrics(), {"mAP_E": 1, "mAP_H": (0 + 1 / 3) / 2, "mP@5_H": 1 / 3}, ["c-3-query.png"]),
        (Faces, TemplateMetrics(), {"TAR@FAR=1e-1": 1, "top-1": 7 / 9}, None),  # b-2 looks like a, c-2 like b
    ],
)
def test_a_protocol_beyond_labels_takes_what_it_needs_from_the_dataset(
    make_trainer, module, datamodule, dataset, metrics, expected, queries
):
    datamodule.dataset = dataset
    callback = LogRetrievalMetrics(metrics)
    run = make_trainer(callback, max_epochs=1, limit_train_batches=1, log_every_n_steps=1)
    run.fit(module, datamodule)
    assert {f"val/{name}" for name in expected} <= run.callback_metrics.keys()
    run.test(module, datamodule, verbose=False)
    assert {name: run.callback_metrics[f"test/{name}"].item() for name in expected} == pytest.approx(expected)
    if queries is None:
        assert callback.per_query is None
    else:
        index, values = callback.per_query
        assert datamodule.datasets["test"].index["path"].iloc[index.tolist()].tolist() == queries
        assert {name: values[name].tolist() for name in expected} == {
            name: [pytest.approx(value)] for name, value in expected.items()
        }


def test_judgements_are_read_only_for_metrics_that_want_them(make_trainer, module, datamodule):
    class Silent(Colours):
        @staticmethod
        def read_judgements(root):
            raise AssertionError("nobody asked")

    datamodule.dataset = Silent
    make_trainer(LogRetrievalMetrics(RetrievalMetrics())).test(module, datamodule, verbose=False)
    with pytest.raises(AssertionError, match="nobody asked"):
        make_trainer(LogRetrievalMetrics(LandmarkMetrics())).test(module, datamodule, verbose=False)


@pytest.mark.parametrize("metrics", [LandmarkMetrics(), TemplateMetrics()])
def test_such_a_protocol_says_that_plain_loaders_do_not_do(tmp_path, metrics):
    with pytest.raises(ValueError, match=f"dataset is None; {type(metrics).__name__} needs one with"):
        trainer(tmp_path, LogRetrievalMetrics(metrics)).test(Given(), loader(), verbose=False)
    run = trainer(tmp_path, LogRetrievalMetrics(ReidentificationMetrics(recall_at=[2])))
    run.test(Given(), loader(), verbose=False)
    assert run.callback_metrics["test/CMC@2"] == 1
