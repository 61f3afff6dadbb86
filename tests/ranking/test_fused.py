"""Tests of the kernels on a GPU, or else of what Triton's interpreter makes of them.

Whether it interprets is settled when Triton is imported, by a variable, and other tests do import it: without a GPU,
the tests of the kernels run in a process of their own. An interpreter accepts more than the compiler does. So the
kernels are compiled too, for a GPU that need not be there.
"""

import importlib
import itertools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings

from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.ranks import Ranks
from dml.ranking.reference import reference_ranks
from dml.ranking.steps import Heaviside, Sigmoid, UpperBound, heaviside
from tests.ranking.rankings import (
    LEVELS,
    assert_same_ranks,
    class_batch,
    gradient,
    levelled_rankings,
    rankings,
    untied_ranking,
)
from tests.ranking.restated_steps import HEAVISIDE, NARROW, STEPS, WIDE, restated_upper_bound
from tests.ranking.test_pairwise import vectorised_ranks

triton = pytest.importorskip("triton")
fused = importlib.import_module("dml.ranking.fused")
InterpretedFunction = importlib.import_module("triton.runtime.interpreter").InterpretedFunction

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNNABLE = INTERPRETED or torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED or not RUNNABLE else "cuda"

PUBLISHED = {
    name: (HEAVISIDE, (UpperBound(jump=jump, offset=offset), restated_upper_bound(0.01, 100.0, 0.05, jump, offset)))
    for name, jump, offset in [("continuous", 0.5, None), ("products", 0.5, 1.44), ("naturalist", 0.0, 1.0)]
}
ALL_STEPS = STEPS | PUBLISHED | {"upper-bound": (STEPS["heaviside-upper-bound"][1],) * 2}
every_step = pytest.mark.parametrize("steps", ALL_STEPS.values(), ids=ALL_STEPS.keys())


@dataclass(frozen=True)
class Doubled(Sigmoid):
    def __call__(self, difference):
        return 2 * super().__call__(difference)


def test_supports_the_steps_it_knows_and_refuses_others():
    assert fused.supports(heaviside, Sigmoid(0.1), UpperBound())
    assert not fused.supports(heaviside, Doubled())
    assert not fused.supports(torch.sigmoid)
    scores = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"Doubled.*one of Heaviside, Sigmoid, UpperBound"):
        fused.fused_ranks(scores, scores, scores.bool(), positive_step=heaviside, negative_step=Doubled())
    with pytest.raises(ValueError, match=r"scores are torch\.float16"):
        fused.fused_ranks(scores.half(), scores, scores.bool(), positive_step=heaviside, negative_step=heaviside)


@pytest.mark.skipif(RUNNABLE, reason="the kernels run in this process")
def test_the_interpreted_kernels(tmp_path):
    arguments = ["-m", "pytest", "--noconftest", "-p", "no:cacheprovider", f"{__file__}::TestKernels"]
    done = run_python(*arguments, TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(INTERPRETED, reason="what is interpreted is not compiled")
def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    """In a process of its own, because a compiler that crashes takes it along."""
    done = run_python("-m", "tests.ranking.test_fused", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def run_python(*arguments, **variables):
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=os.environ | variables, capture_output=True, text=True
    )


def compile_kernels():
    """Both kernels for an H100, in the variants that the losses use."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variants = [(Sigmoid, Sigmoid, "fp32"), (Heaviside, UpperBound, "u8")]
    for kernel, variant in itertools.product((fused._rank_kernel, fused._gradient_kernel), variants):
        positive, negative, relevance = variant
        signature = dict.fromkeys(kernel.arg_names, "*fp32") | {"num_items": "i32", "valid": "*u8"}
        signature |= {"relevance": f"*{relevance}", "levels": f"*{relevance}", "item": "*i64", "first_pair": "*i64"}
        constants = {"positive_kind": fused._KINDS[positive], "negative_kind": fused._KINDS[negative]}
        constants["same_step"] = positive is negative
        source = ASTSource(fn=kernel, signature=signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def ranks_of(scores, relevance, valid, *, positive_step, negative_step, levels=None):
    """What the kernels compute, wherever they do, on the CPU."""
    ranks = fused.fused_ranks(
        scores.to(DEVICE),
        relevance.to(DEVICE),
        valid.to(DEVICE),
        positive_step=positive_step,
        negative_step=negative_step,
        levels=None if levels is None else levels.to(DEVICE),
    )
    return Ranks(*(values.cpu() for values in ranks[:5]), ranks.num_queries)


def assert_matches(definition, steps, scores, relevance, valid, levels=None):
    (positive, restated_positive), (negative, restated_negative) = steps
    scores = scores.clone().requires_grad_()
    actual = ranks_of(scores, relevance, valid, levels=levels, positive_step=positive, negative_step=negative)
    expected = definition(
        scores, relevance, valid, levels=levels, positive_step=restated_positive, negative_step=restated_negative
    )
    assert_same_ranks(actual, expected, tolerance=1e-9)
    torch.testing.assert_close(gradient(actual, scores), gradient(expected, scores), rtol=1e-9, atol=1e-9)


class TestKernels:
    __test__ = RUNNABLE

    def test_the_interpreter_is_active_where_it_has_to_be(self):
        for function in (fused._rank_kernel, triton.language.sum):
            assert isinstance(function, InterpretedFunction) == INTERPRETED

    @every_step
    @settings(max_examples=8, deadline=None, phases=[Phase.reuse, Phase.generate])  # shrinking would take minutes
    @given(ranking=rankings() | rankings(LEVELS) | levelled_rankings())
    def test_matches_the_definition(self, steps, ranking):
        assert_matches(reference_ranks, steps, *ranking)

    @every_step
    def test_several_ragged_blocks_match_the_definition(self, steps):
        """Galleries of two blocks, and from no relevant item to three groups, more than the programs of a query."""
        generator = torch.Generator().manual_seed(0)
        num_relevant = torch.tensor([0, 1, 4, 5, 12, 0, 9])
        scores = torch.randint(-50, 50, (len(num_relevant), 301), generator=generator).double() / 50
        order = torch.rand(scores.shape, generator=generator).argsort(dim=1)
        levels = torch.randint(1, 4, scores.shape, generator=generator) * (order < num_relevant.unsqueeze(1))
        relevance = torch.tensor([0, 0.7, 1.0, 0.2], dtype=torch.float64)[levels]
        valid = (torch.rand(scores.shape, generator=generator) < 0.9) | (levels > 0)
        assert_matches(vectorised_ranks, steps, scores, relevance, valid, levels)

    def test_matches_pairwise_ranks_on_a_batch(self):
        scores, relevance, valid = class_batch((1, 3, 11, 5) + (4,) * 21)
        steps = {"positive_step": heaviside, "negative_step": UpperBound()}
        scores.requires_grad_()
        actual = ranks_of(scores, relevance.bool(), valid, **steps)
        expected = pairwise_ranks(scores, relevance.bool(), valid, **steps)
        assert_same_ranks(actual, expected, tolerance=1e-9)
        torch.testing.assert_close(gradient(actual, scores), gradient(expected, scores), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("steps", ["two-sigmoids", "two-upper-bounds", "heaviside-upper-bound"])
    def test_scores_outside_the_gallery_are_not_looked_at(self, steps):
        scores, relevance, valid = untied_ranking(3, 16, relevant=0.2, valid=0.5)
        (positive, _), (negative, _) = STEPS[steps]
        hidden = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30], dtype=torch.float64).repeat(3, 4)
        masked = scores.where(valid, hidden).requires_grad_()
        scores.requires_grad_()
        actual = ranks_of(masked, relevance, valid, positive_step=positive, negative_step=negative)
        expected = ranks_of(scores, relevance, valid, positive_step=positive, negative_step=negative)
        assert_same_ranks(actual, expected, tolerance=0)
        torch.testing.assert_close(gradient(actual, masked), gradient(expected, scores), rtol=0, atol=0)
        assert not gradient(actual, masked)[~valid].any()

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
    def test_relevance_and_levels_are_bools_or_numbers(self, dtype):
        scores, relevance, valid = untied_ranking(3, 9)
        scores.requires_grad_()
        steps = {"positive_step": WIDE[0], "negative_step": NARROW[0]}
        actual = ranks_of(scores, relevance.to(dtype), valid, levels=relevance.to(dtype), **steps)
        expected = ranks_of(scores, relevance, valid, **steps)
        assert_same_ranks(actual, expected, tolerance=0)
        torch.testing.assert_close(gradient(actual, scores), gradient(expected, scores), rtol=0, atol=0)

    @pytest.mark.parametrize("steps", ["two-sigmoids", "heaviside-upper-bound"])
    def test_float32_scores_have_float32_ranks(self, steps):
        (positive, _), (negative, _) = STEPS[steps]
        precise, relevance, valid = untied_ranking(3, 300, relevant=0.02)
        precise.requires_grad_()
        scores = precise.detach().float().requires_grad_()
        actual = ranks_of(scores, relevance, valid, positive_step=positive, negative_step=negative)
        expected = ranks_of(precise, relevance, valid, positive_step=positive, negative_step=negative)
        assert actual.relevance.dtype == actual.rank.dtype == actual.hrank.dtype == actual.weight.dtype == torch.float32
        for name in ("rank", "hrank"):
            torch.testing.assert_close(getattr(actual, name).double(), getattr(expected, name), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient(actual, scores).double(), gradient(expected, precise), rtol=1e-4, atol=1e-4)

    def test_a_sigmoid_far_away_is_a_heaviside(self):
        """Differences of a million temperatures, in float32: no overflow, and no slope left."""
        scores = torch.tensor([[1.0, 0.0, -1.0, 0.5]], requires_grad=True)
        relevance, valid = torch.tensor([[1, 0, 1, 0]]), torch.ones(1, 4, dtype=torch.bool)
        ranks = ranks_of(scores, relevance, valid, positive_step=Sigmoid(1e-6), negative_step=Sigmoid(1e-6))
        assert ranks.rank.tolist() == [1, 4]
        assert ranks.hrank.tolist() == [1, 2]
        assert torch.equal(gradient(ranks, scores), torch.zeros(1, 4))

    @pytest.mark.parametrize("shape", [(3, 4), (3, 0), (0, 4), (0, 0)], ids=str)
    def test_no_pair_is_empty_with_a_zero_gradient(self, shape):
        scores = torch.randn(shape, requires_grad=True)
        valid = torch.ones(shape, dtype=torch.bool)
        ranks = ranks_of(scores, torch.zeros(shape), valid, positive_step=WIDE[0], negative_step=WIDE[0])
        assert ranks.num_queries == shape[0]
        assert [len(values) for values in ranks[:5]] == [0] * 5
        assert torch.equal(gradient(ranks, scores), torch.zeros(shape))

    def test_memory_layout_is_irrelevant(self):
        scores, relevance, valid = class_batch((2, 3, 4))
        levels, valid = relevance * 2, valid[:1].expand(9, 9)
        scores.requires_grad_()
        steps = {"positive_step": WIDE[0], "negative_step": NARROW[0]}
        actual = ranks_of(scores.T, relevance.T, valid, levels=levels.T, **steps)
        contiguous = [values.contiguous() for values in (scores.T, relevance.T, valid)]
        expected = ranks_of(*contiguous, levels=levels.T.contiguous(), **steps)
        assert_same_ranks(actual, expected, tolerance=0)
        torch.testing.assert_close(gradient(actual, scores), gradient(expected, scores), rtol=0, atol=0)

    @pytest.mark.parametrize("output", ["rank", "hrank"])
    def test_one_output_is_enough(self, output):
        """A measure that uses only one leaves the other without a gradient; that of a sum is one number, expanded."""
        scores, relevance, valid = class_batch((3, 2, 4))
        scores.requires_grad_()
        steps = {"positive_step": WIDE[0], "negative_step": NARROW[0]}
        actual = getattr(ranks_of(scores, relevance, valid, **steps), output).sum()
        expected = getattr(pairwise_ranks(scores, relevance, valid, **steps), output).sum()
        torch.testing.assert_close(torch.autograd.grad(actual, scores), torch.autograd.grad(expected, scores))

    def test_inputs_are_left_alone(self):
        inputs = class_batch((2, 3, 4))
        copies = [values.clone() for values in inputs]
        scores = inputs[0].requires_grad_()
        gradient(ranks_of(*inputs, positive_step=WIDE[0], negative_step=NARROW[0]), scores)
        for values, copy in zip(inputs, copies, strict=True):
            assert torch.equal(values, copy)

    def test_pairwise_ranks_hands_over_the_steps_it_can(self, monkeypatch):
        """The dispatch, on whatever device the kernels can run here."""
        handed_over = []

        def spy(*arguments, **options):
            handed_over.append(options["negative_step"])
            return fused_ranks(*arguments, **options)

        fused_ranks = fused.fused_ranks
        monkeypatch.setattr(fused, "fused_ranks", spy)
        monkeypatch.setattr("dml.ranking.pairwise._has_kernels", lambda scores: True)
        scores, relevance, valid = class_batch((2, 3))
        for step in (UpperBound(), Doubled(0.1)):
            pairwise_ranks(scores, relevance, valid, positive_step=heaviside, negative_step=step)
        assert handed_over == [UpperBound()]

    def test_backward_is_once_differentiable(self):
        """The backward is derived by hand; a second one must refuse rather than be silently wrong."""
        scores, relevance, valid = class_batch((2, 3))
        scores.requires_grad_()
        ranks = ranks_of(scores, relevance, valid, positive_step=WIDE[0], negative_step=WIDE[0])
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad((ranks.hrank / ranks.rank).sum(), scores, create_graph=True)


if __name__ == "__main__":
    compile_kernels()
