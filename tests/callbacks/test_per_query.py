"""Files of each query's values and intervals of their means, in a real trainer over plain colours."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from dml import __version__
from dml.callbacks import LogRetrievalMetrics, per_query
from dml.callbacks.per_query import LogIntervals, WritePerQuery
from dml.metrics import HierarchicalMetrics, LandmarkMetrics, ReidentificationMetrics, RetrievalMetrics
from dml.metrics.search import Search
from dml.metrics.uncertainty import bootstrap, paired_test
from tests.callbacks.test_metrics import Given, Landmarks

from .conftest import COLOURS, paint

NAMES = list(COLOURS)
QUERIES = [name for name in NAMES if "gallery" not in name]
SIDES = ("wrong", "right")
FIRSTS = {f"first_{side}_{what}" for side in SIDES for what in ("path", "score", "rank")}


def embeddings_of(names, colours):
    embeddings = np.array([colours[name] for name in names], np.float64) + 1
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def ranking(query, names, colours, same):
    """``(score, is right, name)`` of the gallery, best first, of equal scores the wrong ones first."""
    scores = embeddings_of(names, colours) @ embeddings_of([query], colours)[0]
    items = [
        (-round(score, 9), same(query, name), name)
        for name, score in zip(names, scores, strict=True)
        if name != query and "query" not in name
    ]
    return sorted(items)


def expected_firsts(query, names=NAMES, colours=COLOURS, same=lambda one, other: one[0] == other[0]):
    found = {}
    ranked = ranking(query, names, colours, same)
    for side, right in (("wrong", False), ("right", True)):
        places = [place for place, item in enumerate(ranked) if item[1] == right]
        path, score, rank = (
            (f"{ranked[places[0]][2]}.png", -ranked[places[0]][0], places[0] + 1) if places else [None] * 3
        )
        found |= {f"first_{side}_path": path, f"first_{side}_score": score, f"first_{side}_rank": rank}
    return found


def assert_firsts(frame, **options):
    for row in frame.to_dict("records"):
        expected = expected_firsts(row["path"].removesuffix(".png"), **options)
        found = {name: None if pd.isna(row[name]) else row[name] for name in expected}
        assert found == pytest.approx(expected, abs=1e-5), row["path"]


def log(**options):
    return LogRetrievalMetrics(RetrievalMetrics(**{"recall_at": [1, 2], **options}))


def read(tmp_path, name="test"):
    return pd.read_parquet(tmp_path / "run" / "per_query" / f"{name}.parquet")


def test_a_row_for_each_query(make_trainer, module, datamodule, tmp_path, capsys):
    callback, evaluation = WritePerQuery(), log()
    make_trainer(callback, evaluation).test(module, datamodule, verbose=False)
    frame, index = read(tmp_path), datamodule.datasets["test"].index
    assert frame["path"].tolist() == [f"{name}.png" for name in QUERIES]
    assert frame["path"].tolist() == index["path"].iloc[frame["index"]].tolist()
    for level in ("colour", "half"):
        assert frame[level].tolist() == index[level].iloc[frame["index"]].tolist()
    queries, measures = evaluation.per_query
    assert set(frame.columns) == {"index", "path", "colour", "half", *measures, *FIRSTS}
    for name, values in measures.items():
        assert frame[name].tolist() == values[queries.argsort()].tolist()
    assert_firsts(frame)
    assert (frame["R@1"] == (frame["first_right_rank"] == 1)).all()
    assert (frame["R@2"] == (frame["first_right_rank"] <= 2)).all()
    assert f"{callback.last_path}: 10 queries" in capsys.readouterr().out


def test_wrong_is_of_another_class_at_the_level_of_the_metric(make_trainer, module, datamodule, tmp_path):
    make_trainer(WritePerQuery(), log(level=1)).test(module, datamodule, verbose=False)
    assert_firsts(read(tmp_path), same=lambda one, other: (one[0] > "b") == (other[0] > "b"))
    assert read(tmp_path).attrs["level"] == "half"


def test_of_several_levels_right_is_of_the_finest(make_trainer, module, datamodule, root, tmp_path):
    paint(root, "d-0-both", (10, 200, 200), (8, 8))  # alone in its class, not in its half
    evaluation = LogRetrievalMetrics(HierarchicalMetrics(recall_at=[1]))
    make_trainer(WritePerQuery(), evaluation).test(module, datamodule, verbose=False)
    frame, colours = read(tmp_path), {**COLOURS, "d-0-both": (10, 200, 200)}
    assert frame.attrs["level"] == "colour"
    assert frame["path"].tolist() == [f"{name}.png" for name in sorted([*QUERIES, "d-0-both"])]
    assert_firsts(frame, names=list(colours), colours=colours)
    assert frame[["AP", "AP_half"]].isna().to_numpy().tolist() == [[False, False]] * len(QUERIES) + [[True, False]]


def test_file_says_what_the_evaluation_was(make_trainer, module, datamodule, tmp_path):
    make_trainer(WritePerQuery(), log()).test(module, datamodule, verbose=False)
    expected = {
        "protocol": "RetrievalMetrics",
        "level": "colour",
        "num_gallery": 11,
        "distractors": None,
        "ties": "pessimistic",
        "measures": ["AP", "mAP@R", "RP", "R@1", "R@2"],
        "dataset": "Colours",
        "split": "test",
        "epoch": 0,
        "step": 0,
        "dml_version": __version__,
    }
    assert expected.items() <= read(tmp_path).attrs.items()
    assert json.loads(pq.read_schema(tmp_path / "run" / "per_query" / "test.parquet").metadata[b"PANDAS_ATTRS"])


def test_error_analysis_by_class(make_trainer, module, datamodule, tmp_path):
    make_trainer(WritePerQuery(), log()).test(module, datamodule, verbose=False)
    frame = read(tmp_path)
    by_class = frame.groupby(frame.attrs["level"])["AP"].agg(["mean", "size"]).sort_values("mean")
    assert by_class.index[-1] == 0  # the tight one
    assert by_class["size"].to_dict() == {0: 3, 1: 3, 2: 4}
    missed = frame[frame["R@1"] == 0].sort_values("first_wrong_score")[["path", "first_wrong_path"]]
    expected = {name: ranking(name, NAMES, COLOURS, lambda one, other: one[0] == other[0])[0] for name in QUERIES}
    wrong = sorted((-score, name, found) for name, (score, right, found) in expected.items() if not right)
    assert missed.to_numpy().tolist() == [[f"{name}.png", f"{found}.png"] for _, name, found in wrong]
    assert len(wrong) > 1


def test_ties_count_against(make_trainer, module, datamodule, root, tmp_path):
    alike = {f"{label}-{number}-both": (200, 10, 10) for label in "de" for number in range(2)}
    for name, colour in alike.items():
        paint(root, name, colour, (8, 8))
    make_trainer(WritePerQuery(), log()).test(module, datamodule, verbose=False)
    frame, colours = read(tmp_path).set_index("path"), {**COLOURS, **alike}
    rows = frame.loc[["d-0-both.png", "d-1-both.png"]]
    assert rows["first_wrong_rank"].tolist() == [1, 1]
    assert rows["first_right_rank"].tolist() == [3, 3]
    assert rows["first_wrong_score"].tolist() == rows["first_right_score"].tolist() == pytest.approx([1, 1])
    assert frame.loc["d-0-both.png", "first_right_path"] == "d-1-both.png"
    others = frame[~frame.index.str[0].isin(["d", "e"])].reset_index()
    # Of wrong items that tie, any may be the first.
    expected = [expected_firsts(path.removesuffix(".png"), list(colours), colours) for path in others["path"]]
    for name in ("first_wrong_score", "first_wrong_rank", "first_right_rank"):
        assert others[name].tolist() == pytest.approx([row[name] for row in expected], abs=1e-5)


def test_a_gallery_of_one_class_has_no_wrong_item(make_trainer, module, datamodule, root, tmp_path):
    for path in root.glob("*.png"):
        if path.name[0] != "a":
            path.unlink()
    make_trainer(WritePerQuery(), log()).test(module, datamodule, verbose=False)
    frame = read(tmp_path)
    assert len(frame) == 3
    assert frame[["first_wrong_path", "first_wrong_score", "first_wrong_rank"]].isna().all().all()
    assert frame["first_right_rank"].tolist() == [1, 1, 1]


def test_blocks_do_not_matter(make_trainer, module, datamodule):
    callback = WritePerQuery()
    make_trainer(callback, log()).test(module, datamodule, verbose=False)
    whole = pd.read_parquet(callback.last_path)
    make_trainer(callback, log(block_size=3)).test(module, datamodule, verbose=False)
    pd.testing.assert_frame_equal(pd.read_parquet(callback.last_path), whole, rtol=1e-6)


def test_distractors_are_wrong_and_have_no_path(make_trainer, module, datamodule, tmp_path):
    colours = {f"z-{number}": colour for number, colour in enumerate([(252, 12, 9), (8, 6, 251), (0, 3, 2)])}
    np.save(tmp_path / "more.npy", embeddings_of(list(colours), colours).astype(np.float32))
    evaluation = log(search=Search(distractors=str(tmp_path / "more.npy"), precision="float64"))
    make_trainer(WritePerQuery(), evaluation).test(module, datamodule, verbose=False)
    names, everything = [*NAMES, *colours], {**COLOURS, **colours}
    frame = read(tmp_path)
    expected = pd.DataFrame([expected_firsts(path.removesuffix(".png"), names, everything) for path in frame["path"]])
    is_distractor = expected["first_wrong_path"].str.startswith("z")
    assert 0 < is_distractor.sum() < len(frame)
    assert frame["first_wrong_path"].isna().tolist() == is_distractor.tolist()
    for name in ("first_wrong_score", "first_wrong_rank", "first_right_score", "first_right_rank"):
        assert frame[name].tolist() == pytest.approx(expected[name].tolist(), abs=1e-5)
    assert frame.attrs["distractors"] == str(tmp_path / "more.npy")


def test_no_query_with_an_answer_is_an_empty_table(make_trainer, module, datamodule, root, tmp_path):
    make_trainer(WritePerQuery(), log()).test(module, datamodule, verbose=False)
    schema = pq.read_schema(tmp_path / "run" / "per_query" / "test.parquet")
    for path in root.glob("*.png"):
        if path.name[1:4] != "-0-":
            path.unlink()
    datamodule.datasets = {}
    with pytest.warns(UserWarning, match="no query has a relevant item"):
        make_trainer(WritePerQuery(), LogIntervals(), log()).test(module, datamodule, verbose=False)
    table = pq.read_table(tmp_path / "run" / "per_query" / "test.parquet")
    assert table.num_rows == 0
    assert table.schema == schema
    assert schema.field("path").type == pa.string()
    assert schema.field("first_wrong_rank").type == pa.int64()


def test_validations_are_written_only_if_asked_for(make_trainer, module, datamodule, tmp_path):
    options = {"max_epochs": 2, "num_sanity_val_steps": 2, "limit_train_batches": 1, "log_every_n_steps": 1}
    folder = tmp_path / "elsewhere" / "files"
    make_trainer(WritePerQuery(str(folder)), log(), **options).fit(module, datamodule)
    assert not folder.exists()
    run = make_trainer(WritePerQuery(str(folder), stages=("val", "test")), log(), **options)
    run.fit(module, datamodule)
    names = ["val-epoch000-step000001.parquet", "val-epoch001-step000002.parquet"]
    assert sorted(path.name for path in folder.iterdir()) == names
    frame = pd.read_parquet(folder / names[1])
    assert frame["AP"].mean() == pytest.approx(run.callback_metrics["val/AP"].item())
    assert {"split": "val", "epoch": 1, "step": 2}.items() <= frame.attrs.items()
    run.test(module, datamodule, verbose=False)
    assert len(list(folder.iterdir())) == 3
    make_trainer(WritePerQuery(str(tmp_path / "none"), stages=["val"]), log()).test(module, datamodule, verbose=False)
    assert not (tmp_path / "none").exists()


def test_a_failure_leaves_the_old_file(make_trainer, module, datamodule, monkeypatch, tmp_path):
    run = make_trainer(WritePerQuery(), log())
    run.test(module, datamodule, verbose=False)
    folder = tmp_path / "run" / "per_query"
    before = (folder / "test.parquet").read_bytes()

    def full(table, where):
        where.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(per_query.pq, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        run.test(module, datamodule, verbose=False)
    assert [path.name for path in folder.iterdir()] == ["test.parquet"]
    assert (folder / "test.parquet").read_bytes() == before


def test_other_processes_write_nothing(make_trainer, module, datamodule, monkeypatch, tmp_path):
    trainer = make_trainer(WritePerQuery(), log())
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    trainer.test(module, datamodule, verbose=False)
    assert not (tmp_path / "run").exists()


def test_gallery_is_that_of_all_processes(make_trainer, module, datamodule):
    """With a second process that has the other half, as torchmetrics sees it."""
    callback, evaluation = WritePerQuery(), log()
    trainer = make_trainer(callback, evaluation)
    trainer.test(module, datamodule, verbose=False)
    whole, metrics = pd.read_parquet(callback.last_path), evaluation.metrics
    callback.last_path.unlink()
    states = list(metrics._reductions)
    other = {name: torch.cat(getattr(metrics, name))[5:] for name in states}
    for name in states:
        setattr(metrics, name, [torch.cat(getattr(metrics, name))[:5]])
    pending = iter(states)
    metrics.dist_sync_fn = lambda tensor, group: [tensor, other[next(pending)]]
    metrics.distributed_available_fn = lambda: True
    callback.on_test_end(trainer, module)
    pd.testing.assert_frame_equal(pd.read_parquet(callback.last_path), whole)
    assert len(metrics.index[0]) == 5


class Kept(LandmarkMetrics):
    """Keeps the values of each query, which are NaN where it has nothing to retrieve."""

    def compute(self):
        self.last_per_query = self.per_query()
        return super().compute()


def test_metrics_that_do_not_go_by_labels(make_trainer, module, datamodule, tmp_path):
    make_trainer(WritePerQuery(), LogIntervals(), LogRetrievalMetrics(ReidentificationMetrics())).test(
        module, datamodule, verbose=False
    )
    assert not (tmp_path / "run" / "per_query").exists()
    datamodule.dataset, datamodule.datasets = Landmarks, {}
    intervals = LogIntervals(["mAP_E"])
    run = make_trainer(WritePerQuery(), intervals, LogRetrievalMetrics(Kept()))
    run.test(module, datamodule, verbose=False)
    frame = read(tmp_path)
    assert frame["path"].tolist() == ["c-3-query.png"]
    assert frame["mAP_E"].tolist() == [1]
    assert frame[sorted(FIRSTS)].isna().all().all()
    assert frame.attrs["protocol"] == "Kept"
    assert intervals.intervals == {}


def test_without_metrics_or_paths_there_is_nothing_to_write(make_trainer, module, datamodule, tmp_path):
    callback = WritePerQuery(str(tmp_path / "out"))
    make_trainer(callback).test(module, datamodule, verbose=False)
    make_trainer(callback, log()).test(Given(), DataLoader(torch.arange(6)), verbose=False)
    assert callback.last_path is None
    assert not (tmp_path / "out").exists()


def test_rejects_a_file_for_a_folder(make_trainer, module, datamodule, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file; it must be the name of a folder"):
        make_trainer(WritePerQuery(str(tmp_path / "file")), log()).test(module, datamodule, verbose=False)


@pytest.mark.parametrize("stages", [(), ("train",), ("test", "fit")])
def test_rejects_stages(stages):
    with pytest.raises(ValueError, match=r"it is one or both of \['val', 'test'\]"):
        WritePerQuery(stages=stages)


def test_two_runs_are_compared_by_their_files(make_trainer, module, datamodule, tmp_path):
    for name in ("first", "second"):
        make_trainer(WritePerQuery(str(tmp_path / name)), log()).test(module, datamodule, verbose=False)
        module.embedder.register_forward_hook(lambda *parts: torch.nn.functional.normalize(parts[2] ** 0.1, dim=1))
    files = [tmp_path / name / "test.parquet" for name in ("first", "second")]
    first, second = (pd.read_parquet(file)["AP"].astype(float).mean() for file in files)
    found = paired_test(*files)
    assert found.difference == pytest.approx(second - first)
    assert found.difference != 0
    assert (found.num_queries, found.num_classes) == (10, 3)


@pytest.mark.parametrize("is_first", [True, False])
def test_intervals_in_any_order_of_the_callbacks(
    make_trainer, module, datamodule, tmp_path, capsys, monkeypatch, is_first
):
    rankings = []
    ranked = RetrievalMetrics.per_query
    monkeypatch.setattr(RetrievalMetrics, "per_query", lambda metrics: rankings.append(metrics) or ranked(metrics))
    callbacks = [LogIntervals(("AP", "nothing", "R@1"), confidence=0.9, seed=3), log()]
    trainer = make_trainer(*callbacks[:: 1 if is_first else -1])
    trainer.test(module, datamodule, verbose=False)
    assert len(rankings) == 1
    index, measures = callbacks[1].per_query
    classes = datamodule.datasets["test"].labels[index, 0]
    logged = trainer.callback_metrics
    printed = capsys.readouterr().out.splitlines()
    for name in ("AP", "R@1"):
        low, high, mean, *_ = bootstrap(measures[name], classes, confidence=0.9, seed=3)
        assert (logged[f"test/{name}_low"], logged[f"test/{name}_high"]) == pytest.approx((low, high))
        assert logged[f"test/{name}"] == pytest.approx(mean)
        assert f"{name} {mean:.3f} [{low:.3f}, {high:.3f}] (90 %, 3 classes)" in printed
    assert not any("nothing" in name for name in [*logged, *printed])


def test_intervals_are_of_tests_only_and_of_the_last_one(make_trainer, module, datamodule, root):
    callback = LogIntervals()
    trainer = make_trainer(callback, log())
    trainer.validate(module, datamodule, verbose=False)
    assert callback.intervals == {}
    trainer.test(module, datamodule, verbose=False)
    assert set(callback.intervals) == {"AP", "R@1"}
    for path in root.glob("*.png"):
        if path.name[0] != "a":
            path.unlink()
    datamodule.datasets = {}
    trainer.test(module, datamodule, verbose=False)
    assert callback.intervals == {}  # one class is no sample of classes
    assert "test/AP_low" not in trainer.callback_metrics


def test_intervals_need_nothing_but_metrics(make_trainer, module, datamodule, capsys):
    make_trainer(LogIntervals()).test(module, datamodule, verbose=False)
    assert "classes)" not in capsys.readouterr().out
    callback = LogIntervals()
    make_trainer(callback, log()).test(Given(), DataLoader(torch.arange(6), batch_size=4), verbose=False)
    assert callback.intervals["R@1"].mean == pytest.approx(4 / 6)
    assert callback.intervals["R@1"].num_classes == 3


def test_rejects_confidence():
    with pytest.raises(ValueError, match="confidence is 95; it must be between 0 and 1"):
        LogIntervals(confidence=95)


def test_processes_share_the_queries(monkeypatch):
    monkeypatch.setattr("dml.ranking.scores._TILE_QUERIES", 128)
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(300)
    metrics = RetrievalMetrics(block_size=128)
    metrics.update(torch.nn.functional.normalize(torch.randn(300, 4, generator=generator), dim=1), index % 5, 3 * index)
    evaluation, queries = metrics.images().split(), 3 * torch.tensor([0, 5, 130, 200, 299])
    expected = per_query._firsts(metrics, evaluation, queries)
    assert (expected.rank.amin(dim=1) == 1).all()  # one side has the first item
    monkeypatch.setattr(per_query.torch.distributed, "is_initialized", lambda: True)
    sent = []
    monkeypatch.setattr(per_query, "gather_all_tensors", lambda values, group: sent.append(values) or [values])
    monkeypatch.setattr(metrics, "_share", lambda: (1, 2))
    other = per_query._firsts(metrics, evaluation, queries)
    assert (other.rank[:, 0] == -1).tolist() == [True, True, False, False, True]  # blocks 0, 0, 1, 1, 2
    of_other = iter(list(sent))
    monkeypatch.setattr(per_query, "gather_all_tensors", lambda values, group: [values, next(of_other)])
    monkeypatch.setattr(metrics, "_share", lambda: (0, 2))
    for found, column in zip(per_query._firsts(metrics, evaluation, queries), expected, strict=True):
        torch.testing.assert_close(found, column)
