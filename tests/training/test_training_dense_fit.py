"""The fit of a dense head in numbers: its plan, its losses by hand, and the constants that it is compared with."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from holdfast.configs import ProbeConfig
from holdfast.data.batches import IGNORE
from holdfast.data.sources import images, open_source
from holdfast.models.dense_heads import build_head
from holdfast.records import DenseSpec
from holdfast.tasks.depth import Depth
from holdfast.tasks.segmentation import Segmentation
from holdfast.training.dense_fit import Plan, loss
from holdfast.training.dense_probe import plan_for
from holdfast.training.dense_scores import best_class, best_depth
from holdfast.training.dense_splits import Part, Parts
from holdfast.training.schedule import learning_rate


def _plan(**fields):
    plain = {"images": 40, "batch": 8, "total": 100, "lr": 2.0, "weight_decay": 0.0, "schedule": "poly", "seed": 0}
    return Plan(**{**plain, **fields})


def test_the_rate_rises_in_a_line_and_falls_as_its_name_says():
    plan = _plan()
    assert [plan.rate(step) for step in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert plan.rate(5) == 2.0
    assert plan.rate(100 - 19) == pytest.approx(2 * (19 / 95) ** 0.9)
    assert 0 < plan.rate(99) < 0.04
    cosine = _plan(schedule="cosine")
    assert [cosine.rate(s) for s in (3, 50)] == [learning_rate(s, total=100, warmup=5, peak=2.0) for s in (3, 50)]


def test_a_head_is_tried_twenty_times_at_most_after_whole_epochs_and_at_the_end():
    def due(plan):
        return [step for step in range(1, plan.total + 1) if plan.due(step)]

    assert due(_plan()) == list(range(5, 101, 5))
    assert due(_plan(total=503)) == [*range(30, 503, 30), 503]
    assert due(_plan(total=3)) == [3]


def test_where_a_plan_leaves_the_defaults_of_a_linear_head():
    source = open_source(images("scenes", split="val", size=16, limit=20))
    parts = Parts(*[Part(source, list(range(20)), "val")] * 3)
    plain = plan_for(ProbeConfig(task="depth", epochs=3), parts)
    assert (plain.lr, plain.batch, plain.total) == (1e-3, 16, 3)
    given = plan_for(ProbeConfig(lr=0.02, batch=64, iterations=7), parts)
    assert (given.lr, given.batch, given.total) == (0.02, 20, 7)


def _head(outputs=2):
    spec = DenseSpec(task="segmentation", kind="linear", levels=("patch",), channels=(3,), outputs=outputs)
    with torch.random.fork_rng(devices=[]):
        return build_head(spec)


def test_the_loss_of_segmentation_is_a_mean_over_what_is_labelled():
    task = Segmentation(_head(), ("a", "b"))
    logits = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1).repeat(2, 1, 1, 2).requires_grad_()
    mask = torch.tensor([[[0, IGNORE]], [[IGNORE, 1]]])
    right = math.log1p(math.exp(-2.0))
    assert float(loss(task, {"logits": logits}, {"mask": mask}).detach()) == pytest.approx((right + 2 + right) / 2)
    nothing = loss(task, {"logits": logits}, {"mask": torch.full_like(mask, IGNORE)})
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert float(nothing.detach()) == 0 and not gradient.any()


def test_the_loss_of_depth_is_silog_of_the_batch_and_a_gradient_within_images():
    task = Depth(_head(), max_depth=10.0)
    truth = torch.full((4, 9, 9), 2.0)
    truth[0, 0, 0] = 0  # not measured
    scale = math.log((2 * 1.5 + 1e-3) / (2 + 1e-3))
    same = float(loss(task, {"depth": truth.clamp_min(1) * 1.5}, {"depth": truth}))
    assert same == pytest.approx(math.sqrt(0.15) * scale, rel=1e-4)
    # Scales that differ between images are seen, and no pixel is compared with one of another image (D1.3).
    depth = truth.clamp_min(1).clone()
    depth[2:] *= 1.5
    n, half = 4 * 81 - 1, 2 * 81
    mean = scale * half / n
    variance = (half * (scale - mean) ** 2 + (n - half) * mean**2) / (n - 1)
    found = float(loss(task, {"depth": depth}, {"depth": truth}))
    assert found == pytest.approx(math.sqrt(variance + 0.15 * mean**2), rel=1e-4)
    # An edge across the width is seen by the gradient as one across the height is.
    tall, wide = (2 * torch.ones(1, 9, 9) for _ in range(2))
    tall[:, 5:], wide[:, :, 5:] = 3.0, 3.0
    edges = [float(loss(task, {"depth": x}, {"depth": truth[1:2]})) for x in (tall, wide)]
    assert edges[0] == pytest.approx(edges[1], rel=1e-5)
    nothing = loss(task, {"depth": depth.requires_grad_()}, {"depth": 0 * truth})
    assert float(nothing.detach()) == 0 and bool(torch.isfinite(torch.autograd.grad(nothing, depth)[0]).all())


def test_the_best_constant_class_is_the_one_that_is_seen_most():
    labelled = torch.tensor([30.0, 60.0, 0.0, 10.0]).numpy()
    assert best_class(labelled, ("a", "b", "c", "d")) == {"class": "b", "miou": pytest.approx(0.6 / 3)}
    assert best_class(0 * labelled, ("a", "b", "c", "d")) == {}


def test_the_best_constant_depth_is_that_of_a_search_and_of_the_plain_case():
    flat = torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0], [5.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).double().numpy()
    # |2 - c| twice and |5 - c|: the median, and nothing of the image that has no depth.
    assert best_depth(flat) == {"metres": pytest.approx(2.0), "rmse": pytest.approx(1.0)}
    moments = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).double().numpy()
    moments[:, 2] = 1

    def worth(c):
        return ((moments[:, 1] + (c - moments[:, 0]) ** 2) ** 0.5).mean()

    best = minimize_scalar(worth, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
    assert best_depth(moments)["rmse"] == pytest.approx(best.fun, abs=1e-12)
    assert best_depth(flat[3:]) == {}
