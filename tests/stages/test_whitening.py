"""Whitening learned of a file, beside that of scikit-learn."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn.functional import normalize

from dml.stages import PCAWhitening
from tests.stages.galleries import embeddings, outside

KNOWN = embeddings(200, 12, seed=2)


def write(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    else:  # as WriteEmbeddings does
        flat = pa.array(np.asarray(array, dtype=np.float32).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
        names = [f"{row}.jpg" for row in range(len(array))]
        pq.write_table(pa.table({"path": names, "embedding": column}), path, row_group_size=64)
    return str(path)


def up_to_signs(actual, expected):
    """Axes have no sign: turn those of ``actual`` as those of ``expected``."""
    return actual * (actual * expected).sum(0).sign()


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
@pytest.mark.parametrize("dim", [None, 5])
def test_equals_scikit_learn(dim, suffix, tmp_path):
    queries, gallery = embeddings(30, 12, seed=1), embeddings(40, 12)
    reference = PCA(dim or 12, whiten=True, svd_solver="full").fit(KNOWN.double().numpy())
    stage = PCAWhitening(write(tmp_path / f"known.{suffix}", KNOWN.numpy()), dim)
    results = torch.cat(stage(queries, gallery, outside(queries)))
    both = torch.cat([queries, gallery])
    expected = normalize(torch.from_numpy(reference.transform(both.double().numpy())), dim=1).float()
    torch.testing.assert_close(up_to_signs(results, expected), expected, atol=1e-5, rtol=1e-5)


def test_the_square_root_of_whitening(tmp_path):
    queries = embeddings(30, 12, seed=1)
    reference = PCA(12, svd_solver="full").fit(KNOWN.double().numpy())
    shrunk = reference.transform(queries.double().numpy()) / reference.explained_variance_**0.25
    expected = normalize(torch.from_numpy(shrunk), dim=1).float()
    stage = PCAWhitening(write(tmp_path / "known.npy", KNOWN.double().numpy()), power=0.25)
    actual, _ = stage(queries, queries, outside(queries))
    torch.testing.assert_close(up_to_signs(actual, expected), expected, atol=1e-5, rtol=1e-5)


def test_arguments_stay_as_they_are(tmp_path):
    queries, gallery = embeddings(3, 12, seed=1), embeddings(4, 12)
    before = queries.clone(), gallery.clone()
    results = PCAWhitening(write(tmp_path / "known.npy", KNOWN.numpy()), 4)(queries, gallery, outside(queries))
    assert torch.equal(queries, before[0])
    assert torch.equal(gallery, before[1])
    assert [result.shape for result in results] == [(3, 4), (4, 4)]
    assert not any(result.requires_grad for result in results)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path / "executed").write_text, ("",)

    np.save(tmp_path / "known.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"known.npy', which holds no plain array"):
        PCAWhitening(str(tmp_path / "known.npy"))
    assert not (tmp_path / "executed").exists()


def test_a_model_of_another_dimension(tmp_path):
    stage = PCAWhitening(write(tmp_path / "known.npy", KNOWN.numpy()))
    other = embeddings(3, 8)
    with pytest.raises(ValueError, match="of dimension 12; the queries have 8: predict with the model"):
        stage(other, other, outside(other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 13}, "dim is 13; it must be from 1 to 12, that of '.*known.npy'"),
        ({"dim": 0}, "dim is 0"),
        ({"power": 1.5}, "power is 1.5; it must be from 0"),
    ],
)
def test_errors_of_options(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        PCAWhitening(write(tmp_path / "known.npy", KNOWN.numpy()), **options)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (KNOWN[:12].numpy(), "known.npy' and dim is 12: whitening is to be learned from 12 images"),
        (KNOWN[0].numpy(), r"of shape \[12\] and type float32; it must be \[n, D\], floating"),
        (np.ones((3, 4), dtype=int), "type int64"),
        (np.full((30, 4), np.nan, dtype=np.float32), "an embedding is not finite"),
        (KNOWN[:, :3].repeat(1, 2).numpy(), "dim is 6: .*vary in 3 directions only"),
        (np.zeros((0, 4), dtype=np.float32), r"of shape \[0, 4\]"),
    ],
)
def test_errors_of_arrays(array, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        PCAWhitening(write(tmp_path / "known.npy", array))


def test_errors_of_files(tmp_path):
    with pytest.raises(ValueError, match="which is no file; dml predict writes one"):
        PCAWhitening(str(tmp_path / "missing.npy"))
    (tmp_path / "known.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"its name must end in .npy or .parquet"):
        PCAWhitening(str(tmp_path / "known.csv"))
    for name in ("broken.npy", "broken.parquet", "empty.npy", "empty.parquet"):
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"nothing of the kind")
        with pytest.raises(ValueError, match=rf"embeddings is '.*{name}', which"):
            PCAWhitening(str(tmp_path / name))
    pd.DataFrame({"path": ["a.jpg"], "vector": [1.0]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"whose columns are \['path', 'vector'\]; it must have a column embedding"):
        PCAWhitening(str(tmp_path / "other.parquet"))
