"""What a configuration says: how a run was tested, and what it was trained with."""

import copy

import pytest

from dml.compare.protocol import flat, hyperparameters, monitored, protocol
from dml.compare.variants import settings_apart
from tests.compare.made import config


def _with(path, value, **settings):
    changed = copy.deepcopy(config(**settings))
    *parents, last = path.split(".")
    inner = changed
    for name in parents:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    inner[last] = value
    return changed


_EMBEDDER = "model.embedder.init_args"
_METRICS = "trainer.callbacks.0.init_args.metrics"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.dataset", "dml.data.datasets.GroceryStore"),
        ("data.test_split", "val"),
        ("data.levels", ["alphabet"]),
        ("data.eval_transforms", [{"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": 64}}]),
        (f"{_EMBEDDER}.image_size", 48),
        (f"{_EMBEDDER}.flip", True),
        (f"{_EMBEDDER}.scales", [1.0, 0.5]),
        (f"{_METRICS}.class_path", "dml.metrics.HierarchicalMetrics"),
        (f"{_METRICS}.init_args.level", 1),
        (f"{_METRICS}.init_args.search", {"ties": "optimistic"}),
        ("search.stages", [{"class_path": "dml.stages.QueryExpansion", "init_args": {"k": 50}}]),
        ("search.distractors", "million.npy"),
        ("trainer.limit_test_batches", 2),
        ("trainer.limit_test_batches", 1),  # one batch, where 1.0 is all of them
    ],
)
def test_what_test_values_depend_on(path, value):
    assert protocol(_with(path, value)) != protocol(config())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.root", "elsewhere"),
        ("data.num_workers", 7),
        ("data.classes_per_batch", 8),
        (f"{_METRICS}.init_args.recall_at", [1, 10]),
        (f"{_METRICS}.init_args.block_size", 8),
        (f"{_METRICS}.init_args.search", {"ties": "pessimistic", "keep_on": "cpu"}),
        ("search.keep_on", "cpu"),
        ("model.loss.init_args.temperature", 1.0),
        ("seed_everything", 5),
        (f"{_EMBEDDER}.scales", [1.0]),
        ("trainer.limit_test_batches", 1.0),
    ],
)
def test_what_test_values_do_not_depend_on(path, value):
    assert protocol(_with(path, value)) == protocol(config())


def test_a_search_of_its_own_is_that_of_the_run():
    of_metric = _with(f"{_METRICS}.init_args.search", {"ties": "optimistic"})
    assert protocol(of_metric)["search"]["ties"] == "optimistic"
    of_both = {**of_metric, "search": {**of_metric["search"], "ties": "expected"}}
    assert protocol(of_both)["search"]["ties"] == "expected"


def test_distractors_are_a_file_wherever_it_is():
    assert protocol(_with("search.distractors", "/there/a.npy")) == protocol(_with("search.distractors", "a.npy"))


def test_a_stage_learns_from_the_embeddings_of_its_run():
    def whitened(embeddings, power):
        arguments = {"embeddings": embeddings, "power": power}
        stages = [{"class_path": "dml.stages.PCAWhitening", "init_args": arguments}, "dml.stages.Other"]
        return protocol(_with("search.stages", stages))

    assert whitened("runs/a/train.parquet", 0.5) == whitened("runs/b/train.parquet", 0.5)
    assert whitened("runs/a/train.parquet", 0.5) != whitened("runs/a/train.parquet", 0.25)


def test_a_data_set_that_is_a_folder_is_told_by_its_folder():
    mine, others = (
        _with("data.dataset", "dml.data.datasets.ImageFolderDataset", root=root) for root in ("/a/mine", "/a/others")
    )
    assert protocol(mine)["root"] == "mine"
    assert protocol(mine) != protocol(others)


def test_what_is_held_out_matters_where_it_is_tested():
    changed = _with("data.val_classes", 0.5)
    assert protocol(changed) == protocol(config())
    changed["data"]["test_split"] = "val"
    assert protocol(changed) != protocol(_with("data.test_split", "val"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.root", "elsewhere"),
        ("data.num_workers", 7),
        ("seed_everything", 5),
        ("trainer.logger", None),
        ("trainer.devices", 4),
        ("model.memory", None),  # an older configuration does not have it
        ("data.sampler", None),
        ("search.ties", "optimistic"),
        ("trainer.limit_val_batches", 1.0),
        ("trainer.limit_train_batches", 1.0),
    ],
)
def test_what_makes_no_other_model(path, value):
    assert hyperparameters(_with(path, value)) == hyperparameters(config())


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("model.loss.init_args.temperature", 0.5, "model.loss.temperature"),
        ("model.optimizer.init_args.lr", 0.5, "model.optimizer.lr"),
        ("model.optimizer.class_path", "torch.optim.SGD", "model.optimizer"),
        ("data.val_classes", 0.5, "data.val_classes"),
        ("trainer.max_epochs", 9, "trainer.max_epochs"),
        ("trainer.callbacks.1.class_path", "pytorch_lightning.callbacks.EMAWeightAveraging", "callbacks.0"),
    ],
)
def test_what_makes_another_model(path, value, name):
    changed = hyperparameters(_with(path, value))
    assert changed.get(name) == value
    assert changed != hyperparameters(config())


def test_the_seed_of_the_sampler_is_that_of_the_run():
    samplers = (
        {"class_path": "dml.data.ClassBalancedSampler", "init_args": {"seed": seed, "rank": 0, "num_replicas": 1}}
        for seed in (0, 1)
    )
    one, other = (hyperparameters(_with("data.sampler", sampler)) for sampler in samplers)
    assert one == other
    assert one["data.sampler"] == "dml.data.ClassBalancedSampler"


def test_by_what_the_tested_checkpoint_is_chosen():
    assert monitored(config()) == ("val/AP", True)
    assert monitored(_with("trainer.callbacks.1.init_args.mode", "min")) == ("val/AP", False)
    assert monitored(_with("trainer.callbacks", None)) == (None, True)
    one = config()["trainer"]["callbacks"][1]
    assert monitored(_with("trainer.callbacks", one)) == ("val/AP", True)


def test_names_of_terms_have_numbers():
    terms = [{"class_path": "dml.losses.SupAPLoss", "init_args": {"tau": 0.01}}, {"class_path": "B", "init_args": {}}]
    assert flat({"loss": {"class_path": "Sum", "init_args": {"losses": terms, "weights": [1, 2]}}}) == {
        "loss": "Sum",
        "loss.losses.0": "dml.losses.SupAPLoss",
        "loss.losses.0.tau": 0.01,
        "loss.losses.1": "B",
        "loss.weights": [1, 2],
    }


def test_settings_are_called_by_as_little_as_tells_them_apart():
    settings = [
        {"model.loss.lr": 1, "model.optimizer.lr": 1, "model.optimizer": "torch.optim.SGD", "same": 0, "a.b": [1]},
        {"model.loss.lr": 2, "model.optimizer.lr": 2, "model.optimizer": "torch.optim.AdamW", "same": 0},
    ]
    assert settings_apart(settings) == [
        "loss.lr=1, optimizer.lr=1, optimizer=SGD, b=[1]",
        "loss.lr=2, optimizer.lr=2, optimizer=AdamW, b=none",
    ]


def test_only_names_of_classes_are_cut():
    values = ["a/b.yaml", "resnet50.a1_in1k", "v1.Of words", "0.5.X", "dml.losses.SupAPLoss", "SupAPLoss"]
    texts = settings_apart([{"s": value} for value in values])
    assert texts == [*(f"s={value}" for value in values[:4]), "s=SupAPLoss (#5)", "s=SupAPLoss (#6)"]


def test_texts_of_many_settings_stay_apart():
    settings = [{f"s{number}": 0 for number in range(6)} | {"s5": value} for value in (1, 2)]
    settings.append(dict.fromkeys((f"s{number}" for number in range(6)), 9))
    texts = settings_apart(settings)
    assert len(set(texts)) == 3
    assert texts[2] == "s0=9, s1=9, s2=9, s3=9, 2 more"
    assert settings_apart(settings[:1]) == [""]
