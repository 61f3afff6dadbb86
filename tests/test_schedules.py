"""Learning-rate schedules."""

import pytest
import torch

from dml.schedules import Cosine, OneCycle


def test_one_cycle_is_that_of_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    published = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001, cycle_momentum=False)
    ours = OneCycle()
    for step in range(1000):
        # torch turns one step earlier: its rise ends at 0.3 * total_steps - 1.
        assert ours(step / 1000) == pytest.approx(published.get_last_lr()[0], abs=3e-3)
        optimizer.step()
        published.step()
    assert ours(0.3) == 1
    assert ours(1.0) == pytest.approx(4e-6)


def test_cosine_warms_up_and_comes_down():
    schedule = Cosine(warmup=0.2, final=0.1)
    assert [schedule(progress) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])


@pytest.mark.parametrize("make", [lambda: Cosine(warmup=1.0), lambda: Cosine(final=2.0), lambda: OneCycle(warmup=0.0)])
def test_errors_name_the_argument(make):
    with pytest.raises(ValueError, match=r"(warmup|final) is [0-9.]+; it is"):
        make()
