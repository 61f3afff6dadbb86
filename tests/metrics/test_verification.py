"""TemplateMetrics against loops, and its rates against sklearn's ROC curve."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_curve
from torch.nn.functional import normalize

from dml.metrics import TemplateMetrics
from dml.metrics.verification import true_accept_rates

FARS = ("1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1")


class Templates(SimpleNamespace):
    """A dataset of templates whose pairs are given."""

    def __init__(self, index, pairs=(), root=Path("root")):
        pairs = pd.DataFrame(pairs, columns=["template_a", "template_b", "same"])
        super().__init__(root=root, index=index, levels=("subject", "other"), pairs=pairs)

    def judgements(self):
        raise AssertionError("nobody asked")

    def read_pairs(self, root):
        assert root == self.root
        return self.pairs


def benchmark(num_subjects=12, seed=0):
    """Subjects with a template in gallery 1, 2 or neither, and three probes; media of one or more images."""
    rng = np.random.default_rng(seed)
    rows, template = [], 100
    for subject in range(num_subjects):
        for gallery in [0, 0, 0, *([1 + subject % 2] if subject < num_subjects - 2 else [])]:
            template += int(rng.integers(1, 4))
            rows += [(template, image % 3, gallery, subject, rng.random()) for image in range(rng.integers(1, 6))]
    index = pd.DataFrame(rows, columns=["template", "media", "gallery", "subject", "score"])
    index = index.sample(frac=1, random_state=seed).reset_index(drop=True).assign(other=0)
    centres = rng.normal(size=(num_subjects, 6))
    embeddings = centres[index["subject"]] + 1.2 * rng.normal(size=(len(index), 6))
    subject = index.groupby("template")["subject"].first()
    pairs = [(a, b, subject[a] == subject[b]) for a in subject.index for b in subject.index if a < b]
    return Templates(index, pairs), normalize(torch.tensor(embeddings, dtype=torch.float32), dim=1)


def metrics_of(dataset, embeddings, **options):
    metrics = TemplateMetrics(**options)
    metrics.begin(dataset)
    index = torch.arange(len(embeddings))
    for part in torch.randperm(len(index), generator=torch.Generator().manual_seed(0)).split(17):
        metrics.update(embeddings[part], torch.zeros_like(part), index[part])
    return metrics


def features_of(dataset, embeddings, weigh=False):
    """One template after the other, one medium after the other: {template: feature}."""
    features = {}
    for template, images in dataset.index.groupby("template"):
        total = 0
        for _, medium in images.groupby("media"):
            rows = [embeddings[row].double().numpy() * (medium["score"][row] if weigh else 1) for row in medium.index]
            total = total + sum(rows) / len(rows)
        features[template] = total / np.linalg.norm(total)
    return features


def nearest_on_curve(same, scores, far):
    """The largest TAR at the false accept rate nearest to far, of all points of the curve."""
    fpr, tpr, _ = roc_curve(same, scores, drop_intermediate=False)
    fpr, tpr = fpr[::-1], tpr[::-1]
    return tpr[np.abs(fpr - far).argmin()]


def identification(dataset, features):
    """By loops over probes."""
    templates = dataset.index.groupby("template")[["gallery", "subject"]].first()
    probes = templates[templates["gallery"] == 0]

    def search(probe, galleries):
        mates, others = [], []
        for template, (gallery, subject) in templates.iterrows():
            if gallery in galleries:
                score = features[probe] @ features[template]
                (mates if subject == probes["subject"][probe] else others).append(score)
        return mates, others

    values = {}
    for k in (1, 5, 10):
        found = [search(probe, (1, 2)) for probe in probes.index]
        values[f"top-{k}"] = np.mean([sum(o >= max(mates) for o in others) < k for mates, others in found if mates])
    for fpir in ("0.01", "0.1"):
        rates = []
        for gallery in (1, 2):
            found = [search(probe, (gallery,)) for probe in probes.index]
            alarms = [max(others) for mates, others in found if not mates]
            threshold = min(t for t in alarms if np.mean([alarm > t for alarm in alarms]) <= float(fpir))
            rates.append(np.mean([max(mates) > threshold for mates, _ in found if mates]))
        values[f"TPIR@FPIR={fpir}"] = np.mean(rates)
    return values


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weigh", [False, True])
def test_matches_loops(seed, weigh):
    dataset, embeddings = benchmark(seed=seed)
    features = features_of(dataset, embeddings, weigh)
    scores = [features[a] @ features[b] for a, b, _ in dataset.pairs.itertuples(index=False)]
    expected = {f"TAR@FAR={far}": nearest_on_curve(dataset.pairs["same"], scores, float(far)) for far in FARS}
    expected |= identification(dataset, features)
    actual = metrics_of(dataset, embeddings, block_size=5, detector_weighted=weigh).compute()
    assert list(actual) == list(expected)
    assert {name: value.item() for name, value in actual.items()} == pytest.approx(expected, abs=1e-6)
    assert 0 < expected["TPIR@FPIR=0.01"] <= expected["TPIR@FPIR=0.1"] < 1
    assert expected["top-1"] < expected["top-5"]


def test_the_detector_weighs():
    dataset, embeddings = benchmark()
    assert (
        metrics_of(dataset, embeddings).compute() != metrics_of(dataset, embeddings, detector_weighted=True).compute()
    )


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(2, 60))
def test_rates_are_points_of_the_curve(data, size):
    scores = data.draw(arrays(np.int64, size, elements=st.integers(0, 9))).astype(np.float32)  # with ties
    same = data.draw(arrays(bool, size).filter(lambda same: 0 < same.sum() < len(same)))
    fars = [1e-6, 0.05, 0.1, 0.25, 0.5, 1.0]
    expected = [nearest_on_curve(same, scores, far) for far in fars]
    assert true_accept_rates(scores, same, fars) == pytest.approx(expected)


def test_rates_are_those_of_the_script_but_for_the_points_it_drops():
    rng = np.random.default_rng(0)
    same = rng.random(200_000) < 0.02
    scores = (rng.normal(size=len(same)) + 2 * same).astype(np.float32)
    fpr, tpr, _ = roc_curve(same, scores)
    fpr, tpr = np.flipud(fpr), np.flipud(tpr)
    fars = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    theirs = [tpr[min(zip(abs(fpr - far), range(len(fpr)), strict=True))[1]] for far in fars]
    assert true_accept_rates(scores, same, fars) == pytest.approx(theirs, abs=1.5 / same.sum())


@pytest.mark.parametrize("same", [True, False])
def test_rates_need_both_kinds_of_pairs(same):
    with pytest.raises(ValueError, match=rf"same is true of {3 * same} of 3 pairs"):
        true_accept_rates(np.ones(3, np.float32), np.full(3, same), [0.1])


def test_ties_count_against():
    """Collapsed embeddings accept all pairs or none, and find no mate before the others."""
    dataset, embeddings = benchmark()
    values = metrics_of(dataset, torch.eye(6)[:1].expand(len(embeddings), 6)).compute()
    # Both galleries together hold ten subjects.
    assert {name for name, value in values.items() if value == 1} == {"top-10"}
    assert sum(values.values()) == 1


def test_a_worked_example():
    """A medium of two images weighs as much as one of one; the two images of medium 0 are at right angles."""
    rows = [(1, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0), (2, 0, 1, 0), (3, 0, 2, 1), (4, 0, 0, 2)]
    index = pd.DataFrame(rows, columns=["template", "media", "gallery", "subject"]).assign(other=0)
    embeddings = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [1, 0], [-1, 0]])
    pairs = [(1, 2, True), (1, 3, False), (4, 2, False), (4, 3, False)]
    metrics = metrics_of(Templates(index, pairs), embeddings)
    # Template 1 is at (1.5, 0.5): nearer to its impostor 3 than to its mate 2, at 1 / sqrt(10) = 0.316.
    values = metrics.compute()
    assert values["TAR@FAR=1e-6"] == values["TAR@FAR=1e-1"] == 0
    number, hits = metrics.per_query()
    assert number.tolist() == [1]  # 4 has no mate
    assert (hits["top-1"].tolist(), hits["top-5"].tolist()) == ([0], [1])
    # In gallery 1 the probe without mate, 4, scores 0; gallery 2 has no probe with a mate.
    assert values["TPIR@FPIR=0.01"] == 1


def test_block_size_order_and_repetition_change_nothing():
    dataset, embeddings = benchmark()
    expected = {name: value.item() for name, value in metrics_of(dataset, embeddings).compute().items()}
    metrics = TemplateMetrics(block_size=3)
    metrics.begin(dataset)
    for rows in (torch.arange(len(embeddings)).flip(0), torch.arange(9)):
        metrics.update(embeddings[rows], torch.zeros_like(rows), rows)
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(expected, abs=1e-6)


def test_pairs_are_scored_in_blocks(monkeypatch):
    dataset, embeddings = benchmark()
    expected = metrics_of(dataset, embeddings).compute()
    monkeypatch.setattr("dml.metrics.verification._PAIRS_PER_BLOCK", 7)
    assert metrics_of(dataset, embeddings).compute() == expected


def test_a_template_without_images_scores_nothing():
    dataset, embeddings = benchmark()
    first = dataset.index["template"] == dataset.index["template"].min()
    metrics = TemplateMetrics()
    metrics.begin(dataset)
    rows = torch.from_numpy(np.flatnonzero(~first))
    metrics.update(embeddings[rows], torch.zeros_like(rows), rows)
    zeroed = embeddings.clone()
    zeroed[torch.tensor(first.to_numpy())] = 0
    assert metrics.compute() == metrics_of(dataset, zeroed).compute()


def test_one_to_many_without_mates_is_zero():
    dataset, embeddings = benchmark()
    dataset.index["subject"] += 100 * dataset.index["gallery"]
    with pytest.warns(UserWarning, match=r"'top-1', .* are 0: they need probes with a mate"):
        values = metrics_of(dataset, embeddings).compute()
    assert values["top-1"] == values["TPIR@FPIR=0.1"] == 0
    assert values["TAR@FAR=1e-1"] > 0


def test_an_open_set_without_strangers_is_zero():
    dataset, embeddings = benchmark(num_subjects=8)
    dataset.index["subject"] = 0
    dataset.index.loc[dataset.index["gallery"] > 0, "template"] = dataset.index["gallery"]
    dataset.pairs = pd.DataFrame({"template_a": [1, 1], "template_b": [1, 2], "same": [True, False]})
    with pytest.warns(UserWarning, match=r"^\['TPIR@FPIR=0.01', 'TPIR@FPIR=0.1'\] are 0: .* TPIR others without"):
        values = metrics_of(dataset, embeddings).compute()
    assert values["TPIR@FPIR=0.1"] == 0
    assert values["top-1"] == 1


def test_refuses_other_datasets():
    dataset, _ = benchmark()
    with pytest.raises(ValueError, match=r"dataset is None; TemplateMetrics needs one with read_pairs\(root\)"):
        TemplateMetrics().begin(None)
    plain = SimpleNamespace(
        root=dataset.root, index=dataset.index, levels=dataset.levels, judgements=dataset.judgements
    )
    with pytest.raises(ValueError, match=r"dataset is SimpleNamespace; TemplateMetrics needs one with read_pairs"):
        TemplateMetrics().begin(plain)
    with pytest.raises(ValueError, match=r"lacks columns \['media'\]"):
        TemplateMetrics().begin(Templates(dataset.index.drop(columns="media")))
    with pytest.raises(ValueError, match=r"is one of \[0, 1\]; it must be 1, 2, or 0 for probes"):
        TemplateMetrics().begin(Templates(dataset.index[dataset.index["gallery"] < 2]))
    without_scores = Templates(dataset.index.drop(columns="score"), dataset.pairs)
    TemplateMetrics().begin(without_scores)
    with pytest.raises(ValueError, match=r"lacks columns \['score'\]"):
        TemplateMetrics(detector_weighted=True).begin(without_scores)


def test_refuses_an_ambiguous_gallery():
    dataset, embeddings = benchmark()
    twice = dataset.index.copy()
    twice.loc[twice["gallery"] == 1, "subject"] = 3
    with pytest.raises(ValueError, match="gallery 1 has several templates of subject 3; it must have one of each"):
        TemplateMetrics().begin(Templates(twice))
    mixed = dataset.index.copy()
    mixed.loc[0, "subject"] = 77
    mixed.loc[0, "template"] = mixed.loc[1, "template"]
    with pytest.raises(ValueError, match=rf"template {mixed.loc[1, 'template']} has images of several values of"):
        TemplateMetrics().begin(Templates(mixed))
    dataset.pairs.loc[0, "template_b"] = 9999
    with pytest.raises(ValueError, match=r"1 of \d+ pairs name a template that the dataset's index lacks"):
        metrics_of(dataset, embeddings).compute()


def test_needs_a_dataset():
    metrics = TemplateMetrics()
    metrics.update(torch.eye(2), torch.zeros(2), torch.arange(2))
    with pytest.raises(ValueError, match=r"call begin\(dataset\) before compute"):
        metrics.compute()
