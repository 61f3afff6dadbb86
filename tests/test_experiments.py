"""Every experiment, with every loss and as each recipe, trains for a batch on a miniature of its data; every evaluation
is made.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml

import dml.data.datasets
from dml.__main__ import main
from dml.models import TimmEmbedder
from tests.data.datasets.miniatures import MINIATURES, make_revisited_oxford

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SOP = EXPERIMENTS / "sop.yaml"
BASES = sorted(EXPERIMENTS.glob("*.yaml"))
LEVELS = EXPERIMENTS / "study" / "levels.yaml"
STUDIED = sorted(set((EXPERIMENTS / "study").glob("*.yaml")) - {LEVELS})
LOSSES = sorted((EXPERIMENTS / "losses").glob("*.yaml"))
EVALUATIONS = sorted((EXPERIMENTS / "evaluation").glob("*.yaml"))
STAGES = sorted((EXPERIMENTS / "stages").glob("*.yaml"))
RECIPES = sorted((EXPERIMENTS / "recipes").glob("*/*.yaml"))
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
REPORTED = {
    "ClusteringMetrics": "test/AMI",
    "GoogleLandmarkMetrics": "test/mAP@100",
    "HierarchicalMetrics": "test/H-AP",
    "LandmarkMetrics": "test/mAP_M",
    "ReidentificationMetrics": "test/CMC@1",
    "TemplateMetrics": "test/TAR@FAR",
}

SMALL = {
    "data.classes_per_batch": 4,
    "data.samples_per_class": 2,
    "data.num_workers": 0,
    "model.embedder.name": "test_resnet",
    "model.embedder.pretrained": "false",
    "model.embedder.image_size": 64,
    "report": "false",
    "trainer.fast_dev_run": "true",
    "trainer.precision": "32-true",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
}


@pytest.fixture(autouse=True)
def one_thread():
    """For networks as small as these, sharing the work takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def roots(tmp_path_factory, glyphs_root):
    """A miniature of each dataset, by the name of its class."""
    folders = {name: tmp_path_factory.mktemp(name) for name in MINIATURES}
    for name, make in MINIATURES.items():
        make(folders[name])
    return {**folders, "Glyphs": glyphs_root}


def run(roots, base, *overlays, small=SMALL):
    name = yaml.safe_load(base.read_text())["data"]["dataset"].rpartition(".")[2]
    overrides = [f"--{key}={value}" for key, value in {**small, "data.root": roots[name]}.items()]
    main(["fit", f"-c={base}", *(f"-c={overlay}" for overlay in overlays), *overrides])


def base_of(recipe):
    """The base that the command in the recipe's head names; it names the recipe itself too."""
    head = recipe.read_text().replace("\\\n#", "")
    own = recipe.relative_to(EXPERIMENTS.parent)
    (base,) = re.findall(rf"^# dml fit -c experiments/(\w+)\.yaml +-c {own}$", head, flags=re.MULTILINE)
    return EXPERIMENTS / f"{base}.yaml"


def proxies_of(model):
    return [loss["init_args"] for loss in losses_of(model) if "num_classes" in loss["init_args"]]


def losses_of(model):
    return model["loss"]["init_args"].get("losses", [model["loss"]])


def smaller(size):
    """224 to 64, and others in proportion."""
    return size * 2 // 7 if isinstance(size, int) else [smaller(side) for side in size]


def shrink(recipe, folder):
    """The recipe with a small network of the same kind, small images and chunks, and fewer proxies."""
    config = yaml.safe_load(recipe.read_text())
    embedder = config["model"]["embedder"]
    is_transformer = embedder.get("pooling") == "cls"
    embedder["name"] = "test_vit" if is_transformer else "test_resnet"
    embedder["embedding_dim"] = 64 if embedder.get("head") == "none" else 16
    for key, value in {"chunk_size": 5, "whitening_dim": 4}.items():
        if key in embedder:
            embedder[key] = value
    for proxies in proxies_of(config["model"]):
        proxies.update(num_classes=64, embedding_dim=16)
    for step in [*config["data"].get("train_transforms", ()), *config["data"].get("eval_transforms", ())]:
        if "size" in step.get("init_args", {}):
            step["init_args"]["size"] = smaller(step["init_args"]["size"])
    overlay = folder / "recipe.yaml"
    overlay.write_text(yaml.safe_dump(config))
    size = smaller(embedder.get("image_size", 224))
    return overlay, {**SMALL, "model.embedder.name": embedder["name"], "model.embedder.image_size": size}


@pytest.mark.parametrize("base", BASES, ids=lambda path: path.stem)
def test_experiment_runs(base, roots, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(roots, base)


@pytest.mark.parametrize("base", STUDIED, ids=lambda path: path.stem)
def test_study_runs(base, roots, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(roots, base, LEVELS)


@pytest.mark.parametrize("name", ["cub200", "dyml_animal", "inaturalist"])
def test_of_several_levels_the_finest_chooses_the_epoch(name, roots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = {"trainer.fast_dev_run": "false", "trainer.limit_train_batches": 1, "trainer.max_epochs": 1}
    small = {**SMALL, **whole, "trainer.logger": "false", "trainer.log_every_n_steps": 1}
    run(roots, EXPERIMENTS / f"{name}.yaml", small=small)
    (path,) = tmp_path.rglob("best.ckpt")
    states = torch.load(path, weights_only=True)["callbacks"]
    (chosen,) = [state for callback, state in states.items() if callback.startswith("ModelCheckpoint")]
    assert chosen["monitor"] == "val/AP"
    measured = states["MetricsTable"]
    assert chosen["best_model_score"] == pytest.approx(measured["AP"])
    assert {"H-AP", "nDCG", "ASI", "AP_mean", "R@1_mean"} <= measured.keys()
    assert len([measure for measure in measured if measure.startswith("AP_")]) >= 2  # of a coarser level, and the mean


@pytest.mark.parametrize("overlay", LOSSES, ids=lambda path: path.stem)
def test_loss_runs(overlay, roots, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(roots, SOP, overlay)


def overrides(**changes):
    """Arguments of ``test`` or ``predict`` on a miniature, without a logger."""
    arguments = {**SMALL, "trainer.fast_dev_run": "false", "trainer.logger": "false", **changes}
    return [f"--{key}={value}" for key, value in arguments.items() if key != "report"]


@pytest.mark.parametrize("overlay", EVALUATIONS, ids=lambda path: path.stem)
def test_evaluation_runs(overlay, roots, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(overlay.read_text())
    name = config.get("data", yaml.safe_load(SOP.read_text())["data"])["dataset"].rpartition(".")[2]
    metrics = config["trainer"]["callbacks"][0]["init_args"]["metrics"]["class_path"].rpartition(".")[2]
    if metrics == "ClusteringMetrics":
        pytest.importorskip("faiss")
    main(["test", f"-c={SOP}", f"-c={overlay}", *overrides(**{"data.root": roots[name]})])
    assert REPORTED[metrics] in capsys.readouterr().out


def products(roots):
    """The data, and embeddings of fewer dimensions than there are images: whitening needs that."""
    return {"data.root": roots["StanfordOnlineProducts"], "model.embedder.embedding_dim": 16}


@pytest.fixture(scope="module")
def evaluate(roots, tmp_path_factory):
    """Evaluate an untrained model, always the same, and give what each query got."""

    def evaluate(*overlays):
        folder = tmp_path_factory.mktemp("evaluated")
        configs = [SOP, EXPERIMENTS / "evaluation" / "hierarchical.yaml", *overlays]
        settings = overrides(**products(roots), **{"trainer.default_root_dir": folder})
        main(["test", *(f"-c={config}" for config in configs), *settings])
        return pd.read_parquet(folder / "per_query" / "test.parquet")

    return evaluate


@pytest.fixture(scope="module")
def plain(evaluate):
    return evaluate()


def embed_training_images(roots, folder):
    """As the head of pca_whitening.yaml says."""
    path = folder / "runs" / "train_embeddings.parquet"
    changes = {"data.predict_split": "train", "embeddings.path": path}
    main(["predict", f"-c={SOP}", *overrides(**products(roots), **changes)])


def costs(caplog):
    """What is said of the last evaluation's stages and views to have cost something, in order."""
    (said,) = [record.message for record in caplog.records if record.message.startswith("test: ")]
    return [re.fullmatch(r"(.+) \d+\.\d s", part)[1] for part in said.removeprefix("test: ").split(", ")]


def parts_of(overlay):
    """The names that the cost of an overlay goes by."""
    config = yaml.safe_load(overlay.read_text())
    search, embedder = config.get("search", {}), config.get("model", {}).get("embedder", {})
    stages = [stage["class_path"].rpartition(".")[2] for stage in search.get("stages+", ())]
    views = [f"x{scale:.4g}" for scale in embedder.get("scales", [1.0])]
    views += [f"{view} mirrored" for view in views if embedder.get("flip")]
    reranker = [search["reranker"]["class_path"].rpartition(".")[2]] if "reranker" in search else []
    names = [f"{number}. {stage}" for number, stage in enumerate(stages, start=1)] + reranker
    return names + ([f"view {view}" for view in views] if embedder else [])


@pytest.mark.parametrize("overlay", STAGES, ids=lambda path: path.stem)
def test_stage_is_applied(overlay, roots, evaluate, plain, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    if overlay.stem == "pca_whitening":
        embed_training_images(roots, tmp_path)
    found = evaluate(overlay)
    assert costs(caplog) == parts_of(overlay)
    assert found["index"].tolist() == plain["index"].tolist()
    scores = ["first_right_score", "first_wrong_score"]
    assert not (found[scores] == plain[scores]).to_numpy().any()


def test_no_stage_costs_nothing(evaluate, plain, caplog):
    pd.testing.assert_frame_equal(evaluate(), plain)
    assert not [record for record in caplog.records if record.message.startswith("test: ")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["database_augmentation", "query_expansion"], ["1. DatabaseAugmentation", "2. QueryExpansion"]),
        (["query_expansion", "database_augmentation"], ["1. QueryExpansion", "2. DatabaseAugmentation"]),
        (["k_reciprocal", "query_expansion"], ["1. QueryExpansion", "KReciprocal"]),
        (
            ["flip", "multi_scale", "database_augmentation"],
            [f"view x{s}{m}" for s in ("1", "0.7071", "0.5") for m in ("", " mirrored")] + ["1. DatabaseAugmentation"],
        ),
    ],
    ids=["gallery first", "queries first", "reranker last", "views"],
)
def test_stages_add_up(names, expected, evaluate, caplog):
    evaluate(*(EXPERIMENTS / "stages" / f"{name}.yaml" for name in names))
    assert costs(caplog) == expected


def test_distractors_of_a_file_are_those_of_the_split(monkeypatch, tmp_path):
    """By the commands in the head of the overlay."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(EXPERIMENTS)
    make_revisited_oxford(tmp_path / "data" / "revisitop", num_distractors=8)
    head = (EXPERIMENTS / "evaluation" / "roxford.yaml").read_text().replace("\\\n#", "")
    plain, predict, search = re.findall(r"^# dml (\w+) --ckpt_path \S+ +(.*)$", head, flags=re.MULTILINE)
    for title, (command, words) in {"plain": plain, "predict": predict, "search": search}.items():
        main([command, f"-c={SOP}", *words.split(), *overrides(**{"trainer.default_root_dir": title})])
    split = {"data.test_split": "test_with_distractors", "trainer.default_root_dir": "split"}
    main(["test", f"-c={SOP}", *plain[1].split(), *overrides(**split)])
    found = {title: pd.read_parquet(f"{title}/per_query/test.parquet") for title in ("plain", "search", "split")}
    measures = found["plain"].attrs["measures"]
    assert np.load("distractors.npy").shape[0] == 8
    assert found["search"].attrs["distractors"] == "distractors.npy"
    pd.testing.assert_frame_equal(found["search"][measures], found["split"][measures])
    assert (found["search"]["mAP_M"] < found["plain"]["mAP_M"]).any()


def test_rparis_is_the_twin_of_roxford():
    oxford, paris = ((EXPERIMENTS / "evaluation" / f"{name}.yaml").read_text() for name in ("roxford", "rparis"))
    assert oxford.replace("roxford", "rparis").replace("Oxford", "Paris") == paris


@every_recipe
def test_recipe_runs(recipe, roots, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    overlay, small = shrink(recipe, tmp_path)
    run(roots, base_of(recipe), overlay, small=small)


@every_recipe
def test_recipe_fits_together(recipe):
    """What is said in two places is said alike."""
    config = yaml.safe_load(recipe.read_text())
    data, model, trainer = config["data"], config["model"], config.get("trainer", {})
    assert not {"callbacks", "logger"} & set(trainer)  # lists are replaced, and the base's would be lost
    size = model["embedder"].get("image_size", 224)
    for transforms in (data.get("train_transforms"), data.get("eval_transforms")):
        sizes = [step["init_args"]["size"] for step in transforms or () if "size" in step.get("init_args", {})]
        assert not sizes or sizes[-1] in (size, [size, size])
    assert model["embedder"].get("chunk_size", 1) <= data["classes_per_batch"] * data["samples_per_class"]
    assert all(proxies["embedding_dim"] == model["embedder"]["embedding_dim"] for proxies in proxies_of(model))
    schedule = model.get("schedule") or {}
    if schedule.get("class_path") == "dml.schedules.MultiStep":
        assert schedule["init_args"]["length"] == trainer["max_epochs"]
    frozen = model.get("groups", {}).get("backbone", {}).get("frozen", 0) * trainer.get("max_epochs", 1)
    assert frozen == pytest.approx(round(frozen))  # whole epochs


@every_recipe
def test_recipe_takes_over_no_option_unseen(recipe):
    """What the base says of a class holds on where the recipe names the same class."""
    before, after = (yaml.safe_load(path.read_text())["model"] for path in (base_of(recipe), recipe))
    for part in ("loss", "optimizer", "schedule"):
        old, new = before[part], after.get(part)
        if new and old["class_path"] == new["class_path"]:
            assert set(old.get("init_args", {})) <= set(new["init_args"]), part


@every_recipe
def test_recipe_has_a_proxy_for_each_class_that_trains(recipe):
    config = yaml.safe_load(recipe.read_text())
    data = {**yaml.safe_load(base_of(recipe).read_text())["data"], **config["data"]}
    dataset = getattr(dml.data.datasets, data["dataset"].rpartition(".")[2])
    classes = dataset.published[data.get("train_split", "train")][1]
    for proxies in proxies_of(config["model"]):
        assert proxies["num_classes"] == classes - round((data["val_classes"] or 0) * classes)


@every_recipe
def test_recipe_has_a_backbone_that_it_can_have(recipe):
    embedder = yaml.safe_load(recipe.read_text())["model"]["embedder"]
    starts_from_scratch = embedder.pop("pretrained", True) is False
    assert starts_from_scratch or timm.is_model_pretrained(embedder["name"])
    with torch.device("meta"):
        assert TimmEmbedder(**embedder, pretrained=False).embedding_dim == embedder["embedding_dim"]


@every_recipe
def test_recipe_says_where_it_comes_from(recipe):
    head = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Source: https://github.com/") for line in head)
    assert any(line.startswith("# Differs: ") for line in head)
    assert head[-1] == "# Hardware, hours, test AP, test R@1, run link: not run yet."


def test_the_list_of_recipes_has_each_with_its_batch_and_epochs():
    text = (EXPERIMENTS / "recipes" / "README.md").read_text()
    listed = re.findall(r"^\| `(\S+)` \| [^|]+ \| ([\d,]+) = ([\d,]+) x (\d+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    found = []
    for recipe in RECIPES:
        config = yaml.safe_load(recipe.read_text())
        classes, samples = config["data"]["classes_per_batch"], config["data"]["samples_per_class"]
        epochs = config.get("trainer", {}).get("max_epochs", "the base's")
        key = f"{recipe.parent.name}/{recipe.stem}"
        found.append((key, f"{classes * samples:,}", f"{classes:,}", str(samples), str(epochs)))
    assert sorted(listed) == sorted(found)
