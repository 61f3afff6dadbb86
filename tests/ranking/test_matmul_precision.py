import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dml.ranking.chunked import sum_over_queries

ROOT = Path(__file__).parents[2]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Products(TorchDispatchMode):
    """In which precision the matrix products are taken."""

    def __init__(self):
        super().__init__()
        self.precisions = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mm" in func.__name__:
            self.precisions.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_products_are_taken_in_full_precision(precision, matmul_precision):
    matmul_precision(precision)
    embeddings, ref_emb = normal(6, 4), normal(5, 4, seed=1)
    inside = []

    def term(scores, queries):
        inside.append(torch.get_float32_matmul_precision())
        return scores.square().sum()

    with Products() as products:
        sum_over_queries(term, embeddings.requires_grad_(), ref_emb.requires_grad_(), chunk_size=2).backward()
    assert products.precisions == ["highest"] * 9  # scores and two gradients of each chunk
    assert inside == [precision] * 3
    assert torch.get_float32_matmul_precision() == precision


def test_a_lower_precision_outside_changes_nothing(matmul_precision):
    embeddings = normal(1024, 512).requires_grad_()
    results, products = [], []
    for precision in ("highest", "medium"):
        matmul_precision(precision)
        products.append(embeddings.detach() @ embeddings.detach().T)
        value = sum_over_queries(lambda scores, _: scores.cos().sum(), embeddings, embeddings, chunk_size=1024)
        results.append([value, *torch.autograd.grad(value, embeddings)])
    if torch.equal(*products):
        pytest.skip("matrix products of this CPU do not depend on torch.set_float32_matmul_precision")
    for full, lowered in zip(*results, strict=True):
        assert torch.equal(full, lowered)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_precision_is_restored_after_an_error(requires_grad, matmul_precision):
    matmul_precision("medium")
    embeddings = normal(6, 4).requires_grad_(requires_grad)

    def term(scores, queries):
        raise KeyError("in the term")

    with pytest.raises(KeyError, match="in the term"):
        sum_over_queries(term, embeddings, embeddings)
    assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(RuntimeError):  # the product itself
        sum_over_queries(lambda scores, _: scores.sum(), embeddings, normal(5, 3))
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize(
    "setting", ["torch.backends.mkldnn.matmul.fp32_precision", "torch.backends.cuda.matmul.fp32_precision"]
)
def test_settings_of_single_backends_are_kept_too(setting):
    """They do not mix with the older setting, which then cannot be read. In a process of its own: they are global."""
    command = f"""
import torch
from dml.ranking import sum_over_queries

embeddings = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)).requires_grad_()
term = lambda scores, queries: scores.square().sum()
before = sum_over_queries(term, embeddings, embeddings)
if not hasattr(torch.backends.mkldnn, "matmul") or not hasattr(torch.backends.mkldnn.matmul, "fp32_precision"):
    raise SystemExit  # a torch that has only the older setting
{setting} = "tf32" if "cuda" in "{setting}" else "bf16"
after = sum_over_queries(term, embeddings, embeddings)
after.backward()
assert torch.equal(before, after)
assert {setting} != "ieee"
"""
    subprocess.run([sys.executable, "-c", command], check=True, cwd=ROOT)
