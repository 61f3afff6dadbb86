"""ParameterGroups: who learns how fast."""

import functools
import itertools

import pytest
import torch
from torch import nn

from dml.losses import NormSoftmaxLoss, SmoothAPLoss
from dml.models import TimmEmbedder
from dml.optimization import Group, ParameterGroups
from dml.schedules import Constant, Cosine

ADAMW = functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)


def embedder(name="test_resnet", **changes):
    return TimmEmbedder(name, 8, pretrained=False, image_size=64, **changes)


def grouped(groups, model=None, loss=None, make=ADAMW):
    model = model or embedder()
    return groups.optimizer(make, model, loss or SmoothAPLoss()), model


def by_role(optimizer, role):
    return [group for group in optimizer.param_groups if group["role"] == role]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_each_parameter_is_in_one_group_of_its_role(name, every, layer_decay):
    groups = ParameterGroups(backbone=Group(layer_decay=layer_decay), decay_norms_and_biases=every)
    loss = NormSoftmaxLoss(12, 8)
    optimizer, model = grouped(groups, embedder(name), loss)
    parts = {"backbone": model.backbone, "head": model.head, "loss": loss}
    for role, part in parts.items():
        found = [id(parameter) for group in by_role(optimizer, role) for parameter in group["params"]]
        assert sorted(found) == sorted(id(parameter) for parameter in part.parameters())
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names)


def test_norms_and_biases_are_not_decayed():
    optimizer, model = grouped(ParameterGroups())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decays[id(parameter)] == (0.5 if parameter.ndim > 1 else 0)


def test_what_the_model_names_is_not_decayed():
    optimizer, model = grouped(ParameterGroups(), embedder("test_vit"))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert "pos_embed" in model.backbone.no_weight_decay()
    assert model.backbone.pos_embed.ndim > 1
    assert decays[id(model.backbone.pos_embed)] == 0


def test_all_is_decayed_on_demand():
    optimizer, _ = grouped(ParameterGroups(decay_norms_and_biases=True), embedder("test_vit"))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.5}


def test_each_role_has_its_rate_and_decay():
    groups = ParameterGroups(
        backbone=Group(learning_rate=1.0, weight_decay=2.0), head=Group(learning_rate=3.0), loss=Group(weight_decay=4.0)
    )
    optimizer, _ = grouped(groups, loss=NormSoftmaxLoss(12, 8))
    assert {group["lr"] for group in by_role(optimizer, "backbone")} == {1.0}
    assert {group["weight_decay"] for group in by_role(optimizer, "backbone")} == {0.0, 2.0}
    assert {group["lr"] for group in by_role(optimizer, "head")} == {3.0}
    assert {group["weight_decay"] for group in by_role(optimizer, "head")} == {0.0, 0.5}
    assert [(group["lr"], group["weight_decay"]) for group in by_role(optimizer, "loss")] == [(0.1, 4.0)]


def test_proxies_are_not_decayed_unless_told():
    optimizer, _ = grouped(ParameterGroups(), loss=NormSoftmaxLoss(12, 8))
    assert [group["weight_decay"] for group in by_role(optimizer, "loss")] == [0.0]


def test_layers_learn_more_slowly_the_deeper_they_lie():
    optimizer, model = grouped(ParameterGroups(backbone=Group(layer_decay=0.5)), embedder("test_vit"))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    blocks = [rates[id(next(block.parameters()))] for block in model.backbone.blocks]
    assert rates[id(model.backbone.patch_embed.proj.weight)] == pytest.approx(blocks[0] / 2)
    for earlier, later in itertools.pairwise(blocks):
        assert earlier == pytest.approx(later / 2)
    assert rates[id(model.backbone.norm.weight)] == pytest.approx(0.1)
    assert rates[id(model.head.weight)] == pytest.approx(0.1)


def test_frozen_parameters_are_in_no_group():
    model = embedder()
    model.backbone.requires_grad_(False)
    optimizer, _ = grouped(ParameterGroups(), model)
    assert {group["role"] for group in optimizer.param_groups} == {"head"}


def test_each_role_has_its_schedule():
    groups = ParameterGroups(head=Group(schedule=Constant()))
    optimizer, _ = grouped(groups)
    found = dict(zip([g["role"] for g in optimizer.param_groups], groups.schedules(optimizer, Cosine()), strict=True))
    assert found == {"backbone": Cosine(), "head": Constant()}


@pytest.mark.parametrize("make", [ADAMW, functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)])
def test_a_frozen_role_stays_as_it_is_and_leaves_no_trace(make):
    groups = ParameterGroups(backbone=Group(frozen=0.5))
    optimizer, model = grouped(groups, make=make)
    before = [parameter.detach().clone() for parameter in model.backbone.parameters()]
    for progress in (0.0, 0.49, 0.5):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        head = model.head.weight.detach().clone()
        groups.freeze(optimizer, progress)
        optimizer.step()
        assert not torch.equal(head, model.head.weight)
        same = [torch.equal(old, new) for old, new in zip(before, model.backbone.parameters(), strict=True)]
        assert all(same) if progress < 0.5 else not any(same)
        with_state = [p in optimizer.state for p in model.backbone.parameters()]
        assert not any(with_state) if progress < 0.5 else all(with_state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group(learning_rate=-1), "learning_rate is -1"),
        (lambda: Group(weight_decay=-1), "weight_decay is -1"),
        (lambda: Group(frozen=1), "frozen is 1; it is a share"),
        (lambda: Group(layer_decay=0), "layer_decay is 0"),
        (lambda: ParameterGroups(head=Group(layer_decay=0.5)), r"head\.layer_decay is 0\.5; only the backbone"),
        (lambda: ParameterGroups(loss=Group(layer_decay=0.5)), r"loss\.layer_decay is 0\.5"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_loss_without_parameters_makes_no_group():
    optimizer, _ = grouped(ParameterGroups(), loss=nn.Identity())
    assert by_role(optimizer, "loss") == []
