"""Each overlay of a stage builds what it says, alone and with the others."""

from pathlib import Path

import jsonargparse
import numpy as np
import pytest

import dml.stages
from dml.metrics import Search
from dml.models import TimmEmbedder
from dml.stages import DatabaseAugmentation, KReciprocal, PCAWhitening, QueryExpansion, Reranker, Stage
from tests.stages.galleries import embeddings

OVERLAYS = Path(__file__).parents[2] / "experiments" / "stages"
BUILT = {
    "database_augmentation": DatabaseAugmentation,
    "k_reciprocal": KReciprocal,
    "pca_whitening": PCAWhitening,
    "query_expansion": QueryExpansion,
}
VIEWS = {"flip", "multi_scale"}
# Older jsonargparse has this name only, newer another as well.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*(By default only one Jsonargparse|``instantiate_classes)")


@pytest.fixture(autouse=True)
def known(tmp_path, monkeypatch):
    """What the overlay of whitening reads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    np.save("runs/train.npy", embeddings(20, 4).numpy())


def build(*names, **changes):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", action=jsonargparse.ActionConfigFile)
    parser.add_class_arguments(Search, "search")
    parser.add_class_arguments(TimmEmbedder, "model.embedder")
    small = {"name": "test_resnet", "pretrained": "false"}
    options = [f"--model.embedder.{key}={value}" for key, value in small.items()]
    text = {name: (OVERLAYS / f"{name}.yaml").read_text() for name in names}
    for name in names:
        Path(f"{name}.yaml").write_text(text[name].replace("runs/train_embeddings.parquet", "runs/train.npy"))
    config = parser.parse_args([*(f"-c={name}.yaml" for name in names), *options])
    return parser.instantiate_classes(config)


def test_each_has_an_overlay():
    classes = {value for value in vars(dml.stages).values() if isinstance(value, type)} - {Stage, Reranker}
    assert classes == set(BUILT.values())
    assert {path.stem for path in OVERLAYS.glob("*.yaml")} == BUILT.keys() | VIEWS


@pytest.mark.parametrize("name", BUILT)
def test_overlay_builds_its_stage(name):
    built = build(name)
    found = [*built.search.stages, *([] if built.search.reranker is None else [built.search.reranker])]
    assert [type(stage) for stage in found] == [BUILT[name]]


def test_overlays_add_up_in_their_order():
    built = build("pca_whitening", "database_augmentation", "flip", "query_expansion", "k_reciprocal", "multi_scale")
    assert [type(stage) for stage in built.search.stages] == [PCAWhitening, DatabaseAugmentation, QueryExpansion]
    assert isinstance(built.search.reranker, KReciprocal)
    embedder = built.model.embedder
    assert [view.name for view in embedder.multi_scale.views] == [
        f"x{scale}{mirrored}" for scale in ("1", "0.7071", "0.5") for mirrored in ("", " mirrored")
    ]
