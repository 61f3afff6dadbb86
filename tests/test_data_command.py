"""``dml data``, as a user types it."""

import tarfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from dml.__main__ import main
from tests.data.datasets.miniatures import MINIATURES, make_omniglot, make_sop

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SOP = f"-c={EXPERIMENTS / 'sop.yaml'}"
DATASET = "--data.dataset=dml.data.datasets.StanfordOnlineProducts"


@pytest.fixture(autouse=True)
def in_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def root(tmp_path):
    """Two products of each of two categories to train, as many to test, with two images each."""
    return make_sop(tmp_path / "sop", products_per_category=2, images_per_product=2)


def dml_data(*words):
    with pytest.raises(SystemExit) as ended:
        main(["data", *map(str, words)])
    return ended.value.code


def mistake(capsys, *words):
    """The one line that is said."""
    assert dml_data(*words) == 2
    said = capsys.readouterr().err
    (line,) = said.splitlines()
    assert line.startswith("dml: error: ")
    return line


@pytest.mark.parametrize("base", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_data_of_any_experiment_can_be_described(base, glyphs_root, tmp_path, capsys):
    data = yaml.safe_load(base.read_text())["data"]
    name = data["dataset"].rpartition(".")[2]
    folder = glyphs_root if name == "Glyphs" else MINIATURES[name](tmp_path / "data")
    assert dml_data("describe", "-c", base, f"--data.root={folder}") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{name} in {folder}\n")
    assert ("with val_classes" in printed) == (data.get("val_classes") is not None)


def test_describe_an_experiment_with_its_loss_and_an_epoch(root, capsys):
    loss = EXPERIMENTS / "losses" / "smooth_ap.yaml"
    options = ["--data.root", root, "--data.classes_per_batch=2", "--data.samples_per_class", 2, "--sampler"]
    assert dml_data("describe", SOP, "-c", loss, *options) == 0
    assert "an epoch of ClassBalancedSampler on train" in capsys.readouterr().out


def test_a_later_config_wins_and_an_option_wins_over_both(root, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(f"data: {{root: {root}, val_classes: 0.5}}")
    assert dml_data("describe", SOP, "--config=mine.yaml") == 0
    assert "with val_classes 0.5" in capsys.readouterr().out
    assert dml_data("describe", "--config", "mine.yaml", DATASET, "--data.val_classes=0.25") == 0
    assert "with val_classes 0.25" in capsys.readouterr().out


def test_describe_needs_no_config(root, capsys):
    words = [DATASET, f"--data.root={root}", "--sampler", "--data.classes_per_batch=2", "--data.levels=[category]"]
    assert dml_data("describe", *words, "--data.sampler=BalancedSampler") == 0
    printed = capsys.readouterr().out
    assert "an epoch of BalancedSampler on train" in printed
    assert "other columns, which data.levels can make levels of: product" in printed


def test_verify_an_intact_data_set(root, capsys):
    assert dml_data("verify", SOP, f"--data.root={root}", "--data.num_workers=1", "--report=report.csv") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 problems in 16 images"
    assert pd.read_csv("report.csv").columns.tolist() == ["path", "split", "problem", "detail"]


def test_verify_shows_and_reports_problems(root, capsys):
    train, test = (
        [line.split()[3] for line in (root / f"Ebay_{s}.txt").read_text().splitlines()[1:]] for s in ("train", "test")
    )
    (root / train[0]).unlink()
    (root / train[1]).write_text("404")
    (root / test[0]).write_bytes((root / train[2]).read_bytes())
    assert dml_data("verify", SOP, f"--data.root={root}", "--report=report.csv") == 1
    printed = capsys.readouterr().out
    assert "4 problems in 16 images" in printed
    report = pd.read_csv("report.csv")
    expected = {(train[0], "missing"), (train[1], "unreadable"), (train[2], "duplicate"), (test[0], "duplicate")}
    assert set(zip(report["path"], report["problem"], strict=True)) == expected
    for path, problem in expected:
        assert any(path in line and problem in line for line in printed.splitlines())


def folder_of(tmp_path, number, suffix="jpg"):
    folder = tmp_path / "photos" / "class [a]"
    folder.mkdir(parents=True)
    for image in range(number):
        (folder / f"{image:02}.{suffix}").write_text(str(image))
    return ["--data.dataset=dml.data.datasets.ImageFolderDataset", f"--data.root={tmp_path / 'photos'}"]


def test_verify_shows_twenty_and_says_where_the_rest_is(tmp_path, capsys):
    words = folder_of(tmp_path, 23)
    assert dml_data("verify", *words) == 1
    printed = capsys.readouterr().out
    assert sum("class [a]/" in line for line in printed.splitlines()) == 20  # brackets are no markup
    assert "and 3 more; --report FILE.csv writes all" in printed
    assert dml_data("verify", *words, "--report", "all.csv") == 1
    assert "and 3 more, in all.csv" in capsys.readouterr().out
    assert len(pd.read_csv("all.csv")) == 23


def test_prepare_and_use_the_copy(root, capsys):
    options = ["--out", "small", "--shorter_side=32", "--quality=80", "--data.num_workers=1"]
    assert dml_data("prepare", SOP, f"--data.root={root}", *options) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1] == "prepared; 0 images could not be read. Use it as --data.root small"
    )
    assert {min(Image.open(path).size) for path in Path("small").rglob("*.JPG")} == {32}
    counts = []
    for folder in (root, "small"):
        assert dml_data("describe", SOP, "--data.root", folder) == 0
        counts.append(capsys.readouterr().out.partition("\n")[2])
    assert counts[0] == counts[1]
    assert dml_data("verify", SOP, "--data.root=small", "--data.num_workers=1") == 0


def test_prepare_of_a_list_says_where_the_copy_of_the_list_is(root, tmp_path, capsys):
    frame = pd.DataFrame({"path": sorted(path.name for path in (root / "bicycle_final").iterdir())})
    frame.assign(product="one").to_csv(root / "bicycle_final" / "mine.csv", index=False)
    dataset = "--data.dataset=dml.data.datasets.DataFrameDataset"
    options = [f"--data.root={root / 'bicycle_final' / 'mine.csv'}", "--out=small", "--data.num_workers=1"]
    assert dml_data("prepare", dataset, *options) == 0
    copy = capsys.readouterr().out.split()[-1]
    assert dml_data("verify", dataset, "--data.root", copy, "--data.num_workers=1") == 0


def test_prepare_unpacks_archives(tmp_path):
    make_omniglot(tmp_path / "drawn")
    (tmp_path / "omniglot").mkdir()
    for name in ("images_background", "images_evaluation"):
        with tarfile.open(tmp_path / "omniglot" / f"{name}.tgz", "w:gz") as archive:
            archive.add(tmp_path / "drawn" / name, name)
    config = f"-c={EXPERIMENTS / 'omniglot.yaml'}"
    assert dml_data("prepare", config, "--data.root=omniglot", "--out=small", "--shorter_side=64") == 0
    assert len(list(Path("small").rglob("*.png"))) == len(list(Path("omniglot").rglob("*.png"))) == 120


def test_prepare_names_what_has_no_copy(tmp_path, capsys):
    assert dml_data("prepare", *folder_of(tmp_path, 23), "--out=small") == 1
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("no copy of ") and "class [a]" in line for line in printed) == 20
    assert printed[-1].startswith("prepared; 23 images could not be read.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["describe", "-c", "nowhere.yaml"], "config is 'nowhere.yaml'; there is no such file"),
        (["describe", "-c"], "there is no such file"),
        (["describe", "-c=silent.yaml"], "config is 'silent.yaml', which says nothing of the data"),
        (["describe", "-c=broken.yaml"], "config is 'broken.yaml', which is not YAML"),
        (["describe"], "data.dataset"),
        (["describe", SOP, "--data.root=nowhere"], "root is 'nowhere', which must be a folder with Ebay_train.txt"),
        (["describe", SOP, "--data.clases_per_batch=3"], "clases_per_batch"),
        (["describe", SOP, "--data.val_cl=0.5"], "val_cl"),
        (["describe", SOP, "--samp"], "samp"),
        (["describe", SOP, "--data.root=sop", "--data.levels=[colour]"], "index lacks columns ['colour']"),
        (["describe", SOP, "--data.root=sop", "--data.val_classes=2"], "val_classes is 2.0; it is a fraction"),
        (["verify", SOP, "--data.root=sop", "--report=no/where.csv"], "report is 'no/where.csv'"),
        (["prepare", SOP, "--data.root=sop"], "out"),
        (["prepare", SOP, "--data.root=sop", "--out=small", "--quality=100"], "quality is 100; JPEG takes 1 to 95"),
        (["prepare", SOP, "--data.root=sop", "--out=small", "--quality=good"], "quality"),
        (["prepare", SOP, "--data.root=sop", "--out=small", "--shorter_side=0"], "shorter_side is 0"),
        (["prepare", SOP, "--data.root=sop", "--out=sop/small"], "must be a folder apart from root"),
        (["prepare", SOP, "--data.root=sop", "--out=silent.yaml"], "which holds other files; choose a new folder"),
        (["prepare", SOP, "--data.root=nowhere", "--out=small"], "root is 'nowhere'"),
        ([], "action"),
        (["descrbe"], "descrbe"),
    ],
    ids=lambda value: " ".join(value).replace(SOP, "-c") if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(words, message, root, tmp_path, capsys):
    (tmp_path / "silent.yaml").write_text("model: {}")
    (tmp_path / "broken.yaml").write_text("data: {root: [")
    assert message in mistake(capsys, *words)


def test_a_damaged_archive_is_one_line(root, capsys):
    (root / "images.zip").write_bytes(b"PK")
    assert "images.zip cannot be unpacked" in mistake(capsys, "prepare", SOP, f"--data.root={root}", "--out=small")


@pytest.mark.parametrize(
    ("words", "mentioned"),
    [
        (["--help"], ["fit", "validate", "test", "predict", "dml data describe, verify, prepare or pack"]),
        (["data", "--help"], ["describe", "verify", "prepare", "pack"]),
        (["data", "describe", "--help"], ["--data.root", "--data.levels", "--sampler", "--config"]),
        (["data", "verify", "--help"], ["--report"]),
        (["data", "prepare", "--help"], ["--out", "--shorter_side", "--quality"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_help_mentions_what_there_is(words, mentioned, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert [word for word in mentioned if word not in printed] == []
