"""The pages say what the code does: counts, files, commands and examples."""

import contextlib
import functools
import importlib
import inspect
import io
import itertools
import re
import shlex
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn.functional import normalize
from torch.optim import AdamW

from dml.__main__ import main
from dml.data import datasets
from dml.data.datasets import Glyphs
from dml.memory import CrossBatchMemory
from dml.models import TimmEmbedder
from dml.sweep import read_plan

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOW_TO = DOCS / "how_to"
PAGES = [
    DOCS / "architecture.md",
    DOCS / "scale.md",
    *sorted(HOW_TO.glob("*.md")),
    *sorted((DOCS / "data").glob("*.md")),
]
CARDS = {path: path.read_text() for path in sorted((DOCS / "data").glob("*.md")) if path.stem != "index"}
SMALL = {
    "model.embedder.name": "test_resnet",
    "model.embedder.pretrained": "false",
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
every_dataset = pytest.mark.parametrize("name", datasets.__all__)


def card_of(name):
    """What the card says of a class, and of what is on the same page."""
    (text,) = [text for text in CARDS.values() if f"`dml.data.datasets.{name}`" in text]
    own = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    return text, own[1] if own else text


@every_dataset
def test_card_has_the_counts_that_the_class_compares_with(name):
    cls = getattr(datasets, name)
    _, own = card_of(name)
    for split, numbers in cls.published.items():
        cells = [split, *("-" if number is None else f"{number:,}" for number in numbers)]
        assert f"| {' | '.join(cells)} |" in own
    if cls.published:
        assert f"| split | images | {' | '.join(cls.levels)} |\n" in own


@every_dataset
def test_card_has_layout_levels_and_origin(name):
    cls = getattr(datasets, name)
    text, own = card_of(name)
    documented = re.search(r"::\n\n((?:    .*\n?)+)", inspect.cleandoc(cls.__doc__))
    if documented is not None:
        assert "".join(line[4:] + "\n" for line in documented[1].rstrip().split("\n")) in own
    assert all(f"`{level}`" in text for level in cls.levels)
    assert cls.origin in text
    assert f"`{name}`" in (DOCS / "data" / "index.md").read_text()


def test_card_of_glyphs_has_what_is_drawn():
    defaults = {name: value.default for name, value in inspect.signature(Glyphs.draw).parameters.items()}
    for split, number in zip(("train", "val", "test"), defaults["num_classes"], strict=True):
        assert f"| {split} | {number * defaults['images_per_class']:,} | {number:,} |" in card_of("Glyphs")[1]


@every_page
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    named = re.findall(r"\b((?:experiments|benchmarks|dml)/[\w/]+(?:\.(?:yaml|md|py)|\b(?![\w./(])))", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def commands_of(text):
    """Words of each line of shell that calls ``dml``, after that word."""
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:srun )?dml (.*)|torchrun \S+ \S+ -m dml (.*)", line)
            if found is not None:
                yield shlex.split(found[1] or found[2])


@functools.cache
def options_of(*command):
    """All that ``--help`` of a command lists."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main([*command, "--help"])
    return set(re.findall(r"--[A-Za-z_][\w.]*\w", printed.getvalue())) | {"-c"}


def class_of_loss(words):
    """The class that the words choose, by themselves or by the last file that does."""
    if "--model.loss" in words:
        return words[words.index("--model.loss") + 1]
    files = [ROOT / file for word, file in itertools.pairwise(words) if word == "-c"]
    models = [yaml.safe_load(file.read_text()).get("model", {}) for file in files if file.is_file()]
    return [model["loss"]["class_path"] for model in models if "loss" in model][-1]


def is_known(option, words):
    """Whether a command has an option, or the class whose argument it is."""
    command = words[:2] if words[0] == "data" else words[:1]
    if option in options_of(*command):
        return True
    parts = {"--model.embedder.": TimmEmbedder, "--model.memory.": CrossBatchMemory, "--model.optimizer.": AdamW}
    for prefix, cls in parts.items():
        if option.startswith(prefix):
            return option.removeprefix(prefix) in inspect.signature(cls).parameters
    if option.startswith("--model.loss."):
        module, _, name = class_of_loss(words).rpartition(".")
        own = module.startswith("my_")  # of the page itself, whose test trains with it
        return (
            own
            or option.rpartition(".")[2] in inspect.signature(getattr(importlib.import_module(module), name)).parameters
        )
    return False


@every_page
def test_commands_have_options_and_files_that_exist(page):
    text = page.read_text()
    made_here = set(re.findall(r"[Ss]ave this as `(\S+)`", text)) | (
        {"photos.yaml"} if page.stem == "own_data" else set()
    )
    for words in commands_of(text):
        unknown = [word for word in words if re.match(r"--[a-z]|-c$", word) and not is_known(word, words)]
        assert unknown == [], words
        files = [file for word, file in itertools.pairwise(words) if word in ("-c", "sweep")]
        assert [file for file in files if file not in made_here and not (ROOT / file).is_file()] == [], words


def test_commands_are_found():
    text = (HOW_TO / "many_gpus.md").read_text()
    assert sorted({words[0] for words in commands_of(text)}) == ["fit"]
    assert len(list(commands_of(text))) == 3
    assert not is_known("--data.clases_per_batch", ["fit"])
    assert not is_known("--model.embedder.chunks", ["fit"])
    assert not is_known("--model.loss.temprature", ["fit", "--model.loss", "dml.losses.SmoothAPLoss"])


def code_of(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (HOW_TO / f"{page}.md").read_text(), flags=re.DOTALL)


def overrides(values):
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Drawn photos of 20 products in two categories, 4 of each, in the working directory."""
    generator = np.random.default_rng(0)
    for product in range(20):
        category = "shoes" if product < 10 else "bags"
        folder = tmp_path / "photos" / category / f"{category} {product}"
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_own_data_from_photos_to_a_trained_model(photos, capsys):
    make_table, open_it, *_ = code_of("own_data", "python")
    exec(make_table, {})
    exec(open_it, {})
    assert capsys.readouterr().out.startswith("24 torch.Size([3, 32, 32]) tensor(")  # 6 of the 20 products
    (experiment,) = code_of("own_data", "yaml")
    Path("photos.yaml").write_text(experiment)
    small = {"data.classes_per_batch": 4, "data.num_workers": 0, "trainer.max_epochs": 1}
    main(["fit", "-c=photos.yaml", *overrides({**SMALL, **small, "model.embedder.image_size": 32})])
    assert Path("runs/photos/version_0/checkpoints/best.ckpt").is_file()


def imported(name, source, folder, monkeypatch):
    """A file that a page asks to save beside one's experiments."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def test_own_class_of_data(tmp_path, monkeypatch):
    (tmp_path / "shoes").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / "shoes" / f"{number}.png")
    lines = [f"shoes/{number}.png shoe_{number // 2} train" for number in range(4)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    dataset = imported("my_data", code_of("own_data", "python")[2], tmp_path, monkeypatch).Shoes(tmp_path)
    assert dataset.labels.tolist() == [[0], [0], [1], [1]]
    assert dataset[1]["image"].shape == (3, 32, 32)


@pytest.fixture
def my_losses(tmp_path, monkeypatch):
    return imported("my_losses", code_of("own_loss", "python")[0], tmp_path, monkeypatch)


def test_own_loss_passes_the_checks_of_its_page(my_losses):
    exec(code_of("own_loss", "python")[1], {})
    with pytest.raises(ValueError, match="temperature is 0"):
        my_losses.CentroidLoss(0)
    centre = normalize(torch.tensor([[1.0, 0.2], [1.0, -0.2], [-1.0, 0.2], [-1.0, -0.2]]), dim=1)
    loss = my_losses.CentroidLoss()
    assert loss(centre, torch.tensor([[0], [0], [1], [1]])) < loss(centre, torch.tensor([[0], [1], [0], [1]]))


def test_own_loss_trains(my_losses, glyphs_root):
    command = next(commands_of((HOW_TO / "own_loss.md").read_text()))
    words = [word.replace("experiments/", f"{ROOT}/experiments/") for word in command]
    small = {"data.root": glyphs_root, "data.classes_per_batch": 4, "data.num_workers": 0, "report": "false"}
    main([*words, *overrides({**SMALL, **small, "trainer.fast_dev_run": "true"})])


def test_sweep_of_the_page_is_one(tmp_path):
    (sweep,) = code_of("comparing", "yaml")
    (tmp_path / "temperatures.yaml").write_text(sweep)
    plan = read_plan(tmp_path / "temperatures.yaml")
    assert (plan.metric, plan.is_minimised, len(plan.runs)) == ("val/AP", False, 8)
    for planned in plan.runs:
        files = [file for word, file in zip(planned.words, planned.words[1:], strict=False) if word == "-c"]
        assert all((ROOT / file).is_file() for file in files)


def test_figure_of_the_layers_is_that_of_the_linter():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["importlinter:contract:layers"]["layers"].split("\n")
    depth = {name.strip().removeprefix("dml."): row for row, line in enumerate(lines) for name in line.split("|")}
    drawn = re.findall(r'<text x="\d+" y="(\d+)"[^>]*>(\w+)</text>', (DOCS / "architecture.md").read_text())
    assert {name for _, name in drawn} == {name for name in depth if name}
    for height, name in drawn:
        for other_height, other in drawn:
            assert (int(height) < int(other_height)) == (depth[name] < depth[other]), (name, other)
