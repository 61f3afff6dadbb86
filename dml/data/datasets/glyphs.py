"""Glyphs: characters in the fonts of matplotlib, a data set that needs no download."""

import logging
import os
import re
import shutil
import unicodedata
import uuid
from bisect import bisect_right
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from dml.data.dataset import RetrievalDataset

_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
_SPLITS = ("train", "val", "test")
_REGULAR = "DejaVuSans.ttf"  # the fullest font; a character that it lacks is left out, so any two share a font
_UNICODE_FONTS = re.compile(r"DejaVuSans(?!Display)|DejaVuSerif(?!Display)|STIXGeneral")
_ASCII_FONTS = re.compile(r"cm(r|b|ss|tt|ti)10\.")  # TeX encodings: other code points show other characters
_MIN_FONTS = 4
_FONT_SIZE = 48

_THUMBNAIL = 28  # px, of which the longer side of the ink takes 22: the size at which it is drawn
_CORRELATION = 0.8  # below it no pair passes the comparison of ink, which costs more
_MUCH_INK = 96  # of 255; a thin stroke that is not in the other character leaves more, a thicker outline less

_SCRIPTS = re.compile(
    "ARABIC|ARMENIAN|BRAILLE|CANADIAN|COPTIC|CYRILLIC|GEORGIAN|GREEK|HEBREW|LAO|LATIN|LISU|NKO|OGHAM|THAI|TIFINAGH"
)
_BLOCKS = (  # (first code point, name), for names that do not begin with a script
    (0x0000, "COMMON"), (0x02B0, "MODIFIERS"), (0x2000, "PUNCTUATION"), (0x20A0, "CURRENCY"), (0x2100, "LETTERLIKE"),
    (0x2150, "NUMBERS"), (0x2190, "ARROWS"), (0x2200, "MATHEMATICS"), (0x2300, "TECHNICAL"), (0x2460, "ENCLOSED"),
    (0x2500, "BOX DRAWING"), (0x2580, "BLOCK ELEMENTS"), (0x25A0, "GEOMETRIC SHAPES"), (0x2600, "SYMBOLS"),
    (0x2700, "DINGBATS"), (0x27C0, "MATHEMATICS"), (0x27F0, "ARROWS"), (0x2980, "MATHEMATICS"), (0x2B00, "ARROWS"),
    (0x2E00, "PUNCTUATION"), (0x4DC0, "HEXAGRAMS"), (0xA000, "MODIFIERS"), (0xF000, "COMMON"), (0x10300, "OLD ITALIC"),
    (0x1D300, "TETRAGRAMS"), (0x1F000, "TILES AND CARDS"), (0x1F100, "ENCLOSED"), (0x1F300, "PICTOGRAPHS"),
)  # fmt: skip
_QUALIFIERS = re.compile(r"(?: (?:WITH|OVER|ABOVE|OF|FOR|FROM|TO|AND|WITHOUT) |-\d).*")
_STYLES = re.compile(
    r"\b(?:CAPITAL|SMALL|BLACK|WHITE|HEAVY|LIGHT|BOLD|DOUBLE|TRIPLE|SINGLE|LONG|TURNED|REVERSED|INVERTED|SIDEWAYS|"
    r"ROTATED|LEFT|RIGHT|UP|DOWN|LEFTWARDS|RIGHTWARDS|UPWARDS|DOWNWARDS|UPPER|LOWER|NORTH|SOUTH|EAST|WEST|"
    r"(?:ISOLATED|INITIAL|MEDIAL|FINAL) FORM)\b"
)

_Bytes = npt.NDArray[np.uint8]
_LOG = logging.getLogger(__name__)


class Glyphs(RetrievalDataset):
    """Distorted characters in the fonts of matplotlib: 27,200 images, drawn on first use without a download.

    A class is a Unicode character, in up to 21 fonts. Characters that are drawn alike in at least half of the fonts
    that have both, when brought to one size, are one class (Latin N and Greek Nu; c and C): the distortions would hide
    what is left of the difference. The characters of train (1,000), val (200) and test (500) are disjoint; every image
    is both query and gallery. A base is a letter or shape without its case, marks, weight and direction::

        root/index.parquet            path, split, role, character, base, script
        root/train/U+00E9/00.png      32 x 32 px, grey, light ink on a dark ground

    Not a published benchmark: it is for trying things out, and its figures compare only with one another.
    """

    levels = ("character", "base", "script")

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        """Read the index; if ``root`` is missing or empty, draw the default data set there first."""
        if _is_vacant(root):
            _LOG.warning("%s holds no data set: drawing 27,200 images of characters into it, once", root)
            Glyphs.draw(root)
        return _read(root)

    @staticmethod
    def draw(
        root: str | Path,
        *,
        seed: int = 0,
        num_classes: tuple[int, int, int] = (1000, 200, 500),
        images_per_class: int = 16,
        image_size: int = 32,
    ) -> None:
        """Draw a data set into ``root``, all of it or nothing; if it is there already, leave it.

        Several processes may draw into one root at once: the first to finish wins, and they would all draw the same.

        Args:
            root: Folder of the data set; must be missing, empty, or hold a data set of these settings.
            seed: Which characters are chosen, and how each image is distorted.
            num_classes: Number of characters in train, val and test.
            images_per_class: Number of images of each character. Its fonts are taken in turn, in random order.
            image_size: Height and width in pixels.

        Raises:
            ValueError: If an argument is out of range, or ``root`` holds a data set of other settings.
            FileNotFoundError: If ``root`` holds something else.
        """
        root = Path(root).expanduser().absolute()
        settings: dict[str, Any] = {"seed": seed, "num_classes": list(num_classes)}
        settings |= {"images_per_class": images_per_class, "image_size": image_size}
        _check(settings)
        if _is_vacant(root):
            # A sibling, so that the rename stays on one file system, where it is atomic.
            temporary = root.with_name(f".{root.name}-{uuid.uuid4().hex}")
            try:
                _draw(temporary, settings)
                os.rename(temporary, root)
            except OSError:
                if _is_vacant(root):
                    raise  # else another process was faster, and what it drew is checked below
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        if (found := _read(root).attrs.get("settings")) != settings:
            raise ValueError(f"{root} was drawn with {found}, not {settings}; delete it or draw into another root")


def _is_vacant(root: Path) -> bool:
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


def _read(root: Path) -> pd.DataFrame:
    path = root / "index.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{root} exists but has no {path.name}; delete it, or set root to a folder to be made")
    index: pd.DataFrame = pd.read_parquet(path)
    return index


def _check(settings: dict[str, Any]) -> None:
    num_classes = settings["num_classes"]
    if len(num_classes) != len(_SPLITS) or min(num_classes) < 1:
        raise ValueError(f"num_classes is {num_classes}; it must be three numbers from 1 on, for {', '.join(_SPLITS)}")
    for name, lowest in (("seed", 0), ("images_per_class", 1), ("image_size", 16)):
        if settings[name] < lowest:
            raise ValueError(f"{name} is {settings[name]}; it must be at least {lowest}")
    available = len(_characters())
    if sum(num_classes) > available:
        raise ValueError(
            f"num_classes is {num_classes}, {sum(num_classes)} in all; the fonts have {available} different characters"
        )


def _draw(root: Path, settings: dict[str, Any]) -> None:
    """Write images and index of the data set into the new folder ``root``."""
    seed, num_classes = settings["seed"], settings["num_classes"]
    chosen = np.random.default_rng(seed).permutation(_characters())[: sum(num_classes)].tolist()
    supported, fonts = _supported(), _open_fonts()
    rows = []
    for character, split in zip(chosen, np.repeat(_SPLITS, num_classes).tolist(), strict=True):
        label, families = f"U+{character:04X}", _families(chr(character))
        (root / split / label).mkdir(parents=True)
        names = [name for name in fonts if character in supported[name]]
        order = np.random.default_rng((seed, character)).permutation(len(names))
        for number in range(settings["images_per_class"]):
            ink = _ink(fonts[names[order[number % len(names)]]], character)
            # Seeds of its own: an image does not depend on what is drawn before it.
            image = _distort(ink, settings["image_size"], np.random.default_rng((seed, character, number)))
            path = f"{split}/{label}/{number:02d}.png"
            image.save(root / path, compress_level=1)
            rows.append((path, split, "both", label, *families))
    columns = ["path", "split", "role", *Glyphs.levels]
    index = pd.DataFrame(rows, columns=columns).sort_values("path", ignore_index=True)
    index.attrs["settings"] = settings
    index.to_parquet(root / "index.parquet")


def _distort(ink: Image.Image, image_size: int, random: np.random.Generator) -> Image.Image:
    """Turn, scale, shear and shift the ink of a character, thicken and blur it, and lay it on a noisy ground."""
    size = 2 * image_size  # drawn at twice the size and averaged, against jagged edges
    angle, shear = random.uniform(-0.35, 0.35), random.uniform(-0.2, 0.2)
    scale = random.uniform(0.7, 1.1) * 22 / 32 * size / max(ink.size)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.array([[1.0, shear], [0.0, 1.0]])
    room = np.maximum(size / 2 - np.abs(matrix) @ ink.size / 2, 0.0)  # no ink is to leave the image
    shift = random.uniform(-1, 1, 2) * np.minimum(room, size * 3 / 32)
    inverse = np.linalg.inv(matrix)  # Pillow maps from the result to the source
    offset = np.array(ink.size) / 2 - inverse @ (size / 2 + shift)
    coefficients = (*inverse[0].tolist(), offset[0], *inverse[1].tolist(), offset[1])
    image = ink.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    for step in ((1, 0), (0, 1), (-1, 0), (0, -1)) if random.random() < 0.4 else ():
        image = ImageChops.lighter(image, ImageChops.offset(image, *step))  # a pixel thicker; MaxFilter is slower
    image = image.reduce(2).filter(ImageFilter.GaussianBlur(random.uniform(0.0, 1.0) * image_size / 32))
    ground, contrast = random.uniform(10, 60), random.uniform(80, 190)
    noise = random.standard_normal((image_size, image_size), np.float32) * random.uniform(6, 24)
    pixels = np.asarray(image, np.float32) * (contrast / 255) + ground + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _families(character: str) -> tuple[str, str]:
    """Base letter or shape, and script or block, of a character. A base starts with its script, so it has only one."""
    while parts := unicodedata.decomposition(character).split():
        tag = parts.pop(0) if parts[0].startswith("<") else ""
        if tag in ("<circle>", "<square>") or (tag and (len(parts) > 1 or parts == ["0020"])):
            break  # a frame, a ligature or a spacing accent is not its first part
        character = chr(int(parts[0], 16))
    name = unicodedata.name(character)
    script = name.split()[0]
    if _SCRIPTS.fullmatch(script):
        name = name.removeprefix(script).strip()
    else:
        script = _BLOCKS[bisect_right(_BLOCKS, (ord(character), "~")) - 1][1]
    shape = _QUALIFIERS.sub("", name)
    if script == "CANADIAN":  # the vowel of a syllable turns the shape of its consonant
        shape = re.sub(r"(?<=.)W?[AEIOU]+$", "", shape.split()[-1])
    shape = " ".join(_STYLES.sub("", shape).split()) or name
    return f"{script}: {shape}".lower(), script.lower()


@cache
def _supported() -> dict[str, frozenset[int]]:
    """For each font, the characters to draw in it: visible on their own, and not another one in a certain font."""
    supported = {}
    for path in sorted(_FONTS.glob("*.ttf")):
        if _UNICODE_FONTS.match(path.name) or _ASCII_FONTS.match(path.name):
            glyphs = {int(character): glyph for character, glyph in FT2Font(str(path)).get_charmap().items()}
            drawn = {c for c, glyph in glyphs.items() if glyph and unicodedata.category(chr(c))[0] in "LNPS"}
            drawn -= {c for c in drawn if unicodedata.decomposition(chr(c)).startswith("<font>")}
            if _ASCII_FONTS.match(path.name):
                drawn = {c for c in drawn if c < 128 and chr(c).isalnum()}
            supported[path.name] = frozenset(drawn)
    return supported


@cache
def _characters() -> tuple[int, ...]:
    """Characters of which no two are drawn alike; of those that are, the one with the lowest code point."""
    supported = _supported()
    number_of_fonts = {c: sum(c in drawn for drawn in supported.values()) for c in supported[_REGULAR]}
    characters = np.array(sorted(c for c, number in number_of_fonts.items() if number >= _MIN_FONTS))
    # An oblique is the upright font, sheared: it would say the same again.
    fonts = {name: font for name, font in _open_fonts().items() if "Oblique" not in name}
    has = np.array([np.isin(characters, list(supported[name])) for name in fonts])
    kept = np.ones(len(characters), bool)
    alike = np.zeros((len(characters), len(characters)), np.int8)
    for rows, font in zip(map(np.flatnonzero, has), fonts.values(), strict=True):
        thumbnails = _thumbnails([_ink(font, character) for character in characters[rows].tolist()])
        kept[rows] &= thumbnails.any((1, 2))
        first, second = _alike(thumbnails)
        alike[rows[first], rows[second]] += 1
    first, second = np.nonzero(alike)
    merged = 2 * alike[first, second] >= (has[:, first] & has[:, second]).sum(0)
    for one, two in zip(first[merged], second[merged], strict=True):  # sorted, so `one` is decided by its turn
        kept[two] &= not kept[one]
    return tuple(characters[kept].tolist())


def _alike(thumbnails: _Bytes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Pairs, first < second, in which neither has much ink that is more than a pixel away from the other's.

    The pixel of leeway is there because stroke width is no difference: images are thickened at random.
    """
    number, half = len(thumbnails), _THUMBNAIL // 2
    coarse = thumbnails.reshape(number, half, 2, half, 2).sum((2, 4), dtype=np.float32).reshape(number, -1)
    coarse -= coarse.mean(1, keepdims=True)
    coarse /= np.linalg.norm(coarse, axis=1, keepdims=True).clip(1e-6)
    first, second = np.nonzero(np.triu(coarse @ coarse.T > _CORRELATION, 1))
    padded = np.pad(thumbnails, ((0, 0), (1, 1), (1, 1)))
    wide = np.maximum(np.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    wide = np.maximum(np.maximum(wide[..., :-2], wide[..., 1:-1]), wide[..., 2:])
    ink, wide = thumbnails.reshape(number, -1), wide.reshape(number, -1)
    passed = [np.zeros(0, bool)]
    for start in range(0, len(first), 2048):  # blocks that fit the cache of a processor
        one, two = first[start : start + 2048], second[start : start + 2048]
        excess = np.maximum(np.maximum(ink[one], wide[two]) - wide[two], np.maximum(ink[two], wide[one]) - wide[one])
        passed.append(excess.max(1) < _MUCH_INK)
    return first[np.concatenate(passed)], second[np.concatenate(passed)]


def _thumbnails(inks: list[Image.Image]) -> _Bytes:
    """Bring the ink of characters to one size and blur it a little, ``[number, height, width]``."""
    canvas = np.zeros((len(inks), _THUMBNAIL, _THUMBNAIL), np.uint16)
    for row, ink in enumerate(inks):
        width, height = (max(1, round(side * 22 / max(ink.size))) for side in ink.size)
        small = ink.resize((width, height), Image.Resampling.BOX)
        left, top = (_THUMBNAIL - width) // 2, (_THUMBNAIL - height) // 2
        canvas[row, top : top + height, left : left + width] = np.asarray(small)
    canvas[:, 1:-1] = (canvas[:, :-2] + 2 * canvas[:, 1:-1] + canvas[:, 2:]) // 4
    canvas[..., 1:-1] = (canvas[..., :-2] + 2 * canvas[..., 1:-1] + canvas[..., 2:]) // 4
    return canvas.astype(np.uint8)


def _ink(font: ImageFont.FreeTypeFont, character: int) -> Image.Image:
    """A character, white on black, cropped to its ink; one black pixel if there is none."""
    left, top, right, bottom = font.getbbox(chr(character))
    image = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(image).text((-left, -top), chr(character), fill=255, font=font)
    return image.crop(image.getbbox() or (0, 0, 1, 1))


def _open_fonts() -> dict[str, ImageFont.FreeTypeFont]:
    basic = ImageFont.Layout.BASIC  # needs no further library and shapes nothing: one code point is one glyph
    return {name: ImageFont.truetype(_FONTS / name, _FONT_SIZE, layout_engine=basic) for name in _supported()}
