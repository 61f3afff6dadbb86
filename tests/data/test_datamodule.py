"""RetrievalDataModule: balanced training batches, complete evaluation, the same images on any number of workers."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from torchvision.transforms import v2

from dml.data import (
    BalancedSampler,
    ClassBalancedSampler,
    GlobalBatchSampler,
    HierarchicalSampler,
    RetrievalDataModule,
    SmoothAPSampler,
)
from dml.data.datasets import Glyphs, GoogleLandmarksV2, SfM120k, StanfordOnlineProducts
from tests.data.datasets.miniatures import make_sfm120k, make_sop


def data_module(root, **changes):
    arguments = {"classes_per_batch": 4, "samples_per_class": 2, "image_size": 32, "channels": 1, "num_workers": 0}
    return RetrievalDataModule(Glyphs, str(root), **{**arguments, **changes})


def train_batches(data, epochs=1):
    data.setup("fit")
    loader = data.train_dataloader()
    collected = []
    for epoch in range(epochs):
        loader.batch_sampler.sampler.set_epoch(epoch)
        collected.extend(loader)
    return collected


def test_training_batches_are_balanced(glyphs_root):
    batches = train_batches(data_module(glyphs_root))
    assert len(batches) == 6  # 12 classes in 2 groups of 2, 4 classes a batch
    for batch in batches:
        assert batch["images"].shape == (8, 1, 32, 32)
        assert batch["images"].dtype == torch.uint8
        assert batch["labels"].shape == (8, 3)
        assert batch["labels"][:, 0].unique(return_counts=True)[1].tolist() == [2, 2, 2, 2]


def test_evaluation_sees_every_image_once(glyphs_root):
    data = data_module(glyphs_root, eval_batch_size=7)
    data.setup("test")
    index = torch.cat([batch["index"] for batch in data.test_dataloader()])
    assert index.tolist() == list(range(24))


def test_augmentation_is_the_same_on_any_number_of_workers(glyphs_root):
    alone = train_batches(data_module(glyphs_root), epochs=2)
    shared = train_batches(data_module(glyphs_root, num_workers=2), epochs=2)
    for ours, theirs in zip(alone, shared, strict=True):
        assert torch.equal(ours["index"], theirs["index"])
        assert torch.equal(ours["images"], theirs["images"])


def test_augmentation_changes_with_the_epoch_and_the_seed(glyphs_root):
    def images(seed):
        epochs = train_batches(data_module(glyphs_root, seed=seed), epochs=2)
        by_index = [{}, {}]
        for number, batch in enumerate(epochs):
            by_index[number // 6].update(zip(batch["index"].tolist(), batch["images"], strict=True))
        return by_index

    (first, second), (other, _) = images(0), images(1)
    assert sum(torch.equal(first[i], second[i]) for i in first) < len(first) / 4
    assert sum(torch.equal(first[i], other[i]) for i in first) < len(first) / 4


def test_augmentation_leaves_the_global_generator_alone(glyphs_root):
    data = data_module(glyphs_root)
    data.setup("fit")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_goes_on_in_the_middle_of_an_epoch(glyphs_root):
    expected = train_batches(data_module(glyphs_root))
    data = data_module(glyphs_root)
    data.setup("fit")
    killed = data.train_dataloader()
    iterator = iter(killed)
    for _ in range(2):
        next(iterator)
    resumed = data.train_dataloader()
    resumed.load_state_dict(killed.state_dict())
    rest = list(resumed)
    assert [batch["index"].tolist() for batch in rest] == [batch["index"].tolist() for batch in expected[2:]]
    assert all(torch.equal(ours["images"], theirs["images"]) for ours, theirs in zip(rest, expected[2:], strict=True))
    assert len(list(resumed)) == 6  # the next epoch is whole again


LARGE = {"classes_per_batch": 12, "samples_per_class": 12}
"""A batch of 144, which workers load in three parts."""


@pytest.fixture(scope="module")
def many_root(tmp_path_factory):
    """Glyphs with four large batches to an epoch."""
    root = tmp_path_factory.mktemp("many") / "glyphs"
    Glyphs.draw(root, num_classes=(12, 6, 6), images_per_class=48)
    return root


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        for key in our:
            assert torch.equal(our[key], their[key]) if key != "unreadable" else our[key] == their[key]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_in_parts_are_the_same_batches(many_root, num_workers):
    whole = train_batches(data_module(many_root, **LARGE), epochs=2)
    assert [len(batch["index"]) for batch in whole] == [144] * 8
    assert_equal(train_batches(data_module(many_root, **LARGE, num_workers=num_workers), epochs=2), whole)


@pytest.mark.parametrize(
    ("num_workers", "classes", "sizes"), [(0, 12, [144]), (2, 12, [48] * 3), (2, 4, [48]), (1, 11, [44] * 3)]
)
def test_a_worker_loads_at_most_64_images_at_a_time(many_root, num_workers, classes, sizes):
    data = data_module(many_root, **{**LARGE, "classes_per_batch": classes}, num_workers=num_workers)
    data.setup("fit")
    loader = data.train_dataloader()
    parts = [len(part) for part in loader.batch_sampler]
    assert parts == sizes * len(loader)


def test_processes_cut_their_share_into_parts(many_root):
    shares = []
    for rank in range(2):
        data = data_module(many_root, **LARGE, num_workers=1)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, num_devices=2)
        shares.append(train_batches(data))
    whole = train_batches(data_module(many_root, **LARGE))
    for first, second, batch in zip(*shares, whole, strict=True):
        assert torch.equal(torch.stack([first["index"], second["index"]], dim=1).flatten(), batch["index"])


@pytest.mark.parametrize("num_workers", [(2, 2), (2, 0), (0, 1)], ids=str)
def test_a_loader_of_parts_goes_on_in_the_middle_of_an_epoch(many_root, num_workers):
    before, after = num_workers
    expected = train_batches(data_module(many_root, **LARGE))
    loaders = []
    for number in (before, after):
        data = data_module(many_root, **LARGE, num_workers=number)
        data.setup("fit")
        loaders.append(data.train_dataloader())
    killed, resumed = loaders
    served = iter(killed)
    assert_equal([next(served) for _ in range(3)], expected[:3])
    assert killed.state_dict() == {"served": 3}
    resumed.load_state_dict(killed.state_dict())
    assert len(resumed) == 4
    assert_equal(list(resumed), expected[3:])
    assert_equal(list(resumed), expected)


@pytest.mark.parametrize("num_broken_classes", [1, 11, 12])
def test_unreadable_images_of_parts_are_those_of_the_batch(tmp_path, num_broken_classes):
    """An image of one part, whole parts, and all."""
    root = tmp_path / "glyphs"
    Glyphs.draw(root, num_classes=(12, 6, 6), images_per_class=12)
    folders = sorted({path.parent for path in (root / "train").rglob("*.png")})
    for folder in folders[:num_broken_classes]:
        for path in sorted(folder.glob("*.png"))[: None if num_broken_classes > 1 else 1]:
            path.unlink()
    (whole,) = train_batches(data_module(root, **LARGE))
    assert len(whole["unreadable"]) == (1 if num_broken_classes == 1 else 12 * num_broken_classes)
    assert len(whole["index"]) == 144 - len(whole["unreadable"])
    assert_equal(train_batches(data_module(root, **LARGE, num_workers=2)), [whole])


class EvenThenOdd(GlobalBatchSampler):
    """One batch, whose first half is of images with even rows."""

    def draw(self, generator):
        half = np.arange(self.batch_size // 2) * 2 % len(self.classes)
        return np.concatenate([half, half + 1])[None]


def test_images_of_two_sizes_in_two_parts_name_the_shapes(tmp_path):
    options = {"sampler": EvenThenOdd, "val_split": "test", "train_transforms": [], "num_workers": 1}
    data = RetrievalDataModule(StanfordOnlineProducts, str(make_sop(tmp_path)), 12, 8, **options)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"^images of one batch have shapes \[\(3, 64, 80\), \(3, 80, 64\)\]"):
        list(data.train_dataloader())


@pytest.mark.parametrize("sampler", [BalancedSampler, ClassBalancedSampler, HierarchicalSampler, SmoothAPSampler])
def test_any_sampler_draws_the_batches(tmp_path, sampler):
    options = {"sampler": sampler, "val_classes": 1 / 3, "image_size": 8, "num_workers": 0, "seed": 3}
    data = RetrievalDataModule(StanfordOnlineProducts, str(make_sop(tmp_path)), 4, 2, **options)
    served = [batch["index"].tolist() for batch in train_batches(data)]
    drawn = list(sampler(data.datasets["train"].labels, 4, 2, seed=3))
    assert [row for batch in served for row in batch] == drawn
    assert len(data.train_dataloader()) == len(served)


def parsed(*words):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RetrievalDataModule, "data")
    return parser.instantiate_classes(parser.parse_args([f"--data.{word}" for word in words])).data


def test_sampler_and_levels_on_the_command_line(tmp_path):
    """Two batches for each of the one pair of categories."""
    words = ["dataset=dml.data.datasets.StanfordOnlineProducts", f"root={make_sop(tmp_path)}", "num_workers=0"]
    words += ["classes_per_batch=4", "samples_per_class=2", "val_split=test", "image_size=8"]
    batches = train_batches(parsed(*words, "sampler=HierarchicalSampler", "sampler.batches_per_tuple=2"))
    assert [batch["labels"][:, 1].bincount().tolist() for batch in batches] == [[4, 4]] * 2
    assert len(train_batches(parsed(*words))) == 6  # of 12 products with 4 images
    by_category = train_batches(parsed(*words[:3], "classes_per_batch=2", *words[4:], 'levels=["category"]'))
    assert by_category[0]["labels"].shape == (4, 1)
    assert by_category[0]["labels"][:, 0].bincount().tolist() == [2, 2]


@pytest.mark.parametrize(
    ("levels", "message"),
    [(["colour"], r"lacks columns \['colour'\]"), (["category", "product"], "'category' is not nested in 'product'")],
)
def test_wrong_levels(tmp_path, levels, message):
    data = RetrievalDataModule(StanfordOnlineProducts, str(make_sop(tmp_path)), 2, levels=levels)
    with pytest.raises(ValueError, match=message):
        data.prepare_data()


@pytest.mark.parametrize(
    ("cores", "devices", "num_workers"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (64, 1, 16), (64, 8, 7), (8, 8, 1)]
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_default_number_of_workers_is_a_share_of_the_cores_but_one(
    glyphs_root, monkeypatch, cores, devices, num_workers
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    data = data_module(glyphs_root, num_workers=None)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, num_devices=devices)
    data.setup("fit")
    assert data.train_dataloader().num_workers == data.val_dataloader().num_workers == num_workers


def test_a_data_set_without_a_test_split_can_train(tmp_path):
    data = RetrievalDataModule(SfM120k, str(make_sfm120k(tmp_path)), 4, 2, image_size=8, num_workers=0)
    data.prepare_data()
    assert len(train_batches(data)) > 0


class EpochSeen(BoringModel):
    """Records the images of each epoch as Lightning serves them."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).append(batch["index"].tolist())
        return self.layer(torch.zeros(1, 32)).sum()

    def val_dataloader(self):
        return None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_reaches_set_epoch(many_root, tmp_path, num_workers):
    model, data = EpochSeen(), data_module(many_root, **LARGE, num_workers=num_workers)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=data)
    expected = [batch["index"].tolist() for batch in train_batches(data_module(many_root, **LARGE), epochs=2)]
    assert model.seen == {0: expected[:4], 1: expected[4:]}


def test_a_third_of_the_training_classes_can_validate(tmp_path):
    make_sop(tmp_path)
    data = RetrievalDataModule(
        StanfordOnlineProducts, str(tmp_path), 2, val_classes=1 / 3, image_size=16, num_workers=0
    )
    data.setup("fit")
    train, val = (set(data.datasets[split].index["product"]) for split in ("train", "val"))
    assert not train & val
    assert len(val) == round((len(train) + len(val)) / 3)


def test_classes_are_held_out_of_the_split_that_is_trained_on_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"^val_classes is 0.5, which .* but train_split is 'train_hierarchical'"):
        RetrievalDataModule(GoogleLandmarksV2, str(tmp_path), train_split="train_hierarchical", val_classes=0.5)


def test_default_transforms_bring_photos_to_one_size(tmp_path):
    make_sop(tmp_path)
    data = RetrievalDataModule(StanfordOnlineProducts, str(tmp_path), 2, val_split="test", image_size=24, num_workers=0)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))["images"].shape[1:] == (3, 24, 24)


@pytest.fixture
def broken_root(tmp_path):
    """Three of the test images cannot be read: one is missing, one is cut short, one is no image."""
    root = tmp_path / "glyphs"
    Glyphs.draw(root, num_classes=(12, 6, 6), images_per_class=4)
    missing, cut, text = sorted((root / "test").rglob("*.png"))[::8]
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:60])
    text.write_text("not an image")
    return root, (missing, cut, text)


def test_an_unreadable_image_stops_the_run_and_names_its_path(broken_root):
    root, broken = broken_root
    data = data_module(root, num_workers=1)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert len(batch["unreadable"]) == 3
    with pytest.raises(ValueError, match=r"cannot read image .*data\.skip_unreadable=true") as stopped:
        data.on_before_batch_transfer(batch, 0)
    assert any(str(path) in str(stopped.value) for path in broken)


def test_unreadable_images_can_be_skipped_and_are_counted(broken_root):
    root, _ = broken_root
    data = data_module(root, skip_unreadable=True)
    data.setup("test")
    (batch,) = data.test_dataloader()
    with pytest.warns(UserWarning, match="skipped 3 unreadable images so far"):
        kept = data.on_before_batch_transfer(batch, 0)
    assert len(kept["index"]) == len(kept["images"]) == 21


def test_images_of_two_sizes_name_the_shapes(tmp_path):
    make_sop(tmp_path)
    data = RetrievalDataModule(
        StanfordOnlineProducts,
        str(tmp_path),
        2,
        val_split="test",
        train_transforms=[v2.RandomChoice([v2.Resize((8, 8)), v2.Resize((9, 9))])],
        num_workers=0,
    )
    data.setup("fit")
    with pytest.raises(ValueError, match=r"shapes \[\(3, 8, 8\), \(3, 9, 9\)\]"):
        list(data.train_dataloader())


def test_training_labels_have_no_gaps(glyphs_root):
    """A loss with one proxy for each class takes labels as they are; classes held out for validation leave gaps."""
    module = RetrievalDataModule(Glyphs, str(glyphs_root), 4, 2, image_size=32, channels=1, num_workers=0)
    module.dataset = WithGaps
    module.setup("fit")
    labels = module.datasets["train"].labels
    published = WithGaps(str(glyphs_root), "train", channels=1).labels
    assert published[:, 0].max() >= len(published[:, 0].unique())
    for level in range(labels.shape[1]):
        assert labels[:, level].unique().tolist() == list(range(len(published[:, level].unique())))
        pairs = torch.stack([labels[:, level], published[:, level]], dim=1).unique(dim=0)
        assert len(pairs) == len(published[:, level].unique())


class WithGaps(Glyphs):
    @staticmethod
    def read_index(root):
        index = Glyphs.read_index(root)
        names = sorted(index.loc[index["split"] == "train", Glyphs.levels[0]].unique())
        return index[~((index["split"] == "train") & index[Glyphs.levels[0]].isin(names[::3]))]
