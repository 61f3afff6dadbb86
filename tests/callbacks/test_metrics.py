"""LogRetrievalMetrics and MetricsTable, in a real trainer over embeddings that are given."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from dml.callbacks import LogRetrievalMetrics, MetricsTable
from dml.metrics import RetrievalMetrics

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
