"""Indices of embeddings: what is found, what is measured, what is refused."""

import json
import re
import shutil
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest

from dml.search import HNSW, IVFPQ, Embedded, Flat, SearchIndex, build_index
from dml.search.index import unit_norm
from dml.search.recall import measure_recall

KINDS = [Flat(), HNSW(m=8), IVFPQ(nlist=8, m=8, bits=4, refine=4), IVFPQ(nlist=8, nprobe=2, m=4, bits=4)]
NAMES = ["flat", "hnsw", "ivfpq with refine", "ivfpq"]


def clusters(count=400, dimension=16, seed=0):
    random = np.random.default_rng(seed)
    centres = np.repeat(random.normal(size=(-(-count // 5), dimension)), 5, axis=0)[:count]
    return unit_norm(centres + 0.4 * random.normal(size=(count, dimension)))


def embedded(embeddings, roles="both"):
    paths = [f"{row}.png" for row in range(len(embeddings))]
    images = pd.DataFrame({"path": paths, "role": roles, "label": [str(row // 5) for row in range(len(embeddings))]})
    return Embedded(images, embeddings, ["label"], Path("/images"))


def exact(queries, gallery, k):
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def test_flat_is_exact(tmp_path):
    gallery, queries = clusters(), clusters(seed=1)[:50]
    build_index(embedded(gallery), Flat(), tmp_path / "a")
    scores, rows = SearchIndex.load(tmp_path / "a").search(3 * queries, 20)
    true_scores, true_rows = exact(queries, gallery, 20)
    np.testing.assert_array_equal(rows, true_rows)
    np.testing.assert_allclose(scores, true_scores, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_recall_is_what_a_user_would_find(kind, tmp_path):
    """Of the same queries, by the loaded index and a brute force that shares no code."""
    embeddings = clusters()
    roles = ["query"] * 40 + ["gallery"] * 360
    report = build_index(embedded(embeddings, roles), kind, tmp_path / "a")
    index = SearchIndex(tmp_path / "a")
    gallery, queries = embeddings[40:], embeddings[:40]
    assert index.count == 360
    assert report.recall.num_queries == 40
    for k in (1, 10, 100):
        found, true = index.search(queries, 101)[1][:, :k], exact(queries, gallery, k)[1]
        share = np.mean([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), true.tolist(), strict=True)])
        assert report.recall.recall[f"recall@{k}"] == pytest.approx(share, abs=0.03)
    if isinstance(kind, Flat):
        assert set(report.recall.recall.values()) == {1.0}
    if kind == KINDS[3]:
        assert report.recall.recall["recall@10"] < 0.9  # codes of 2 bytes do lose something, and it is told
    assert json.loads((tmp_path / "a" / "index.json").read_text())["report"]["recall"]["recall"] == report.recall.recall


def test_a_query_is_not_found_by_itself():
    """An index that finds nothing but the query itself has found nothing."""
    gallery = clusters(20)
    only_itself = faiss.IndexFlatIP(16)
    only_itself.add(np.concatenate([gallery[:1], -np.repeat(gallery[:1], 19, axis=0)]))
    recall = measure_recall(only_itself, gallery, gallery[:1], np.array([0])).recall
    assert recall["recall@1"] == 0.0
    assert measure_recall(only_itself, gallery, gallery[:1], np.array([-1])).recall["recall@1"] == 1.0


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_the_same_seed_builds_the_same_index(kind, tmp_path):
    for name in ("a", "b"):
        build_index(embedded(clusters()), kind, tmp_path / name, seed=3)
    files = [(tmp_path / name / "index.faiss").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", KINDS[1:], ids=NAMES[1:])
def test_parameters_are_kept(kind, tmp_path):
    build_index(embedded(clusters()), kind, tmp_path / "a", seed=3)
    index = SearchIndex(tmp_path / "a")
    stored = faiss.read_index(str(tmp_path / "a" / "index.faiss"))
    if isinstance(kind, HNSW):
        assert (stored.hnsw.efSearch, stored.hnsw.efConstruction) == (128, 200)
    elif kind.refine:
        assert stored.k_factor == 4
    else:
        assert (stored.nprobe, stored.nlist, stored.pq.M, stored.pq.nbits) == (2, 8, 4, 4)
    assert index.facts.parameters == vars(kind.completed(400, 16))


def test_defaults_follow_the_gallery():
    assert vars(IVFPQ().completed(60_000, 512)) == {"nlist": 980, "nprobe": 122, "m": 64, "bits": 8, "refine": 0}
    assert IVFPQ().completed(1000, 30).m == 3
    assert IVFPQ().completed(1000, 7).m == 1
    assert IVFPQ().completed(1000, 8).nlist == 25  # 39 images for each


def test_images_and_rows(tmp_path):
    embeddings = clusters(30)
    roles = (["query", "gallery", "both"] * 10)[:30]
    build_index(embedded(embeddings, roles), Flat(), tmp_path / "a")
    index = SearchIndex(tmp_path / "a")
    assert index.count == 20
    assert set(index.images["role"][:20]) == {"gallery", "both"}
    assert set(index.images["role"][20:]) == {"query"}
    for row in (0, 7, 20, 29):
        at = int(str(index.images["path"][row]).removesuffix(".png"))
        np.testing.assert_allclose(index.embedding(row), embeddings[at], atol=1e-6)
        assert index.row(f"{at}.png") == row
        assert index.labels(row) == {"label": str(at // 5)}
        scores, rows = index.neighbours(row, 50)
        assert row not in rows
        assert len(rows) == (19 if row < 20 else 20)
        assert (np.diff(scores) <= 0).all()


def test_codes_alone_can_be_searched_by(tmp_path):
    build_index(embedded(clusters()), KINDS[3], tmp_path / "a")
    index = SearchIndex(tmp_path / "a")
    assert index.embedding(5) @ clusters()[5] > 0.6
    assert 5 not in index.neighbours(5, 10)[1]


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [
        (IVFPQ(), 200, "has 200 images and must have at least 256"),
        (IVFPQ(nlist=500), 400, "must have at least 500"),
        (IVFPQ(m=3), 400, "must divide the dimension, 16: one of [1, 2, 4, 8, 16]"),
        (IVFPQ(nlist=4, nprobe=5), 400, "from 1 to ivfpq.nlist, 4"),
        (IVFPQ(bits=20), 400, "bits is 20"),
        (IVFPQ(refine=-1), 400, "refine is -1"),
        (IVFPQ(nlist=0), 400, "nlist is 0"),
        (HNSW(m=1), 400, "hnsw.m is 1"),
        (HNSW(ef_search=0), 400, "ef_search is 0"),
    ],
)
def test_parameters_that_do_not_fit(kind, count, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        build_index(embedded(clusters(count)), kind, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_bad_embeddings(tmp_path):
    with pytest.raises(ValueError, match="zeros, NaN or infinity, the first row 2"):
        unit_norm([[1.0, 0], [0, 1], [np.nan, 1]])
    with pytest.raises(ValueError, match=r"must be \[N, D\]"):
        unit_norm([1.0, 2.0])
    with pytest.raises(ValueError, match="needs a gallery"):
        build_index(embedded(clusters(10), "query"), Flat(), tmp_path / "a")


def test_bad_queries(tmp_path):
    build_index(embedded(clusters(10)), Flat(), tmp_path / "a")
    index = SearchIndex(tmp_path / "a")
    with pytest.raises(ValueError, match=r"shape \(1, 3\); this index is of \[Q, 16\]"):
        index.search(np.ones((1, 3)), 2)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(np.ones((1, 16)), 0)
    with pytest.raises(ValueError, match="images 0 to 9"):
        index.embedding(10)
    with pytest.raises(ValueError, match="images 0 to 9"):
        index.file(-1)
    with pytest.raises(ValueError, match=r"path is 'a.png', no image of the index"):
        index.row("a.png")
    assert index.search(np.ones((1, 16)), 99)[1].shape == (1, 10)


def test_a_failed_build_leaves_the_old_index(tmp_path, monkeypatch):
    build_index(embedded(clusters(30)), Flat(), tmp_path / "a")
    before = (tmp_path / "a" / "index.json").read_bytes()
    with pytest.raises(ValueError, match="--overwrite replaces it"):
        build_index(embedded(clusters(40)), Flat(), tmp_path / "a")

    def fails(*_):
        raise OSError("disk full")

    larger = embedded(clusters(40))
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "write_index", fails)
        with pytest.raises(OSError, match="disk full"):
            build_index(larger, Flat(), tmp_path / "a", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "index.json").read_bytes() == before
    build_index(embedded(clusters(40)), Flat(), tmp_path / "a", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert SearchIndex(tmp_path / "a").count == 40


def test_what_else_is_in_the_folder_is_not_lost(tmp_path):
    build_index(embedded(clusters(30)), Flat(), tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"other files in its folder, \['notes.txt'\]: move them away"):
        build_index(embedded(clusters(40)), Flat(), tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "notes.txt").read_text() == "dear"
    assert SearchIndex(tmp_path / "a").count == 30


def test_a_folder_that_is_no_index_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not an index: it is left alone"):
        build_index(embedded(clusters(10)), Flat(), tmp_path / "photos", overwrite=True)
    with pytest.raises(ValueError, match="in a folder that does not exist"):
        build_index(embedded(clusters(10)), Flat(), tmp_path / "no" / "a")
    assert (tmp_path / "photos" / "a.txt").read_text() == "dear"


def damaged(folder, name, content):
    """An index with another file in place of one of its own, of the size that is expected."""
    (folder / name).write_bytes(content)
    facts = json.loads((folder / "index.json").read_text())
    facts["sizes"][name] = len(content)
    (folder / "index.json").write_text(json.dumps(facts))


def changed(folder, **changes):
    facts = {**json.loads((folder / "index.json").read_text()), **changes}
    (folder / "index.json").write_text(json.dumps({key: facts[key] for key in facts if facts[key] != "gone"}))


def other_index(folder):
    faiss.write_index(faiss.IndexFlatL2(16), str(folder / "other"))
    content = (folder / "other").read_bytes()
    (folder / "other").unlink()
    return content


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "not a folder that dml index has written"),
        (lambda folder: (folder / "index.json").write_text("{"), "index.json is damaged"),
        (lambda folder: (folder / "index.json").write_text("[1]"), "index.json is damaged"),
        (lambda folder: changed(folder, version=2), "of format 2; this is dml for format 1"),
        (lambda folder: changed(folder, root="gone"), r"fields \['root'\] are missing"),
        (lambda folder: changed(folder, count="10"), "not of their types"),
        (lambda folder: changed(folder, levels=["colour"]), r"columns \['colour'\] missing"),
        (lambda folder: changed(folder, dimension=8), "10 embeddings of dimension 16 in place of 10 of 8"),
        (lambda folder: (folder / "index.faiss").unlink(), "not whole: index.faiss"),
        (lambda folder: (folder / "index.faiss").write_bytes(b"IxFI"), "not whole: index.faiss"),
        (lambda folder: damaged(folder, "index.faiss", b"IxFI" + bytes(50)), "index.faiss"),
        (lambda folder: damaged(folder, "index.faiss", b"cos\nsystem\n."), "faiss cannot read it"),
        (lambda folder: damaged(folder, "index.faiss", other_index(folder)), "dml index does not write"),
        (lambda folder: damaged(folder, "images.parquet", b"PAR1 no"), "images.parquet is damaged"),
    ],
)
def test_a_damaged_index_is_told(damage, said, tmp_path):
    build_index(embedded(clusters(10)), Flat(), tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(ValueError, match=said):
        SearchIndex(tmp_path / "a")


def test_no_image_outside_of_the_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    embeddings = clusters(5)
    paths = ["../secret.png", str(tmp_path / "secret.png"), "a/../../secret.png", "link.png", "inside.png"]
    images = pd.DataFrame({"path": paths, "role": "both"})
    build_index(Embedded(images, embeddings, [], root), Flat(), tmp_path / "a")
    index, following = SearchIndex(tmp_path / "a"), SearchIndex(tmp_path / "a", follow_links=True)
    for row in range(4):
        with pytest.raises(ValueError, match="lies outside of the root"):
            index.file(row)
    for row in range(3):
        with pytest.raises(ValueError, match="lies outside of the root"):
            following.file(row)
    assert following.file(3).read_bytes() == b"secret"
    assert index.file(4) == root / "inside.png"


def test_another_root(tmp_path):
    build_index(embedded(clusters(10)), Flat(), tmp_path / "a")
    assert SearchIndex(tmp_path / "a", root=tmp_path).file(3) == tmp_path / "3.png"
    with pytest.raises(ValueError, match="must be the folder of the images"):
        SearchIndex(tmp_path / "a", root=tmp_path / "none")
