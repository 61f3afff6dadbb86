"""A prepared copy is the same data set in smaller images; archives are unpacked where they lie and nowhere else."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dml.data.datasets import (
    DataFrameDataset,
    InShop,
    Omniglot,
    SfM120k,
    StanfordOnlineProducts,
    VGGFace2,
    VGGFace2Tight,
)
from dml.data.prepare import extract, prepare
from tests.data.datasets.miniatures import make_inshop, make_omniglot, make_sfm120k, make_sop, make_vggface2


def smooth(width, height):
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=2).astype(np.uint8))


def table(root, images, **columns):
    """A data set of these images: Pillow's, or bytes."""
    root.mkdir(exist_ok=True)
    for name, image in images.items():
        if isinstance(image, bytes):
            (root / name).write_bytes(image)
        else:
            image.save(root / name, quality=95)
    pd.DataFrame({"path": list(images), "label": 0, **columns}).to_csv(root / "index.csv", index=False)
    return [DataFrameDataset(root, levels=["label"])]


def small(datasets, out, **changes):
    settings = {"shorter_side": 32, "quality": 90, "num_workers": 1, **changes}
    return prepare(datasets, out, progress=False, **settings)


def size(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(
    ("before", "after"), [((100, 64), (50, 32)), ((64, 100), (32, 50)), ((64, 64), (32, 32)), ((33, 330), (32, 320))]
)
def test_shorter_side_and_aspect(tmp_path, before, after):
    small(table(tmp_path / "in", {"a.jpg": smooth(*before)}), tmp_path / "out")
    assert size(tmp_path / "out" / "a.jpg") == after


@pytest.mark.parametrize("before", [(100, 32), (32, 100), (10, 10)])
def test_small_images_are_copied_byte_for_byte(tmp_path, before):
    small(table(tmp_path / "in", {"a.jpg": smooth(*before)}), tmp_path / "out")
    assert (tmp_path / "out" / "a.jpg").read_bytes() == (tmp_path / "in" / "a.jpg").read_bytes()


def test_copies_look_like_the_images(tmp_path):
    small(table(tmp_path / "in", {"a.jpg": smooth(128, 64)}), tmp_path / "out")
    copy, expected = (np.asarray(image).astype(int) for image in (Image.open(tmp_path / "out/a.jpg"), smooth(64, 32)))
    assert np.abs(copy - expected).mean() < 4


def test_quality(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8))
    datasets = table(tmp_path / "in", {"a.jpg": noise})
    for quality in (20, 95):
        small(datasets, tmp_path / str(quality), quality=quality)
    bytes_of = [(tmp_path / str(quality) / "a.jpg").stat().st_size for quality in (20, 95)]
    assert 1.5 * bytes_of[0] < bytes_of[1]


def test_cameras_orientation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    smooth(100, 64).save(buffer, "JPEG", exif=exif)
    datasets = table(tmp_path / "in", {"a.jpg": buffer.getvalue()})
    small(datasets, tmp_path / "out")
    with Image.open(tmp_path / "out" / "a.jpg") as copy:
        assert copy.size == (32, 50)
        assert not copy.getexif().get(0x0112)
    copy, original = DataFrameDataset(tmp_path / "out", levels=["label"]).load(0), datasets[0].load(0)
    corners = [image[:, [1, 1, -2, -2], [1, -2, 1, -2]].int() for image in (copy, original)]
    assert (corners[0] - corners[1]).abs().max() < 30


def test_images_with_a_box_are_copied_as_they_are(tmp_path):
    box = {"left": [10, None], "top": [10, None], "right": [90, None], "bottom": [60, None]}
    datasets = table(tmp_path / "in", {"boxed.jpg": smooth(100, 64), "whole.jpg": smooth(100, 64)}, **box)
    small(datasets, tmp_path / "out")
    assert (tmp_path / "out" / "boxed.jpg").read_bytes() == (tmp_path / "in" / "boxed.jpg").read_bytes()
    assert size(tmp_path / "out" / "whole.jpg") == (50, 32)


def test_an_image_with_a_box_in_one_split_only_is_copied_as_it_is(tmp_path):
    table(tmp_path / "in", {"a.jpg": smooth(100, 64)})
    rows = "path,split,label,left,top,right,bottom\na.jpg,test,0,,,,\na.jpg,train,0,10,10,90,60\n"
    (tmp_path / "in" / "index.csv").write_text(rows)
    small([DataFrameDataset(tmp_path / "in", split, levels=["label"]) for split in ("test", "train")], tmp_path / "out")
    assert size(tmp_path / "out" / "a.jpg") == (100, 64)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.tif", "TIFF"), ("a.bmp", "BMP")],
)
def test_an_image_keeps_its_kind(tmp_path, name, kind):
    small(table(tmp_path / "in", {name: smooth(100, 64)}), tmp_path / "out")
    with Image.open(tmp_path / "out" / name) as copy:
        assert (copy.format, copy.size) == (kind, (50, 32))


def test_a_name_without_a_suffix_is_a_jpeg(tmp_path):
    small([SfM120k(make_sfm120k(tmp_path / "in"))], tmp_path / "out")
    copies = [path for path in (tmp_path / "out" / "ims").rglob("*") if path.is_file()]
    assert len(copies) == 48
    with Image.open(copies[0]) as copy:
        assert (copy.format, min(copy.size)) == ("JPEG", 32)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("dataset", "make"), [(InShop, make_inshop), (Omniglot, make_omniglot), (StanfordOnlineProducts, make_sop)]
)
def test_the_copy_is_the_same_data_set(tmp_path, dataset, make, num_workers):
    root, out = make(tmp_path / "in"), tmp_path / "out"
    before = [dataset(root, split) for split in ("test", "train")]
    assert small(before, out, num_workers=num_workers) == []
    for original, copy in zip(before, [dataset(out, split) for split in ("test", "train")], strict=True):
        pd.testing.assert_frame_equal(copy.index, original.index)
        assert torch.equal(copy.labels, original.labels)
        for row in range(len(copy)):
            assert min(copy.load(row).shape[1:]) == 32
    of_both = ({file.relative_to(folder) for file in folder.rglob("*")} for folder in (root, out))
    assert {str(path) for path in set.symmetric_difference(*of_both)} == {"prepared.json"}


def test_a_copy_of_a_copy_has_its_own_record(tmp_path):
    small(table(tmp_path / "in", {"a.jpg": smooth(100, 64)}), tmp_path / "first")
    small([DataFrameDataset(tmp_path / "first")], tmp_path / "second", shorter_side=16)
    small([DataFrameDataset(tmp_path / "first")], tmp_path / "second", shorter_side=16)
    expected = {"dataset": "DataFrameDataset", "shorter_side": 16, "quality": 90}
    assert json.loads((tmp_path / "second" / "prepared.json").read_text()) == expected


def test_root_may_be_a_list(tmp_path):
    table(tmp_path / "in", {"a.jpg": smooth(100, 64)})
    small([DataFrameDataset(tmp_path / "in" / "index.csv")], tmp_path / "out")
    assert DataFrameDataset(tmp_path / "out" / "index.csv").load(0).shape == (3, 32, 50)


def test_what_else_lies_beside_a_list_is_left(tmp_path):
    table(tmp_path / "in", {"a.jpg": smooth(100, 64)})
    (tmp_path / "in" / "thesis.txt").write_text("mine")
    small([DataFrameDataset(tmp_path / "in" / "index.csv")], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "index.csv", "prepared.json"]


def test_boxes_are_not_taken_of_images_that_were_resized_without_them(tmp_path):
    make_vggface2(tmp_path / "in")
    small([VGGFace2(tmp_path / "in", split) for split in ("train", "test")], tmp_path / "out")
    assert len(VGGFace2(tmp_path / "out")) == len(VGGFace2(tmp_path / "in"))
    with pytest.raises(
        ValueError, match="prepared as VGGFace2 and may hold smaller images than the boxes of VGGFace2T"
    ):
        VGGFace2Tight(tmp_path / "out")
    small([VGGFace2Tight(tmp_path / "in", split) for split in ("train", "test")], tmp_path / "tight")
    assert torch.equal(VGGFace2Tight(tmp_path / "tight").load(0), VGGFace2Tight(tmp_path / "in").load(0))


def test_archives_and_images_of_no_split_are_left(tmp_path):
    datasets = table(tmp_path / "in", {"a.jpg": smooth(100, 64)})
    for name in ("b.jpg", "images.zip", "images.TAR.GZ"):
        (tmp_path / "in" / name).write_bytes(b"x")
    (tmp_path / "in" / "notes").mkdir()
    (tmp_path / "in" / "notes" / "list.txt").write_text("kept")
    small(datasets, tmp_path / "out")
    copied = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert copied == {"a.jpg", "index.csv", "list.txt", "prepared.json"}


def test_a_killed_copy_goes_on(tmp_path):
    """What is there is left, what is missing is made, and what a killed process left is no image."""
    root, out = make_sop(tmp_path / "in"), tmp_path / "out"
    datasets = [StanfordOnlineProducts(root, split) for split in ("test", "train")]
    small(datasets, out)
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    first, *deleted = sorted(out.rglob("*.JPG"))[:5]
    for path in deleted:
        path.unlink()
    (deleted[0].parent / f".{deleted[0].name}.4242").write_bytes(b"half of an ima")
    first.write_bytes(b"made before")
    assert small(datasets, out) == []
    now = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert now == {**whole, first: b"made before"}


@pytest.mark.parametrize("changes", [{"shorter_side": 16}, {"quality": 50}])
def test_other_settings_need_another_folder(tmp_path, changes):
    datasets = table(tmp_path / "in", {"a.jpg": smooth(100, 64)})
    small(datasets, tmp_path / "out")
    before = (tmp_path / "out" / "a.jpg").read_bytes()
    with pytest.raises(
        ValueError, match=r"holds copies of .*'shorter_side': 32, 'quality': 90\}, not .*choose another"
    ):
        small(datasets, tmp_path / "out", **changes)
    assert (tmp_path / "out" / "a.jpg").read_bytes() == before


@pytest.mark.parametrize("out", [".", "inside", "inside/further", "..", "../..", "../in/../in"])
def test_out_must_be_apart_from_root(tmp_path, out):
    folder = tmp_path / "above" / "in"
    folder.parent.mkdir()
    datasets = table(folder, {"a.jpg": smooth(100, 64)})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="must be a folder apart from root"):
        small(datasets, folder / out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_whose_name_begins_alike_is_apart(tmp_path):
    small(table(tmp_path / "in", {"a.jpg": smooth(100, 64)}), tmp_path / "in_small")
    assert (tmp_path / "in_small" / "a.jpg").exists()


def test_out_must_be_new_or_empty(tmp_path):
    datasets = table(tmp_path / "in", {"a.jpg": smooth(100, 64)})
    (tmp_path / "empty").mkdir()
    small(datasets, tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for out in (tmp_path / "full", tmp_path / "full" / "thesis.txt"):
        with pytest.raises(ValueError, match="which holds other files; choose a new folder"):
            small(datasets, out)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shorter_side": 0}, "shorter_side is 0"),
        ({"quality": 0}, "quality is 0; JPEG takes 1 to 95"),
        ({"quality": 96}, "quality is 96"),
    ],
)
def test_wrong_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        small(table(tmp_path / "in", {"a.jpg": smooth(100, 64)}), tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_unreadable_images_are_listed_and_have_no_copy(tmp_path):
    images = {"cut.jpg": b"\xff\xd8\xff\xe0", "gone.jpg": b"", "whole.jpg": smooth(100, 64)}
    datasets = table(tmp_path / "in", images)
    (tmp_path / "in" / "gone.jpg").unlink()
    errors = small(datasets, tmp_path / "out")
    assert [error.partition(": ")[0] for error in errors] == [str(tmp_path / "in" / n) for n in ("cut.jpg", "gone.jpg")]
    assert [path.name for path in (tmp_path / "out").glob("*.jpg")] == ["whole.jpg"]
    smooth(100, 64).save(tmp_path / "in" / "cut.jpg")
    assert len(small(datasets, tmp_path / "out")) == 1  # once mended, it is copied


FILES = {"list.txt": b"0 1 2\n", "images/a.jpg": b"first", "images/deep/b.jpg": bytes(100_000)}


def pack(archive, files):
    """Write an archive of the kind that its name says."""
    archive.parent.mkdir(exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as members:
            for name, content in files.items():
                members.writestr(name, content)
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as members:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                members.addfile(member, io.BytesIO(content))
    return archive


def unpacked(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith("archive.")
    }


KINDS = ["archive.zip", "archive.tar", "archive.tar.gz", "archive.tgz"]


def test_archives_of_a_folder_are_unpacked_into_it(tmp_path):
    archive = pack(tmp_path / "Img" / "img.zip", {"img/1.txt": b"one"})
    assert extract(tmp_path, progress=False) == [archive]
    assert (tmp_path / "Img" / "img" / "1.txt").read_bytes() == b"one"


@pytest.mark.parametrize("name", KINDS)
def test_archives_are_unpacked_where_they_lie(tmp_path, name):
    archive = pack(tmp_path / name, FILES)
    assert extract(tmp_path, progress=False) == [archive]
    assert unpacked(tmp_path) == FILES


@pytest.mark.parametrize("name", KINDS)
def test_what_is_there_is_left_and_what_was_cut_is_made_again(tmp_path, name):
    pack(tmp_path / name, FILES)
    extract(tmp_path, progress=False)
    (tmp_path / "list.txt").write_bytes(b"5 6 7\n")  # of the same size
    (tmp_path / "images" / "deep" / "b.jpg").write_bytes(b"cut")
    (tmp_path / "images" / "a.jpg").unlink()
    extract(tmp_path, progress=False)
    assert unpacked(tmp_path) == {**FILES, "list.txt": b"5 6 7\n"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("member", ["../evil.txt", "images/../../evil.txt", "{}/evil.txt"])
def test_no_member_leaves_the_folder(tmp_path, name, member):
    root = tmp_path / "root"
    pack(root / name, {member.format(tmp_path): b"evil"})
    with pytest.raises(ValueError, match=r"archive\..* has a member .*evil\.txt', which leaves the folder"):
        extract(root, progress=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["root", name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_an_archive_are_no_way_out(tmp_path, kind):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    with tarfile.open(root / "archive.tar", "w") as members:
        for name, target in (("way", str(outside)), ("copy.txt", str(outside / "secret.txt"))):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            members.addfile(link)
        through = tarfile.TarInfo("way/evil.txt")
        through.size = 4
        members.addfile(through, io.BytesIO(b"evil"))
    extract(root, progress=False)
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert not any(path.is_symlink() for path in root.rglob("*"))
    assert unpacked(root) == {"way/evil.txt": b"evil"}


def test_a_link_that_is_there_is_no_way_out(tmp_path):
    pack(tmp_path / "root" / "archive.zip", {"way/evil.txt": b"evil"})
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "way").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="which leaves the folder"):
        extract(tmp_path / "root", progress=False)
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_archive_is_named(tmp_path, name):
    noise = {f"{number}.jpg": np.random.default_rng(number).bytes(5000) for number in range(9)}
    archive = pack(tmp_path / name, noise)
    archive.write_bytes(archive.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=rf"{name} cannot be unpacked: .*; was it fetched whole\?$"):
        extract(tmp_path, progress=False)
    extracted = unpacked(tmp_path)
    assert extracted == {path: noise[path] for path in extracted}  # no half of a file under its own name


def test_an_archive_with_a_folder_of_its_own_says_where_to_point_root(tmp_path):
    make_sop(tmp_path / "in")
    files = {
        f"Stanford/{path.relative_to(tmp_path / 'in')}": path.read_bytes() for path in (tmp_path / "in").rglob("*.*")
    }
    pack(tmp_path / "root" / "archive.zip", files)
    extract(tmp_path / "root", progress=False)
    with pytest.raises(FileNotFoundError, match=r"those are in '.*/root/Stanford': point root there"):
        StanfordOnlineProducts(tmp_path / "root")
    assert len(StanfordOnlineProducts(tmp_path / "root" / "Stanford")) == 48
