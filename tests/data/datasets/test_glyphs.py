import hashlib
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dml.data.datasets import glyphs
from dml.data.datasets.glyphs import Glyphs

TINY = {"num_classes": (12, 6, 6), "images_per_class": 4}
SPLITS = ("train", "val", "test")


def contents(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glyphs") / "tiny"
    Glyphs.draw(root, **TINY)
    return root


def test_splits_hold_disjoint_characters_with_all_their_images(tiny):
    index = Glyphs.read_index(tiny)
    assert set(index["role"]) == {"both"}
    assert (index.groupby("character")["split"].nunique() == 1).all()
    assert index.groupby("split")["character"].nunique().to_dict() == {"train": 12, "val": 6, "test": 6}
    assert (index["character"].value_counts() == 4).all()
    assert {str(path) for path in index["path"]} == {name for name in contents(tiny) if name.endswith(".png")}


def test_items_are_greyscale_and_labelled_at_each_level(tiny):
    for split, number in zip(SPLITS, (12, 6, 6), strict=True):
        dataset = Glyphs(tiny, split, channels=1)
        assert len(dataset) == number * 4
        assert dataset.levels == ("character", "base", "script")
        item = dataset[0]
        assert item["image"].shape == (1, 32, 32)
        assert len(item["labels"]) == 3
        assert item["is_query"]
        assert item["is_gallery"]


def test_every_base_has_one_script():
    families = pd.DataFrame([glyphs._families(chr(character)) for character in glyphs._characters()])
    assert (families.groupby(0)[1].nunique() == 1).all()
    assert families[0].nunique() < len(families)


@pytest.mark.parametrize(
    ("characters", "base", "script"),
    [
        ("EeÉèệ", "latin: letter e", "latin"),
        ("Ωώ", "greek: letter omega", "greek"),
        ("ИЙ", "cyrillic: letter i", "cyrillic"),
        ("→←⇑", "arrows: arrow", "arrows"),
        ("●○", "geometric shapes: circle", "geometric shapes"),
        ("ᐯᐱᐳ", "canadian: p", "canadian"),
        ("⠃⠗", "braille: pattern dots", "braille"),
    ],
)
def test_marks_case_weight_and_direction_make_no_base(characters, base, script):
    assert {glyphs._families(character) for character in characters} == {(base, script)}


def test_a_seed_always_draws_the_same_bytes(tiny, tmp_path):
    Glyphs.draw(tmp_path / "again", **TINY)
    assert contents(tmp_path / "again") == contents(tiny)


def test_another_seed_draws_other_characters(tiny, tmp_path):
    Glyphs.draw(tmp_path / "other", seed=1, **TINY)
    assert set(Glyphs.read_index(tmp_path / "other")["character"]) != set(Glyphs.read_index(tiny)["character"])


def test_an_image_does_not_depend_on_the_others(tiny, tmp_path):
    Glyphs.draw(tmp_path / "smaller", num_classes=(6, 3, 3), images_per_class=2)
    smaller, whole = ({Path(name).parts[-2:]: sha for name, sha in contents(r).items()} for r in (tmp_path, tiny))
    images = {name for name in smaller if name[-1].endswith(".png")}
    assert len(images) == 24
    assert all(smaller[name] == whole[name] for name in images)


def test_image_size_is_a_choice(tmp_path):
    Glyphs.draw(tmp_path / "large", num_classes=(1, 1, 1), images_per_class=1, image_size=48)
    assert Glyphs(tmp_path / "large", "train")[0]["image"].shape == (3, 48, 48)


@pytest.mark.parametrize(
    "alike",
    [
        "N\N{GREEK CAPITAL LETTER NU}",
        "A\N{GREEK CAPITAL LETTER ALPHA}\N{CYRILLIC CAPITAL LETTER A}",
        "T\N{GREEK CAPITAL LETTER TAU}\N{CYRILLIC CAPITAL LETTER TE}",
        "oO\N{GREEK SMALL LETTER OMICRON}\N{CYRILLIC SMALL LETTER O}\N{WHITE BULLET}",
        "h\N{CYRILLIC SMALL LETTER SHHA}\N{MODIFIER LETTER SMALL H}",
        "K\N{KELVIN SIGN}",
        "\N{LATIN CAPITAL LETTER ETH}\N{LATIN CAPITAL LETTER D WITH STROKE}",
        "\N{MINUS SIGN}\N{EN DASH}",
        ".\N{MIDDLE DOT}",
        "cC",
        "sS",
    ],
)
def test_of_characters_drawn_alike_at_most_one_is_kept(alike):
    assert sum(ord(character) in glyphs._characters() for character in alike) <= 1


@pytest.mark.parametrize("different", ["Aa", "Nn", "EFLT", "O0", "ΩΨΦ", "ЖДЯ", "eèé", "←→↑↓", "⇐⇒", "□.", "27", "⊂⊃"])
def test_different_characters_are_all_kept(different):
    assert {character for character in different if ord(character) not in glyphs._characters()} == set()


def test_no_character_is_blank_or_the_box_of_a_missing_one():
    supported = glyphs._supported()
    for name, font in glyphs._open_fonts().items():
        missing = np.asarray(glyphs._ink(font, 0x10FFFE)).tolist()
        for character in set(glyphs._characters()[::7]) & supported[name]:
            ink = np.asarray(glyphs._ink(font, character))
            assert ink.any(), f"{chr(character)} is blank in {name}"
            assert ink.tolist() != missing, f"{chr(character)} is missing in {name}"


def test_every_image_shows_light_ink_on_a_dark_ground(tiny):
    for path in tiny.rglob("*.png"):
        pixels = np.asarray(Image.open(path), float)
        border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]))
        assert np.percentile(pixels, 99) > border + 30, path


def test_the_images_of_a_character_come_from_different_fonts(monkeypatch, tmp_path):
    used: list[str] = []
    ink = glyphs._ink
    monkeypatch.setattr(glyphs, "_ink", lambda font, character: used.append(font.path) or ink(font, character))
    Glyphs.draw(tmp_path / "root", **TINY)
    assert all(len(set(used[start : start + 4])) == 4 for start in range(0, len(used), 4))


def test_a_missing_root_is_drawn_and_then_only_read(monkeypatch, tmp_path, caplog):
    drawn: list[Path] = []
    draw = Glyphs.draw
    monkeypatch.setattr(Glyphs, "draw", staticmethod(lambda root: drawn.append(root) or draw(root, **TINY)))
    root = tmp_path / "made" / "here"
    assert len(Glyphs(root, "train")) == len(Glyphs(root, "train")) == 48
    assert drawn == [root]
    assert [str(root) in message for message in caplog.messages] == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fresh process would import torch for most of the test")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_processes_draw_one_whole_data_set(tiny, tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=Glyphs.draw, args=(tmp_path / "root",), kwargs=TINY) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "root") == contents(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_who_comes_second_uses_what_is_there(monkeypatch, tiny, tmp_path):
    root = tmp_path / "root"
    draw = glyphs._draw

    def draw_twice(temporary, settings):
        draw(temporary, settings)
        draw(root, settings)  # another process has finished in the meantime

    monkeypatch.setattr(glyphs, "_draw", draw_twice)
    Glyphs.draw(root, **TINY)
    assert contents(root) == contents(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_draw_leaves_nothing(monkeypatch, tmp_path, error):
    distort, calls = glyphs._distort, iter(range(100))

    def interrupted(*args):
        if next(calls) == 50:
            raise error
        return distort(*args)

    monkeypatch.setattr(glyphs, "_distort", interrupted)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        Glyphs.draw(tmp_path / "root", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_draw_leaves_its_own_data_set_and_refuses_another(tiny):
    before = contents(tiny)
    Glyphs.draw(tiny, **TINY)
    with pytest.raises(ValueError, match=r"drawn with .*'seed': 0.*, not .*'seed': 3.*delete it"):
        Glyphs.draw(tiny, seed=3, **TINY)
    assert contents(tiny) == before


def test_root_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for attempt in (lambda: Glyphs(tmp_path), lambda: Glyphs.draw(tmp_path, **TINY)):
        with pytest.raises(FileNotFoundError, match=r"exists but has no index\.parquet; delete it"):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": (5000, 10, 10)}, r"5020 in all; the fonts have 3\d\d\d different"),
        ({"num_classes": (5, 0, 5)}, "three numbers from 1 on"),
        ({"num_classes": (5, 5)}, "three numbers from 1 on"),
        ({"images_per_class": 0}, "images_per_class is 0; it must be at least 1"),
        ({"image_size": 8}, "image_size is 8; it must be at least 16"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Glyphs.draw(tmp_path / "root", **settings)
    assert list(tmp_path.iterdir()) == []
