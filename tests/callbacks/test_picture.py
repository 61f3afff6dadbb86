import numpy as np
import pytest
import torch
import wandb
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image
from pytorch_lightning.loggers import WandbLogger

from dml.callbacks import picture
from dml.callbacks.metrics import LogRetrievalMetrics
from dml.callbacks.picture import QUERY, RIGHT, WRONG, RetrievalPicture, draw_retrievals
from dml.callbacks.retrievals import Retrieval, nearest_neighbours
from dml.metrics import HierarchicalMetrics, LandmarkMetrics, ReidentificationMetrics, RetrievalMetrics
from tests.callbacks.test_metrics import Landmarks

from .conftest import COLOURS, SIZES, Colours, paint

NAMES = list(COLOURS)
CLASSES = [name[0] for name in NAMES]
QUERIES = [row for row, name in enumerate(NAMES) if "gallery" not in name]
GALLERY = [row for row, name in enumerate(NAMES) if "query" not in name]


def cosines():
    colours = np.array([COLOURS[name] for name in NAMES], float) + 1
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    return colours @ colours.T


def ranking(query):
    """The gallery in the order of its similarity to the query."""
    return sorted((row for row in GALLERY if row != query), key=lambda row: -cosines()[query, row])


def average_precision(query):
    hits = [CLASSES[row] == CLASSES[query] for row in ranking(query)]
    return np.mean([sum(hits[:place]) / place for place, hit in enumerate(hits, start=1) if hit])


def frames(figure):
    """Of each frame in the order drawn: what its gid says, the image, and the colour it has."""
    found = [
        patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and " " in (patch.get_gid() or "")
    ]
    return [(*patch.get_gid().split(), to_hex(patch.get_edgecolor())) for patch in found]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.fixture
def drawn(monkeypatch):
    """Sections and figure of each picture the callback draws."""
    calls = []

    def draw(dataset, sections, **options):
        calls.append((sections, draw_retrievals(dataset, sections, **options)))
        return calls[-1][1]

    monkeypatch.setattr(picture, "draw_retrievals", draw)
    return calls


def with_metrics(*, level=0, **options):
    return RetrievalPicture(**options), LogRetrievalMetrics(RetrievalMetrics(recall_at=[1], level=level))


def test_worst_queries_and_their_neighbours(make_trainer, module, datamodule, drawn):
    make_trainer(*with_metrics(num_worst=4, num_neighbours=6)).validate(module, datamodule, verbose=False)
    (sections, figure), = drawn  # fmt: skip
    worst = sorted(QUERIES, key=average_precision)[:4]
    assert [retrieval.query for retrieval in sections["worst queries"]] == worst
    for retrieval in [*sections["worst queries"], *sections["random queries"]]:
        query, expected = retrieval.query, ranking(retrieval.query)[:6]
        assert retrieval.neighbours == expected
        assert retrieval.average_precision == pytest.approx(average_precision(query))
        assert retrieval.similarity == pytest.approx(cosines()[query, expected].tolist(), abs=1e-5)
        assert retrieval.is_right == [CLASSES[row] == CLASSES[query] for row in expected]
    assert f"AP {average_precision(worst[0]):.2f}" in texts(figure)
    mean = np.mean([average_precision(query) for query in QUERIES])
    hit_rate = np.mean([CLASSES[ranking(query)[0]] == CLASSES[query] for query in QUERIES])
    assert texts(figure)[:2] == ["val, epoch 0, step 0", f"mean AP {mean:.3f}, R@1 {hit_rate:.3f} of 10 queries"]


def test_frames_tell_right_from_wrong(make_trainer, module, datamodule, drawn):
    make_trainer(*with_metrics(num_random=0, num_worst=10, num_neighbours=5)).test(module, datamodule, verbose=False)
    found = frames(drawn[0][1])
    assert len(found) == 10 * (1 + 5)
    assert {colour for _, _, colour in found} == {QUERY, RIGHT, WRONG}
    for row in range(10):
        (kind, query, colour), *neighbours = found[row * 6 : row * 6 + 6]
        assert (kind, colour) == ("query", QUERY)
        assert query not in [image for _, image, _ in neighbours]
        for _, image, colour in neighbours:
            assert colour == (RIGHT if CLASSES[int(image)] == CLASSES[int(query)] else WRONG)


def test_class_is_the_level_of_the_metric(make_trainer, module, datamodule, drawn):
    make_trainer(*with_metrics(level=1)).validate(module, datamodule, verbose=False)
    halves = [name > "b" for name in CLASSES]
    retrievals = drawn[0][0]["random queries"]
    assert any(
        CLASSES[r.query] != CLASSES[n] and halves[r.query] == halves[n] for r in retrievals for n in r.neighbours
    )
    for retrieval in retrievals:
        assert retrieval.is_right == [halves[row] == halves[retrieval.query] for row in retrieval.neighbours]


def test_one_picture_per_evaluation_with_the_same_random_queries(make_trainer, module, datamodule, drawn, tmp_path):
    callback, metrics = with_metrics(num_random=3)
    trainer = make_trainer(callback, metrics, max_epochs=2, num_sanity_val_steps=2, limit_train_batches=1, logger=False)
    trainer.fit(module, datamodule)
    assert len(drawn) == 2
    first, second = ([r.query for r in sections["random queries"]] for sections, _ in drawn)
    assert first == second
    assert len(set(first)) == 3
    folder = tmp_path / "run" / "pictures"
    names = ["val-epoch000-step000001.png", "val-epoch001-step000002.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert callback.last_path == folder / names[1]
    seeds = [with_metrics(num_random=3, seed=seed)[0] for seed in range(5)]
    chosen = [seed._sections(metrics.metrics, *metrics.per_query)["random queries"] for seed in seeds]
    assert len({tuple(r.query for r in retrievals) for retrievals in chosen}) > 1


@pytest.mark.parametrize("metrics", [LandmarkMetrics(), ReidentificationMetrics(recall_at=[1])])
def test_no_picture_without_average_precision(make_trainer, module, datamodule, drawn, metrics, tmp_path):
    datamodule.dataset = Landmarks
    callback = RetrievalPicture()
    make_trainer(callback, LogRetrievalMetrics(metrics)).test(module, datamodule, verbose=False)
    assert not drawn
    assert callback.last_path is None
    assert not (tmp_path / "run" / "pictures").exists()


@pytest.mark.filterwarnings("ignore:no query has a relevant item")
def test_no_picture_of_no_query(make_trainer, module, datamodule, drawn, root):
    for path in root.glob("*-[1-9]-*.png"):
        path.unlink()
    callback, metrics = with_metrics()
    make_trainer(callback, metrics).test(module, datamodule, verbose=False)
    assert metrics.metrics.num_unanswerable == 3
    assert not drawn


def test_of_several_levels_the_finest_is_drawn(make_trainer, module, datamodule, drawn, root):
    paint(root, "d-0-both", (10, 200, 200), (8, 8))  # alone in its class, not in its half
    callback, metrics = RetrievalPicture(num_worst=20), LogRetrievalMetrics(HierarchicalMetrics(recall_at=[1]))
    make_trainer(callback, metrics).test(module, datamodule, verbose=False)
    (sections, figure), = drawn  # fmt: skip
    assert len(metrics.per_query[0]) == 11
    assert sorted(retrieval.query for retrieval in sections["worst queries"]) == QUERIES
    assert f"of {len(QUERIES)} queries" in texts(figure)[1]
    assert "nan" not in "".join(texts(figure))


def test_picture_shows_the_images(make_trainer, module, datamodule, drawn):
    callback, metrics = with_metrics(num_worst=0, num_random=10, num_neighbours=3)
    make_trainer(callback, metrics).test(module, datamodule, verbose=False)
    assert callback.last_path.name == "test-epoch000-step000000.png"
    with Image.open(callback.last_path) as image:
        pixels = np.asarray(image.convert("RGB"))
    figure = drawn[0][1]
    assert pixels.shape[:2] == tuple(reversed(figure.canvas.get_width_height()))
    patches = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and " " in (p.get_gid() or "")]
    assert len(patches) == 40
    for patch in patches:
        centre = pixels[round(patch.get_y() + patch.get_height() / 2), round(patch.get_x() + patch.get_width() / 2)]
        assert tuple(centre) == COLOURS[NAMES[int(patch.get_gid().split()[1])]]
        edge = pixels[round(patch.get_y() + patch.get_height() / 2), round(patch.get_x())]
        assert to_hex(edge / 255) == to_hex(patch.get_edgecolor())


def test_shapes_fit_their_tiles(root):
    dataset = Colours(root, "test")
    figure = draw_retrievals(
        dataset, {"all": [Retrieval(0, 0.5, list(range(1, 12)), [0.0] * 11, [True] * 11)]}, title=""
    )
    extents = [image.get_extent() for image in figure.axes[0].images]
    sizes = [(right - left, bottom - top) for left, right, bottom, top in extents]
    assert sizes[:4] == [(128, 128), (40, 120), (128, 43), (128, 96)]  # of SIZES: small ones grow by a whole number
    assert len(SIZES) == 4
    assert {image.get_interpolation() for image in figure.axes[0].images} == {"nearest"}
    assert all(value == int(value) for extent in extents for value in extent)


def test_small_images_stay_sharp(tmp_path):
    checkers = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "a-0-both.png")
    figure = draw_retrievals(Colours(tmp_path, "test", channels=1), {"one": [Retrieval(0, 1, [], [], [])]}, title="")
    figure.canvas.draw()
    left, right, bottom, top = (int(value) for value in figure.axes[0].images[0].get_extent())
    drawn = np.asarray(figure.canvas.buffer_rgba())[top:bottom, left:right, 0]
    np.testing.assert_array_equal(drawn, checkers.repeat(4, 0).repeat(4, 1))


def test_unreadable_image_is_an_empty_tile(root):
    paint(root, "d-0-both", (0, 0, 0), (8, 8))
    (root / "d-1-both.png").write_bytes(b"not an image")
    dataset = Colours(root, "test")
    figure = draw_retrievals(dataset, {"one": [Retrieval(12, 0.5, [13, 0], [0.9, 0.8], [True, False])]}, title="")
    assert frames(figure) == [("query", "12", QUERY), ("right", "13", RIGHT), ("wrong", "0", WRONG)]
    assert len(figure.axes[0].images) == 2
    assert "unreadable:\nd-1-both.png" in texts(figure)


def metrics_of(embeddings, labels, index=None, **roles):
    metrics = RetrievalMetrics(recall_at=[1])
    index = torch.arange(len(labels)) if index is None else torch.tensor(index)
    metrics.update(torch.tensor(embeddings), torch.tensor(labels), index, **roles)
    return metrics


def test_repeated_images_count_once():
    near, far = [1.0, 0.0], [0.6, 0.8]
    metrics = metrics_of([near, near, far, near, near], [0, 0, 1, 0, 0], index=[4, 7, 2, 4, 7])
    (found,) = nearest_neighbours(metrics, torch.tensor([4]), torch.ones(1), 8)
    assert found.neighbours == [7, 2]
    assert found.similarity == pytest.approx([1, 0.6])


def test_ties_count_against_the_item():
    metrics = metrics_of([[1.0, 0.0]] * 5, [0, 0, 1, 0, 1])
    (found,) = nearest_neighbours(metrics, torch.tensor([0]), torch.zeros(1), 3)
    assert found.neighbours == [2, 4, 1]
    assert found.is_right == [False, False, True]


def test_gallery_is_that_of_all_processes(monkeypatch, make_trainer, module, datamodule, drawn):
    """With a second process that has the other half, as torchmetrics sees it."""
    callback, log = with_metrics(num_worst=10, num_random=0)
    trainer = make_trainer(callback, log)
    trainer.validate(module, datamodule, verbose=False)
    metrics, whole = log.metrics, drawn[0][0]
    states = list(metrics._reductions)
    other = {name: torch.cat(getattr(metrics, name))[5:] for name in states}
    for name in states:
        setattr(metrics, name, [torch.cat(getattr(metrics, name))[:5]])
    pending = iter(states)
    metrics.dist_sync_fn = lambda tensor, group: [tensor, other[next(pending)]]
    metrics.distributed_available_fn = lambda: True
    callback._draw(trainer, "val")
    assert drawn[1][0] == whole
    assert len(metrics.index[0]) == 5


def test_other_processes_draw_nothing(make_trainer, module, datamodule, drawn, monkeypatch):
    callback, metrics = with_metrics()
    trainer = make_trainer(callback, metrics)
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    trainer.validate(module, datamodule, verbose=False)
    assert metrics.per_query is not None
    assert not drawn
    assert callback.last_path is None


def test_picture_is_logged_to_wandb(make_trainer, module, datamodule, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    callback, metrics = with_metrics()
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    try:
        make_trainer(callback, metrics, logger=logger).validate(module, datamodule, verbose=False)
    finally:
        wandb.finish()
    assert callback.last_path.parent == tmp_path / "pictures"
    (copy,) = tmp_path.glob("wandb/offline-run-*/files/media/images/val/retrievals_*.png")
    assert copy.read_bytes() == callback.last_path.read_bytes()


def test_needs_the_metrics(make_trainer, module, datamodule):
    with pytest.raises(ValueError, match=r"LogRetrievalMetrics measures: add it to trainer\.callbacks"):
        make_trainer(RetrievalPicture()).validate(module, datamodule, verbose=False)
    make_trainer(RetrievalPicture()).predict(module, datamodule)


@pytest.mark.parametrize("options", [{"num_worst": 0, "num_random": 0}, {"num_worst": -1}, {"num_neighbours": 0}])
def test_rejects_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is {next(iter(options.values()))}"):
        RetrievalPicture(**options)
