"""A copy of a data set with smaller images, which load faster and fit more disks."""

import io
import json
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from PIL import Image
from rich.progress import track
from torchvision.transforms.v2 import functional

from dml.data.dataset import RetrievalDataset
from dml.data.files import PREPARED
from dml.data.images import UnreadableImageError, decode_image
from dml.data.parallel import over_images

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def extract(root: Path, *, progress: bool = True) -> list[Path]:
    """Unpack the archives that lie in ``root`` or its folders, each where it is. What is there already is left.

    Returns:
        The archives.

    Raises:
        ValueError: If an archive is damaged, or a member would be written outside of its folder.
        OSError: If what was written has not the size that the archive says.
    """
    archives = sorted(file for file in (*root.glob("*"), *root.glob("*/*")) if file.name.lower().endswith(_ARCHIVES))
    for archive in archives:
        members = (_unzip if archive.suffix.lower() == ".zip" else _untar)(archive, archive.parent)
        try:
            for path, size in track(members, f"unpacking {archive.name}", disable=not progress):
                if (found := path.stat().st_size) != size:
                    raise OSError(f"{path} has {found} bytes, but {archive} says {size}; is the disk full?")
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{archive} cannot be unpacked: {error}; was it fetched whole?") from error
    return archives


def prepare(
    datasets: Sequence[RetrievalDataset],
    out: Path,
    *,
    shorter_side: int,
    quality: int,
    num_workers: int,
    progress: bool = True,
) -> list[str]:
    """Copy all images, resized, and every other file of the root, under the names they have.

    Images are turned upright. Those with a box, which counts their pixels, and those that are small enough are copied
    as they are. A copy that was killed goes on where it was: a file is written at once or not at all.

    Args:
        datasets: All splits of a data set.
        out: Folder of the copy, the root of the prepared data set.
        shorter_side: Of a resized image, in pixels.
        quality: Of JPEG, 1 to 95.
        num_workers: Processes that resize.
        progress: Whether to show a progress bar.

    Returns:
        What is wrong with the images that could not be read; they have no copy.

    Raises:
        ValueError: If an argument is out of range, ``out`` and the root of the data set are not apart, or ``out`` holds
            copies of other settings.
    """
    if shorter_side < 1:
        raise ValueError(f"shorter_side is {shorter_side}; it is a number of pixels, at least 1")
    if not 1 <= quality <= 95:
        raise ValueError(f"quality is {quality}; JPEG takes 1 to 95")
    root = datasets[0].root
    source, target = (root.parent if root.is_file() else root).resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ValueError(f"out is {str(out)!r}, which must be a folder apart from root, {str(source)!r}")
    settings = {"dataset": type(datasets[0]).__qualname__, "shorter_side": shorter_side, "quality": quality}
    _keep_settings(out, settings)
    images = {path for dataset in datasets for path in dataset.index["path"]}
    # Of a root that is a list, what else lies in its folder may be anything.
    for path in [root.name] if root.is_file() else _other_files(source, images):
        with (source / path).open("rb") as content:
            _write(target / path, content)
    # An image may have a box in one split and none in another.
    boxed = {path for part in datasets for row, path in enumerate(part.index["path"]) if part.box(row) is not None}
    copy = partial(_copy, out=target, shorter_side=shorter_side, quality=quality, boxed=boxed)
    errors = over_images(copy, datasets, num_workers=num_workers, message="resizing images", progress=progress)
    return [error for error in errors if error]


def _copy(dataset: RetrievalDataset, row: int, *, out: Path, shorter_side: int, quality: int, boxed: set[str]) -> str:
    """Write the copy of an image, if it is not there; what is wrong with it, if it cannot be read."""
    name = str(dataset.index["path"][row])
    path = out / name
    if path.exists():
        return ""
    try:
        content = dataset.content(row)
        image = decode_image(content, 3)
    except (OSError, UnreadableImageError) as error:
        return f"{dataset.path(row)}: {error}"
    # The lists know an image by its name, so it keeps its kind; one without a suffix is a JPEG.
    kind = Image.registered_extensions().get(path.suffix.lower(), "JPEG")
    if name not in boxed and min(image.shape[1:]) > shorter_side and kind in Image.SAVE:
        resized = functional.to_pil_image(functional.resize(image, [shorter_side], antialias=True))
        buffer = io.BytesIO()
        resized.save(buffer, kind, quality=quality)
        content = buffer.getvalue()
    _write(path, io.BytesIO(content))
    return ""


def _write(path: Path, content: IO[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            shutil.copyfileobj(content, file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _keep_settings(out: Path, settings: dict[str, Any]) -> None:
    record = out / PREPARED
    if record.exists():
        there = json.loads(record.read_text())
        if there != settings:
            raise ValueError(f"out is {str(out)!r}, which holds copies of {there}, not {settings}; choose another")
    elif out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"out is {str(out)!r}, which holds other files; choose a new folder")
    else:
        _write(record, io.BytesIO(json.dumps(settings).encode()))


def _other_files(root: Path, images: set[str]) -> Iterator[str]:
    """Lists and labels: files that are no image of the data set and look like none, and no archive."""
    suffixes = {*Image.registered_extensions(), ""}
    for folder, _, names in os.walk(root):
        for name in names:
            path = (Path(folder) / name).relative_to(root).as_posix()
            is_image = path in images or Path(name).suffix.lower() in suffixes
            # The record of a root that was itself prepared says nothing of this copy.
            if not is_image and path != PREPARED and not name.lower().endswith(_ARCHIVES):
                yield path


def _unzip(archive: Path, root: Path) -> Iterator[tuple[Path, int]]:
    with zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            path = _inside(root, member.filename, archive)
            if not member.is_dir():
                if not _is_there(path, member.file_size):
                    with members.open(member) as stored:
                        _write(path, stored)
                yield path, member.file_size


def _untar(archive: Path, root: Path) -> Iterator[tuple[Path, int]]:
    with tarfile.open(archive) as members:
        for member in members:
            path = _inside(root, member.name, archive)
            if member.isfile():  # not a link or a device
                stored = members.extractfile(member)
                assert stored is not None
                if not _is_there(path, member.size):
                    _write(path, stored)
                yield path, member.size


def _inside(root: Path, name: str, archive: Path) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{archive} has a member {name!r}, which leaves the folder; it was not unpacked")
    return path


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
