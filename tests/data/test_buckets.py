"""Sizes at an image's own aspect ratio, and batches of one size that hold every image once."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from torchvision.transforms import v2

from dml.data import RetrievalDataModule
from dml.data.buckets import AspectBuckets, OneSizeBatches, stored_sizes
from dml.data.datasets import DataFrameDataset, PackedDataset, RevisitedOxford
from dml.data.pack import pack
from tests.data.datasets.miniatures import make_revisited_oxford


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def table(root, names, **columns):
    pd.DataFrame({"path": names, "label": 0, "split": "test", **columns}).to_csv(root / "index.csv", index=False)
    return DataFrameDataset(root, "test", levels=["label"])


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (768, 1024)),
        (640, 480, (1024, 768)),
        (500, 500, (1024, 1024)),
        (3000, 4000, (768, 1024)),
        (1, 1, (1024, 1024)),
        (1, 5000, (32, 1024)),
        (481, 640, (768, 1024)),  # 769.6
        (491, 640, (800, 1024)),  # 785.6
    ],
)
def test_longer_side(height, width, expected):
    assert AspectBuckets(1024).size(height, width) == expected


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(47, 49, (32, 64)), (3, 2000, (32, 1984)), (64, 96, (64, 96))]
)
def test_own_size_to_the_next_multiple(height, width, expected):
    assert AspectBuckets().size(height, width) == expected


def test_multiple_of_one_keeps_the_aspect_ratio():
    assert AspectBuckets(multiple=1).size(123, 457) == (123, 457)
    assert AspectBuckets(100, multiple=1).size(123, 457) == (27, 100)


def test_photos_change_little_and_share_few_sizes():
    sizes = [(1024, width) for width in range(512, 1025)]
    sizes += [size[::-1] for size in sizes]
    buckets = {size: AspectBuckets(1024).size(*size) for size in sizes}
    assert all(abs((to[1] / to[0]) / (at[1] / at[0]) - 1) < 0.033 for at, to in buckets.items())
    assert len(set(buckets.values())) == 33


@pytest.mark.parametrize("shape", [(3, 48, 64), (1, 64, 48), (3, 1, 1), (3, 200, 3)])
def test_images_get_that_size(shape):
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    bucket = AspectBuckets(64, 16)
    resized = bucket(image)
    assert resized.dtype == torch.uint8
    assert resized.shape == (shape[0], *bucket.size(*shape[1:]))


def test_an_image_of_its_size_stays():
    image = torch.randint(0, 256, (3, 64, 32), dtype=torch.uint8)
    assert torch.equal(AspectBuckets()(image), image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multiple": 0}, "multiple is 0; it is a number of pixels, at least 1"),
        ({"longer_side": 31}, "longer_side is 31; it must be at least multiple, 32"),
        ({"longer_side": 0, "multiple": 1}, "longer_side is 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AspectBuckets(**arguments)


def loaded_sizes(dataset):
    return [tuple(dataset.load(row).shape[1:]) for row in range(len(dataset))]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "mpo"])
def test_sizes_of_turned_images(tmp_path, kind):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise(40, 20).save(tmp_path / f"{orientation}.{kind}", exif=exif)
    dataset = table(tmp_path, [f"{orientation}.{kind}" for orientation in range(1, 9)])
    assert stored_sizes(dataset) == loaded_sizes(dataset) == [(20, 40)] * 4 + [(40, 20)] * 4


def test_sizes_of_boxes(tmp_path):
    """Inside, of fractions, beyond every side, and none."""
    boxes = [(5, 2, 30, 12), (4.4, 1.6, 20.5, 9.5), (-3, -2, 43, 22), (None,) * 4]
    exif = Image.Exif()
    exif[0x0112] = 6  # boxes are of the image as it is stored
    for row in range(len(boxes)):
        noise(40, 20).save(tmp_path / f"{row}.jpg", exif=exif)
    columns = dict(zip(("left", "top", "right", "bottom"), zip(*boxes, strict=True), strict=True))
    dataset = table(tmp_path, [f"{row}.jpg" for row in range(len(boxes))], **columns)
    assert stored_sizes(dataset) == loaded_sizes(dataset)
    assert stored_sizes(dataset)[2:] == [(20, 40), (40, 20)]


def test_sizes_of_unreadable_files(tmp_path):
    noise(40, 20).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-200])  # its header is whole
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    dataset = table(tmp_path, ["text.jpg", "cut.jpg", "gone.jpg", "folder.jpg"])
    assert stored_sizes(dataset) == [(20, 40), (20, 40), (20, 40), (20, 40)]


def test_sizes_are_in_the_order_of_the_images(tmp_path):
    for width in range(1, 9):
        noise(width, 3).save(tmp_path / f"{width}.png")
    widths = np.random.default_rng(0).integers(1, 9, 700)
    for row, width in enumerate(widths):
        (tmp_path / f"row{row}.png").symlink_to(tmp_path / f"{width}.png")
    dataset = table(tmp_path, [f"row{row}.png" for row in range(700)])
    assert stored_sizes(dataset) == [(3, width) for width in widths]


def test_sizes_of_packed_images(tmp_path):
    noise(40, 20).save(tmp_path / "wide.png")
    noise(20, 40).save(tmp_path / "high.png")
    dataset = table(tmp_path, ["wide.png", "high.png"])
    pack(DataFrameDataset, tmp_path, tmp_path / "packed", levels=["label"], num_workers=1, progress=False)
    packed = PackedDataset(tmp_path / "packed", "test")
    assert Counter(stored_sizes(packed)) == Counter(stored_sizes(dataset))
    assert stored_sizes(packed) == loaded_sizes(packed)


def random_sizes(number=200):
    return [(32 * int(size), 64) for size in np.random.default_rng(1).integers(1, 5, number)]


def test_each_image_once_in_batches_of_one_size():
    sizes = random_sizes()
    batches = list(OneSizeBatches(sizes, 7))
    assert len(batches) == len(OneSizeBatches(sizes, 7)) == sum(-(-n // 7) for n in Counter(sizes).values())
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    assert all(len({sizes[row] for row in batch}) == 1 and len(batch) <= 7 for batch in batches)
    areas = [sizes[batch[0]][0] for batch in batches]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("number", [200, 3, 1])
@pytest.mark.parametrize("num_replicas", [2, 4, 7])
def test_processes_get_equally_many_and_miss_nothing(num_replicas, number):
    sizes = random_sizes(number)
    shares = [list(OneSizeBatches(sizes, 7, num_replicas=num_replicas, rank=rank)) for rank in range(num_replicas)]
    whole = list(OneSizeBatches(sizes, 7))
    assert {len(share) for share in shares} == {-(-len(whole) // num_replicas)}
    given = Counter(tuple(batch) for share in shares for batch in share)
    assert set(given) == {tuple(batch) for batch in whole}
    assert given.total() - len(given) < num_replicas


@pytest.fixture
def photos(tmp_path):
    """24 images of 5 sizes, one turned by the camera and one with a box."""
    exif = Image.Exif()
    exif[0x0112] = 8
    shapes = [(64, 48), (48, 64), (64, 64), (200, 20), (65, 47)]
    for row in range(24):
        noise(*shapes[row % 5], seed=row).save(tmp_path / f"{row}.png", **({"exif": exif} if row == 6 else {}))
    box = {
        "left": [None] * 23 + [10],
        "top": [None] * 23 + [0],
        "right": [None] * 23 + [80],
        "bottom": [None] * 23 + [20],
    }
    table(tmp_path, [f"{row}.png" for row in range(24)], **box)
    return tmp_path


def module(root, **changes):
    options = {"eval_transforms": [AspectBuckets(64, 16)], "eval_batch_size": 3, "levels": ["label"], "num_workers": 0}
    return RetrievalDataModule(DataFrameDataset, str(root), **{**options, **changes})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_sees_each_image_as_it_would_alone(photos, num_workers):
    data = module(photos, num_workers=num_workers)
    data.setup("test")
    dataset, seen = data.datasets["test"], []
    for batch in data.test_dataloader():
        assert len(batch["index"]) <= 3
        seen += batch["index"].tolist()
        for image, row in zip(batch["images"], batch["index"].tolist(), strict=True):
            assert torch.equal(image, AspectBuckets(64, 16)(dataset.load(row)))
    assert sorted(seen) == list(range(24))


def test_other_transforms_may_follow(photos):
    data = module(photos, eval_transforms=[AspectBuckets(64, 16), v2.RandomHorizontalFlip(1.0)])
    data.setup("test")
    dataset = data.datasets["test"]
    batch = next(iter(data.test_dataloader()))
    expected = [AspectBuckets(64, 16)(dataset.load(row)).flip(-1) for row in batch["index"].tolist()]
    assert torch.equal(batch["images"], torch.stack(expected))


def test_queries_with_a_box_share_batches_with_the_gallery(tmp_path):
    data = RetrievalDataModule(
        RevisitedOxford,
        str(make_revisited_oxford(tmp_path)),
        eval_transforms=[AspectBuckets(multiple=1)],
        num_workers=0,
    )
    data.setup("test")
    seen = torch.cat([batch["index"] for batch in data.test_dataloader()])
    assert seen.sort()[0].tolist() == list(range(8))


class Seen(BoringModel):
    def test_step(self, batch, batch_idx):
        self.seen = [*getattr(self, "seen", []), batch["index"].tolist()]

    def predict_step(self, batch, batch_idx):
        return batch["index"].tolist()


def test_lightning_tests_and_predicts_with_these_batches(photos, tmp_path):
    data, model = module(photos), Seen()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
    )
    trainer.test(model, datamodule=data, verbose=False)
    predicted = trainer.predict(model, datamodule=data)
    assert model.seen == predicted
    assert sorted(row for batch in predicted for row in batch) == list(range(24))
