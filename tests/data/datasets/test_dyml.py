import pytest
import torch

from dml.data import UnreadableImageError
from dml.data.datasets import DyMLAnimal, DyMLProduct, DyMLVehicle
from dml.metrics import RetrievalMetrics
from tests.data.datasets.miniatures import make_dyml_benchmarks, make_dyml_product

BENCHMARKS = pytest.mark.parametrize("dataset", [DyMLVehicle, DyMLAnimal])


@pytest.fixture(scope="module")
def untouched_root(tmp_path_factory):
    return make_dyml_benchmarks(tmp_path_factory.mktemp("dyml_vehicle"))


@pytest.fixture
def root(tmp_path):
    return make_dyml_benchmarks(tmp_path / "dyml_vehicle", fine_per_middle=1, images_per_fine=2)


@BENCHMARKS
def test_first_record_is_not_lost_to_the_header_it_is_glued_to(dataset, untouched_root):
    first_line = (untouched_root / "train" / "label.csv").read_text().split("\n")[0]
    assert first_line == "fname, coarse_id, middle_id, fine_id0.jpg, 0, 0, 0"
    train = dataset(untouched_root)
    assert train.levels == ("fine", "middle", "coarse")
    assert len(train) == 2 * 2 * 3 * 4
    assert train.index["path"].tolist() == [f"train/imgs/{row}.jpg" for row in range(48)]
    assert train.index["role"].eq("both").all()
    assert len(train.labels.unique(dim=0)) == 12
    assert [len(train.labels[:, level].unique()) for level in range(3)] == [12, 4, 2]
    for level, images in enumerate((4, 12, 24)):
        assert (train.labels[:, level].reshape(-1, images) == train.labels[::images, level, None]).all()


@pytest.mark.parametrize("level", ["fine", "middle", "coarse"])
def test_each_level_has_a_benchmark_of_queries_and_gallery(level, untouched_root):
    num_classes = {"fine": 12, "middle": 4, "coarse": 2}[level]
    test = DyMLVehicle(untouched_root, f"test_{level}")
    assert test.index["role"].value_counts().to_dict() == {
        "query": 2 * num_classes,
        "gallery": 4 * num_classes,
        "both": 0,
    }
    assert test.index["path"][0] == f"bmk_{level}/query/0.jpg"
    folder = test.index["path"].str.extract(r"^bmk_\w+/(\w+)/\d+\.jpg$")[0]
    assert folder.eq(test.index["role"].astype(str)).all()
    # Whichever level a metric looks at, it finds the labels of the benchmark.
    assert (test.labels == test.labels[:, :1]).all()
    assert len(test.labels[:, 0].unique()) == num_classes


def test_labels_of_query_and_gallery_are_one_numbering(untouched_root):
    test = DyMLVehicle(untouched_root, "test_fine")
    code = dict(zip(test.index["path"], test.labels[:, 0].tolist(), strict=True))
    for part, num_images in (("query", 2), ("gallery", 4)):
        lines = (untouched_root / "bmk_fine" / f"{part}.csv").read_text().removeprefix("fname, labels").splitlines()
        assert len(lines) == 12 * num_images
        for line in lines:
            name, label = line.split(", ")
            # The queries, but not the gallery, come in the order of their labels.
            assert code[f"bmk_fine/{part}/{name}"] == code[f"bmk_fine/query/{2 * int(label)}.jpg"]


def test_gallery_of_fewer_classes_does_not_shift_labels(root):
    file = root / "bmk_fine" / "gallery.csv"
    file.write_text("fname, labels0.jpg, 3\n1.jpg, 1\n")
    test = DyMLVehicle(root, "test_fine")
    assert test.index["role"].tolist() == ["query"] * 8 + ["gallery"] * 2
    queries, gallery = test.labels[:8, 0], test.labels[8:, 0]
    assert [(queries == label).nonzero().flatten().tolist() for label in gallery] == [[6, 7], [2, 3]]


def test_same_numbers_of_two_splits_are_other_classes(untouched_root):
    labels = [
        DyMLVehicle(untouched_root, split).labels for split in ("train", "test_fine", "test_middle", "test_coarse")
    ]
    for level in range(3):
        classes = [label[:, level].unique() for label in labels]
        assert len(torch.cat(classes).unique()) == sum(map(len, classes))


def test_copies_are_found_in_images_that_come_after_the_lists(tmp_path):
    root = make_dyml_benchmarks(tmp_path / "dyml", queries_in_gallery=True)
    (root / "bmk_fine" / "gallery").rename(tmp_path / "gallery")
    assert "both" not in set(DyMLVehicle(root, "test_fine").index["role"])
    (tmp_path / "gallery").rename(root / "bmk_fine" / "gallery")
    assert "both" in set(DyMLVehicle(root, "test_fine").index["role"])


def test_query_whose_copy_is_in_the_gallery_does_not_find_itself(tmp_path):
    plain, copied = (
        DyMLVehicle(make_dyml_benchmarks(tmp_path / str(copies), queries_in_gallery=copies), "test_middle")
        for copies in (False, True)
    )
    assert copied.index["role"].value_counts().to_dict() == {"query": 0, "gallery": 4 * 4, "both": 4 * 2}
    assert copied.index["path"].str.startswith("bmk_middle/gallery/").all()
    is_copy = copied.index["path"].isin(
        [f"bmk_middle/gallery/{6 * label + image}.jpg" for label in range(4) for image in (0, 1)]
    )
    assert is_copy.eq(copied.index["role"] == "both").all()
    for dataset, relevant in ((plain, 4), (copied, 5)):
        images = torch.stack([torch.nn.functional.adaptive_avg_pool2d(image["image"].float(), 8) for image in dataset])
        embeddings = torch.nn.functional.normalize(images.flatten(1) - images.mean(), dim=1)
        metric = RetrievalMetrics(recall_at=[1])
        roles = dataset.index["role"]
        is_query, is_gallery = (torch.tensor((roles != other).to_numpy()) for other in ("gallery", "query"))
        metric.update(embeddings, dataset.labels, torch.arange(len(dataset)), is_query, is_gallery)
        scores = embeddings[is_query] @ embeddings[is_gallery].T
        assert (scores > 0.9999).any() == (dataset is copied)
        assert metric.compute()["AP"] > 0.5
        queries, _ = metric.per_query()
        assert len(queries) == 8
        label = dataset.labels[queries[0], 0]
        same = (dataset.labels[:, 0] == label) & is_gallery
        assert same.sum() - is_gallery[queries[0]].int() == relevant


def test_equal_size_is_not_equal_content(tmp_path):
    root = make_dyml_benchmarks(tmp_path / "dyml", fine_per_middle=1, images_per_fine=2)
    query, item = root / "bmk_fine" / "query" / "0.jpg", root / "bmk_fine" / "gallery" / "0.jpg"
    size = max(query.stat().st_size, item.stat().st_size)
    for file in (query, item):
        file.write_bytes(file.read_bytes().ljust(size, b"\0"))
    assert not DyMLVehicle(root, "test_fine").index["role"].eq("both").any()


def test_product_has_one_test_of_three_levels(tmp_path):
    root = make_dyml_product(tmp_path / "dyml_product")
    train, test = DyMLProduct(root), DyMLProduct(root, "test")
    for dataset, folder in ((train, "train"), (test, "mini-bmk_all_in_one")):
        assert dataset.index["path"].tolist() == [f"{folder}/imgs/{row}.jpg" for row in range(48)]
        assert dataset.index["role"].eq("both").all()
        assert [len(dataset.labels[:, level].unique()) for level in range(3)] == [12, 4, 2]
    # The fine numbers of test are those of train, below other coarse numbers.
    assert not set(train.labels[:, 0].tolist()) & set(test.labels[:, 0].tolist())
    assert test[0]["image"].shape[0] == 3


@pytest.mark.parametrize("make", [make_dyml_benchmarks, make_dyml_product])
def test_clean_header_gives_the_same_index(make, tmp_path):
    dataset = DyMLProduct if make is make_dyml_product else DyMLAnimal
    glued, clean = (make(tmp_path / str(glue), fine_per_middle=2, glued=glue) for glue in (True, False))
    assert (clean / "train" / "label.csv").read_text().startswith("fname, coarse_id, middle_id, fine_id\n0.jpg")
    assert dataset.read_index(glued).equals(dataset.read_index(clean))


@pytest.mark.parametrize("glued", [True, False])
def test_lines_may_end_as_on_windows_after_a_mark(glued, tmp_path):
    root = make_dyml_benchmarks(tmp_path / "dyml", fine_per_middle=1, images_per_fine=2, glued=glued)
    before = DyMLVehicle.read_index(root)
    for file in root.rglob("*.csv"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert DyMLVehicle.read_index(root).equals(before)


def test_images_are_where_the_index_says(root):
    for split in ("train", "test_fine", "test_middle", "test_coarse"):
        dataset = DyMLVehicle(root, split)
        assert {item["image"].shape for item in dataset} == {(3, 64, 80), (3, 80, 64)}


@pytest.mark.parametrize(
    "row", ["1.jpg,0, 0, 0", "1.jpg, 0, 0", "1.jpg, 0, 0, 0, 0", "1.jpg, 0, 0, one", ", 0, 0, 0", ""]
)
@pytest.mark.parametrize(("glued", "line"), [(True, 2), (False, 3)])
def test_malformed_row_is_named(tmp_path, row, glued, line):
    root = make_dyml_product(tmp_path / "dyml", fine_per_middle=1, images_per_fine=2, glued=glued)
    file = root / "mini-bmk_all_in_one" / "label.csv"
    lines = file.read_text().split("\n")
    lines[line - 1] = row
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not written") as error:
        DyMLProduct(root)
    assert str(error.value) == f"{file}, line {line}: {row!r} is not written 'fname, coarse_id, middle_id, fine_id'"


def test_malformed_record_in_the_header_is_named(root):
    file = root / "bmk_fine" / "query.csv"
    file.write_text("fname, labels0.jpg 3\n1.jpg, 3\n")
    with pytest.raises(ValueError, match=r"query.csv, line 1: '0.jpg 3' is not written 'fname, labels'$"):
        DyMLVehicle(root)


def test_list_without_header_is_refused(root):
    file = root / "train" / "label.csv"
    file.write_text(file.read_text().removeprefix("fname, coarse_id, middle_id, fine_id"))
    with pytest.raises(
        ValueError, match=r"label.csv, line 1: '0.jpg, 0, 0, 0' does not begin with the header 'fname, "
    ):
        DyMLVehicle(root)


def test_missing_files_are_named(root):
    (root / "bmk_middle" / "gallery.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"but it lacks bmk_middle/gallery.csv: it holds .*DynamicMetricLearning$"
    ):
        DyMLVehicle(root)
    with pytest.raises(FileNotFoundError, match=r"it lacks mini-bmk_all_in_one/label.csv"):
        DyMLProduct(root)


@pytest.mark.parametrize("part", ["query", "gallery"])
def test_missing_image_of_a_benchmark_is_left_for_the_loader_to_name(root, part):
    (root / "bmk_fine" / part / "1.jpg").unlink()
    dataset = DyMLVehicle(root, "test_fine")
    row = dataset.index["path"].tolist().index(f"bmk_fine/{part}/1.jpg")
    with pytest.raises(UnreadableImageError, match=rf"bmk_fine/{part}/1\.jpg"):
        dataset[row]
