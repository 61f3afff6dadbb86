from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from dml.data.dataset import RetrievalDataset, collate
from dml.data.images import UnreadableImageError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
# What ITU-R 601 makes of the three colours.
GREY = {RED: 76, GREEN: 150, BLUE: 29}


class Folder(RetrievalDataset):
    """Every PNG and JPEG of a folder; the letter of the name is the class, odd ones are queries."""

    levels = ("letter", "half")

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        names = sorted(path.name for path in root.iterdir())
        return pd.DataFrame(
            {
                "path": names,
                "split": ["test" if name[0] > "h" else "train" for name in names],
                "role": [("query", "gallery", "both")[int(name[1]) % 3] for name in names],
                "letter": [name[0] for name in names],
                "half": [name[0] > "d" for name in names],
            }
        )


def stripes(*colours, height=4):
    """An image of vertical stripes, one pixel wide."""
    return Image.fromarray(np.array([colours] * height, dtype=np.uint8))


@pytest.fixture
def root(tmp_path):
    """Classes a to j with three images each, a to h for training."""
    for letter in "abcdefghij":
        for number in range(3):
            stripes(RED, GREEN, BLUE).save(tmp_path / f"{letter}{number}.png")
    return tmp_path


def load_one(folder, image, channels=3, suffix="png", **options):
    path = folder / f"a0.{suffix}"
    image.save(path, **options)
    return Folder(folder, channels=channels).load(0)


def test_item(root):
    dataset = Folder(root, "test")
    item = dataset[4]
    assert dataset.path(4) == root / "j1.png"
    assert torch.equal(item["image"], functional.pil_to_tensor(stripes(RED, GREEN, BLUE)))
    assert item["labels"].tolist() == [9, 1]
    assert item["labels"].dtype == torch.long
    assert item["index"] == 4


def test_labels_are_those_of_the_items(root):
    dataset = Folder(root)
    assert dataset.labels.shape == (24, 2)
    assert dataset.labels.dtype == torch.long
    assert torch.equal(dataset.labels, torch.stack([dataset[row]["labels"] for row in range(len(dataset))]))


def test_codes_are_the_same_in_every_split(root):
    assert Folder(root).labels[:, 0].unique().tolist() == list(range(8))
    assert Folder(root, "test").labels[:, 0].unique().tolist() == [8, 9]


def test_roles(root):
    dataset = Folder(root)
    items = [dataset[row] for row in range(3)]
    assert dataset.index["role"][:3].tolist() == ["query", "gallery", "both"]
    assert [item["is_query"] for item in items] == [True, False, True]
    assert [item["is_gallery"] for item in items] == [False, True, True]


def test_root_may_be_a_string_with_tilde(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("USERPROFILE", str(root.parent))
    assert Folder(f"~/{root.name}")[0]["image"].shape == (3, 4, 3)


def test_transform_is_applied_to_items_only(root):
    dataset = Folder(root, transform=lambda image: 255 - image)
    assert torch.equal(dataset[0]["image"], 255 - dataset.load(0))


def test_past_the_end(root):
    with pytest.raises(IndexError):
        Folder(root)[24]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_images(tmp_path, mode, channels):
    image = stripes(RED, GREEN, BLUE)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    pixels = load_one(tmp_path, image, channels)
    expected = [[GREY[c]] for c in (RED, GREEN, BLUE)] if channels == 1 else [RED, GREEN, BLUE]
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (channels, 4, 3)
    # Pixels [C, W] of each row.
    for row in range(4):
        assert pixels[:, row].T.tolist() == [list(colour) for colour in expected]


@pytest.mark.parametrize(("mode", "values"), [("L", [0, 100, 255]), ("1", [0, 255, 255]), ("LA", [0, 100, 255])])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images(tmp_path, mode, values, channels):
    grey = stripes(*values)
    image = grey.point(lambda value: 255 * (value >= 100)).convert("1") if mode == "1" else grey.convert(mode)
    assert image.mode == mode
    pixels = load_one(tmp_path, image, channels)
    assert torch.equal(pixels, torch.tensor(values, dtype=torch.uint8).expand(channels, 4, 3))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, None),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_270),
        (8, Image.Transpose.ROTATE_90),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
    ],
)
def test_camera_orientation(tmp_path, orientation, upright):
    stored = stripes(RED, GREEN, BLUE, BLUE, height=2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = stored if upright is None else stored.transpose(upright)
    assert torch.equal(load_one(tmp_path, stored, exif=exif), functional.pil_to_tensor(expected))


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_channels_must_be_one_or_three(root, channels):
    with pytest.raises(ValueError, match=f"channels is {channels}; it must be 1"):
        Folder(root, channels=channels)


def test_missing_file(root):
    dataset = Folder(root)
    (root / "a1.png").unlink()
    with pytest.raises(UnreadableImageError, match="cannot read image") as error:
        dataset[1]
    assert str(root / "a1.png") in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.9])
def test_truncated_file(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, size=(60, 60, 3), dtype=np.uint8)
    path = tmp_path / f"a0.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UnreadableImageError, match="cannot read image") as error:
        Folder(tmp_path).load(0)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_file_that_is_no_image(tmp_path, content):
    (tmp_path / "a0.png").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"a0\.png"):
        Folder(tmp_path).load(0)


def test_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "a0.png").mkdir()
    with pytest.raises(UnreadableImageError, match=r"a0\.png"):
        Folder(tmp_path).load(0)


def test_header_that_claims_an_absurd_size(tmp_path):
    # Pillow's DecompressionBombError is no OSError, so it could stop a run that tolerates unreadable images.
    path = tmp_path / "a0.bmp"
    stripes(RED).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = (50_000).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"a0\.bmp.*exceeds limit"):
        Folder(tmp_path).load(0)


def test_one_unreadable_image_spares_the_rest_of_its_batch(root):
    dataset = Folder(root)
    (root / "a1.png").write_bytes(b"")
    items = dataset.__getitems__([0, 1, 2])
    assert isinstance(items[1], str)
    assert str(root / "a1.png") in items[1]
    batch = collate(items)
    assert batch["images"].shape == (2, 3, 4, 3)
    assert batch["index"].tolist() == [0, 2]
    assert batch["labels"].tolist() == [[0, 0], [0, 0]]
    assert batch["unreadable"] == [items[1]]


def test_mistake_in_a_transform_is_not_taken_for_an_unreadable_image(root):
    def transform(image):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match=r"^a bug$"):
        Folder(root, transform=transform).__getitems__([0])


def test_collate(root):
    dataset = Folder(root)
    batch = collate(dataset.__getitems__([0, 4, 23]))
    assert batch["images"].dtype == torch.uint8
    assert torch.equal(batch["images"], torch.stack([dataset.load(row) for row in (0, 4, 23)]))
    assert batch["labels"].tolist() == [[0, 0], [1, 0], [7, 1]]
    assert batch["index"].tolist() == [0, 4, 23]
    assert batch["is_query"].tolist() == [True, False, True]
    assert batch["is_gallery"].tolist() == [False, True, True]
    assert batch["unreadable"] == []


def test_collate_when_nothing_could_be_read():
    batch = collate(["first", "second"])
    assert batch["unreadable"] == ["first", "second"]
    assert [len(batch[key]) for key in ("images", "labels", "index", "is_query", "is_gallery")] == [0] * 5


def test_collate_names_the_sizes(root):
    stripes(RED, GREEN).save(root / "a1.png")
    with pytest.raises(ValueError, match=r"shapes \[\(3, 4, 2\), \(3, 4, 3\)\]; the transforms must"):
        collate(Folder(root).__getitems__([0, 1]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_serves_every_image_once(root, num_workers):
    dataset = Folder(root)
    (root / "b0.png").unlink()
    batches = list(DataLoader(dataset, batch_size=5, collate_fn=collate, num_workers=num_workers))
    seen = [row for batch in batches for row in batch["index"].tolist()]
    assert seen == [row for row in range(24) if row != 3]
    assert [message for batch in batches for message in batch["unreadable"]] == dataset.__getitems__([3])


def test_unknown_split_is_named_with_those_there(root):
    with pytest.raises(
        ValueError,
        match=r"^Folder has splits \['test', 'train'\], not 'val'; val_classes holds out training classes as one$",
    ):
        Folder(root, "val")


def test_classes_held_out_for_validation(root):
    options = {"val_classes": 0.25, "val_seed": 3}
    train, val, test = (Folder(root, split, **options) for split in ("train", "val", "test"))
    classes = [set(dataset.labels[:, 0].tolist()) for dataset in (train, val, test)]
    assert [len(some) for some in classes] == [6, 2, 2]
    assert set.union(*classes) == set(range(10))
    assert len(val) == 6
    assert torch.equal(test.labels, Folder(root, "test").labels)
    others = [Folder(root, "val", val_classes=0.25, val_seed=seed).labels[:, 0].tolist() for seed in range(6)]
    assert val.labels[:, 0].tolist() == others[3]
    assert len({tuple(other) for other in others}) > 1


def test_contract_is_checked(root):
    class Broken(Folder):
        @staticmethod
        def read_index(root):
            return Folder.read_index(root).drop(columns="role")

    with pytest.raises(ValueError, match=r"lacks columns \['role'\]"):
        Broken(root)


def test_dataset_without_an_index_is_abstract(root):
    class Unfinished(RetrievalDataset):
        levels = ("letter",)

    with pytest.raises(TypeError, match="read_index"):
        Unfinished(root)
