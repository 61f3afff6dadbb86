import pytest
import yaml
from jsonargparse import Namespace

from dml.data.datasets import Omniglot
from dml.names import backbone_name, data_name, label, loss_name, run_name, seed

PAIR = {
    "class_path": "dml.losses.PairLoss",
    "init_args": {"loss": {"class_path": "pytorch_metric_learning.losses.TripletMarginLoss", "init_args": {}}},
}
MINER = {"class_path": "pytorch_metric_learning.miners.TripletMarginMiner", "init_args": {"margin": 0.2}}


def config(loss=None, embedder=None, **changes):
    return {
        "seed_everything": 3,
        "data": {"dataset": "dml.data.datasets.Omniglot"},
        "model": {
            "loss": loss or {"class_path": "dml.losses.SmoothAPLoss", "init_args": {"temperature": 0.02}},
            "embedder": embedder or {"class_path": "dml.models.TimmEmbedder", "init_args": {"name": "resnet10t"}},
        },
        **changes,
    }


def arguments(**changes):
    unset = {"name": None, "group": None, "job_type": None, "tags": None, "project": "dml"}
    return Namespace(**{**unset, **changes})


@pytest.fixture(autouse=True)
def no_names_of_a_user(monkeypatch):
    for name in ("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)


def test_a_run_is_called_by_what_distinguishes_it():
    assert run_name(config()) == "Omniglot SmoothAPLoss resnet10t seed 3"


def test_a_class_is_as_good_as_its_path():
    assert data_name(config(data={"dataset": Omniglot})) == "Omniglot"


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ({"class_path": "my_losses.ArctanAPLoss"}, "ArctanAPLoss"),
        (PAIR, "TripletMarginLoss"),
        (
            {**PAIR, "init_args": {**PAIR["init_args"], "miner": MINER}},
            "TripletMarginLoss with TripletMarginMiner",
        ),
        (
            {
                "class_path": "dml.losses.SiMix",
                "init_args": {"loss": {"class_path": "dml.losses.RecallAtKLoss"}, "seed": 0},
            },
            "RecallAtKLoss with SiMix",
        ),
        (
            {
                "class_path": "dml.losses.WeightedSum",
                "init_args": {"losses": [{"class_path": "dml.losses.SupAPLoss"}, PAIR], "weights": [1, 2]},
            },
            "SupAPLoss+TripletMarginLoss",
        ),
    ],
    ids=["own", "pair", "miner", "mixed", "sum"],
)
def test_a_loss_is_called_by_what_it_computes(loss, name):
    assert loss_name(config(loss)) == name


def test_an_embedder_without_a_name_is_called_by_its_class():
    assert backbone_name(config(embedder={"class_path": "mine.Embedder", "init_args": {"depth": 3}})) == "Embedder"
    assert backbone_name(config(embedder={"class_path": "mine.Embedder"})) == "Embedder"


def test_no_seed_is_seed_0():
    assert seed(config(seed_everything=None)) == 0


def test_what_nobody_has_set_is_set():
    given = arguments()
    label([given], config())
    assert given == Namespace(
        name="Omniglot SmoothAPLoss resnet10t seed 3",
        group="SmoothAPLoss",
        job_type="Omniglot",
        tags=["Omniglot", "SmoothAPLoss", "resnet10t"],
        project="dml",
    )


def test_what_is_set_stays():
    given = arguments(name="mine", group="ours", job_type="trial", tags=["paper", "resnet10t"])
    label([given], config())
    assert (given.name, given.group, given.job_type) == ("mine", "ours", "trial")
    assert given.tags == ["paper", "resnet10t", "Omniglot", "SmoothAPLoss"]


@pytest.mark.parametrize(
    ("variable", "key"),
    [("WANDB_NAME", "name"), ("WANDB_RUN_GROUP", "group"), ("WANDB_JOB_TYPE", "job_type"), ("WANDB_TAGS", "tags")],
)
def test_what_the_environment_says_stays(monkeypatch, variable, key):
    monkeypatch.setenv(variable, "mine")
    given = arguments()
    label([given], config())
    assert given[key] is None  # by which W&B takes the variable
    assert None not in [value for name, value in given.items() if name != key]


def test_a_tag_is_no_longer_than_tags_may_be():
    terms = [{"class_path": f"losses.{'Very' * 8}Long{number}Loss"} for number in range(3)]
    given = arguments()
    label([given], config({"class_path": "dml.losses.WeightedSum", "init_args": {"losses": terms}}))
    assert max(len(tag) for tag in given.tags) == 64
    assert given.group == loss_name(config({"class_path": "dml.losses.WeightedSum", "init_args": {"losses": terms}}))


@pytest.mark.parametrize("name", ["roadmap", "triplet_margin", "recall_at_k_simix", "multi_similarity"])
def test_overlays_have_names(name, request):
    overlay = yaml.safe_load((request.config.rootpath / "experiments" / "losses" / f"{name}.yaml").read_text())
    expected = {
        "roadmap": "SupAPLoss+CalibrationLoss",
        "triplet_margin": "TripletMarginLoss with TripletMarginMiner",
        "recall_at_k_simix": "RecallAtKLoss with SiMix",
        "multi_similarity": "MultiSimilarityLoss",
    }
    assert loss_name(overlay) == expected[name]
