"""What attacks on segmentation raise: by hand, beside a published package, image by image, and always finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from holdfast.attacks.scores import dlr
from holdfast.data.batches import IGNORE
from holdfast.errors import ConfigError
from holdfast.tasks.segmentation_pixels import Pixels, predicted
from holdfast.tasks.segmentation_pushes import LOSSES, PUSHES, TARGETED

B, K, H, W = 3, 5, 4, 6
FIRST = {"mask": torch.zeros(1, 1, 1, dtype=torch.int64)}
"""Of an image of one pixel, of class 0."""
MASKED = ("masked", "balanced", "margin", "spherical")


def drawn(seed: int = 0, *, k: int = K, ignored: bool = True) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Logits, of which about half are right, rows with both masks, and progress of each image."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, k, H, W, generator=random)
    mask, target = (torch.randint(k, (B, H, W), generator=random) for _ in range(2))
    mask = torch.where(torch.rand(B, H, W, generator=random) < 0.5, logits.argmax(1), mask)
    if ignored:
        mask[:, 0, :2] = target[:, 1, :2] = IGNORE
    return (
        logits,
        {"mask": mask, "target_mask": target, "sizes": torch.arange(1.0, k + 1).expand(B, -1)},
        torch.tensor([0.0, 0.3, 0.9]),
    )


def raised(name: str, logits: Tensor, rows: dict[str, Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """Values [b] and the gradient of their sum with respect to the logits."""
    seen = logits.clone().requires_grad_()
    value = PUSHES[name]({"logits": seen}, rows, t)
    (gradient,) = torch.autograd.grad(value.sum(), seen)
    return value.detach(), gradient


def one(*logits: float) -> Tensor:
    """The logits of an image of one pixel."""
    return torch.tensor(logits).view(1, -1, 1, 1)


@pytest.mark.parametrize("k", [2, 3, K, 151])
def test_the_answer_is_argmax_ties_included(k: int) -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(B, k, H, W, generator=random)
    tied = torch.randint(3, (B, k, H, W), generator=random).float()
    for z in (logits, tied, torch.zeros_like(logits), logits.bfloat16(), logits - 1e6):
        assert torch.equal(predicted(z), z.argmax(1))
    lost = predicted(torch.full_like(logits, torch.nan))
    assert bool(((lost >= 0) & (lost < k)).all())


@pytest.mark.parametrize(("gap", "weight"), [(1.5, 1 - 0.4 / 2), (-1.5, 0.4 / 2)])
def test_segpgd_of_one_pixel_and_two_classes_by_hand(gap: float, weight: float) -> None:
    """Right (gap > 0) it weighs 1 - t/2, wrong t/2; d CE / d z = (p - 1, 1 - p)."""
    value, gradient = raised("segpgd", one(gap, 0.0), FIRST, torch.tensor([0.4]))
    p = 1 / (1 + math.exp(-gap))
    assert float(value) == pytest.approx(-weight * math.log(p), rel=1e-5)
    assert gradient.flatten().tolist() == pytest.approx([weight * (p - 1), weight * (1 - p)], rel=1e-5)


def test_lambda_is_the_published_one_at_every_step() -> None:
    """Of T = 20 steps, i = 1 to 20: (i - 1) / 2T, and t = (i - 1) / T; one step in each row."""
    steps = torch.arange(20)
    mask = torch.zeros(20, 1, 1, dtype=torch.int64)
    wrong = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(20, -1, 1, 1)
    value = PUSHES["segpgd"]({"logits": wrong}, {"mask": mask}, steps / 20)
    published = [(i - 1) / (2 * 20) for i in range(1, 21)]
    assert (value / math.log(1 + math.e)).tolist() == pytest.approx(published, abs=1e-6)


def test_segpgd_is_one_mean_over_all_labelled_pixels() -> None:
    logits, rows, t = drawn()
    for i in range(B):
        labelled = rows["mask"][i] != IGNORE
        z, y = logits[i][:, labelled].T, rows["mask"][i][labelled]
        each = cross_entropy(z, y, reduction="none") * torch.where(z.argmax(1) == y, 1 - t[i] / 2, t[i] / 2)
        value = PUSHES["segpgd"]({"logits": logits}, rows, t)[i]
        assert float(value) == pytest.approx(float(each.sum()) / (H * W - 2), rel=1e-5)


def test_cospgd_by_hand_its_cosine_a_constant() -> None:
    value, gradient = raised("cospgd", one(1.0, 0.0), FIRST, torch.zeros(1))
    p = 1 / (1 + math.exp(-1))
    cosine = p / math.hypot(p, 1 - p)
    assert float(value) == pytest.approx(-cosine * math.log(p), rel=1e-5)
    assert gradient.flatten().tolist() == pytest.approx([cosine * (p - 1), cosine * (1 - p)], rel=1e-5)


def test_jensen_shannon_is_its_definition_and_bounded() -> None:
    logits, rows, t = drawn(ignored=False)
    seen = logits.double().requires_grad_()
    p, q = seen.softmax(1), one_hot(rows["mask"], K).movedim(3, 1).double()
    m = (p + q) / 2
    divergence = (p * (p / m).log() - q * m.log()).sum((1, 2, 3)) / (2 * H * W)  # q ln q is 0
    value, gradient = raised("js", logits.double(), rows, t)
    assert torch.allclose(value, divergence, rtol=1e-10)
    assert torch.allclose(gradient, torch.autograd.grad(divergence.sum(), seen)[0], atol=1e-12)
    for far, limit in ((40.0, 0.0), (-40.0, math.log(2))):
        value, gradient = raised("js", one(far, 0.0), FIRST, t[:1])
        assert float(value) == pytest.approx(limit, abs=1e-6) and float(gradient.abs().max()) < 1e-6


def test_masked_and_balanced_by_hand() -> None:
    """Two classes, three pixels of class 0 of which one is wrong, one pixel of class 1: of CE a, a, b and c."""
    logits = torch.tensor([[[2.0, 2.0, -1.0, 0.0]], [[0.0, 0.0, 0.0, 3.0]]]).view(1, 2, 2, 2)
    rows = {"mask": torch.tensor([[[0, 0], [0, 1]]]), "sizes": torch.tensor([[3.0, 1.0]])}
    p = [1 / (1 + math.exp(-gap)) for gap in (2.0, 2.0, -1.0, 3.0)]
    for name, weights in (("masked", (1, 1, 0, 1)), ("balanced", (2 / 3, 2 / 3, 0, 2))):
        value, gradient = raised(name, logits, rows, torch.zeros(1))
        assert float(value) == 0.25  # compared by the share of wrong pixels
        expected = [weight * (chance - 1) / 4 for weight, chance in zip(weights, p)]
        assert gradient.gather(1, rows["mask"][:, None]).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_balanced_by_the_classes_of_the_images_that_the_head_was_fitted_on() -> None:
    """Six pixels of class 0 and two of class 1: weights 8/2/6 and 8/2/2, a mean of 1 over those eight."""
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)
    rows = {"mask": torch.tensor([0, 1]).view(2, 1, 1), "sizes": torch.tensor([6.0, 2.0]).expand(2, -1)}
    _, gradient = raised("balanced", logits, rows, torch.zeros(2))
    _, plain = raised("masked", logits, rows, torch.zeros(2))
    assert (gradient / plain).flatten(1)[:, 0].tolist() == pytest.approx([2 / 3, 2.0], rel=1e-5)
    del rows["sizes"]
    with pytest.raises(ConfigError, match=r"fitted on.*does not say how many.*take masked"):
        raised("balanced", logits, rows, torch.zeros(2))


def test_margin_is_dlr_of_each_pixel_that_is_right() -> None:
    logits, rows, t = drawn()
    value, gradient = raised("margin", logits, rows, t)
    read = Pixels(logits, rows["mask"])
    for i in range(B):
        labelled = read.labelled[i]
        z = logits[i].clone().requires_grad_()
        flat, y = z[:, labelled].T, rows["mask"][i][labelled]
        wanted = (dlr(flat, y) * (flat.argmax(1) == y)).sum() / 22
        assert torch.allclose(gradient[i], torch.autograd.grad(wanted, z)[0], atol=1e-6)
        assert float(value[i]) == pytest.approx(float((flat.argmax(1) != y).sum()) / 22)


def test_scales_of_the_logits_flatten_neither_margin_nor_direction() -> None:
    logits, rows, t = drawn()
    for name in ("margin", "spherical"):
        _, plain = raised(name, logits, rows, t)
        _, loud = raised(name, 1000 * logits, rows, t)
        assert torch.allclose(1000 * loud, plain, rtol=1e-3, atol=1e-7)
    assert float(raised("ce", 1000 * logits, rows, t)[1].abs().median()) == 0


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_harm_takes_nothing_from_wrong_pixels_and_grows_with_them(name: str) -> None:
    logits, rows, t = drawn()
    value, gradient = raised(name, logits, rows, t)
    read = Pixels(logits, rows["mask"])
    assert not gradient.movedim(1, 3)[~read.right].any() and gradient.movedim(1, 3)[read.right].any()
    worse = logits.clone()
    worse[:, :, 1] = -20 * one_hot(rows["mask"][:, 1].clamp_max(K - 1), K).movedim(2, 1).float()
    assert bool((raised(name, worse, rows, t)[0] > value).all())


@pytest.mark.parametrize("targeted", [False, True])
def test_equals_the_published_scalings_of_cospgd(targeted: bool) -> None:
    cospgd = pytest.importorskip("cospgd", reason="the package cospgd is not installed: no peer of SegPGD and CosPGD")
    logits, rows, _ = drawn(ignored=False)
    truth, sign = (rows["target_mask"], -1) if targeted else (rows["mask"], 1)
    ours = "_target" if targeted else ""
    for i in range(B):
        z, y = logits[i : i + 1], truth[i : i + 1]
        mine = {"mask": rows["mask"][i : i + 1], "target_mask": y}
        for step in (0, 7, 19):
            seen = z.clone().requires_grad_()
            each = cross_entropy(seen, y, reduction="none")
            segpgd = cospgd.functions.segpgd_scale(seen, y, each, step, 20, targeted=targeted)
            cosine = cospgd.functions.cospgd_scale(seen, y, each, num_classes=K, targeted=targeted).mean()
            for name, theirs in (("segpgd", segpgd), ("cospgd", cosine)):
                value, gradient = raised(name + ours, z, mine, torch.tensor([step / 20]))
                (wanted,) = torch.autograd.grad(sign * theirs, seen, retain_graph=True)
                assert float(value) == pytest.approx(sign * theirs.item(), rel=1e-5)
                assert torch.allclose(gradient, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", PUSHES)
def test_each_row_is_from_its_image_alone(name: str) -> None:
    """One backward pass of one image's value reaches no other image, and all at once is each alone."""
    logits, rows, t = drawn()
    seen = logits.clone().requires_grad_()
    value = PUSHES[name]({"logits": seen}, rows, t)
    assert value.shape == (B,)
    (gradient,) = torch.autograd.grad(value[1], seen, retain_graph=True)
    assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()
    together = torch.autograd.grad(value.sum(), seen)[0]
    for i in range(B):
        part = {key: row[i : i + 1] for key, row in rows.items()}
        alone, slope = raised(name, logits[i : i + 1], part, t[i : i + 1])
        assert torch.allclose(alone, value[i : i + 1].detach(), atol=1e-6)
        assert torch.allclose(slope, together[i : i + 1], atol=1e-7)


@pytest.mark.parametrize("name", PUSHES)
def test_pixels_without_a_label_do_nothing(name: str) -> None:
    logits, rows, t = drawn()
    value, gradient = raised(name, logits, rows, t)
    nowhere = rows["target_mask" if name in TARGETED else "mask"] == IGNORE
    assert not gradient.movedim(1, 3)[nowhere].any()
    other = torch.where(nowhere[:, None], torch.randn(B, K, H, W, generator=torch.Generator().manual_seed(9)), logits)
    again, same = raised(name, other, rows, t)
    assert torch.allclose(again, value, atol=1e-6) and torch.allclose(same, gradient, atol=1e-6)


@pytest.mark.parametrize("name", PUSHES)
@pytest.mark.parametrize("k", [2, K])
def test_finite_whatever_is_labelled_and_answered(name: str, k: int) -> None:
    logits, rows, t = drawn(k=k)
    answered = logits.argmax(1)
    masks = {
        "nothing labelled": torch.full_like(answered, IGNORE),
        "all right": answered,
        "all wrong": (answered + 1) % k,
        "one pixel": torch.where(torch.arange(W) == 2, answered, IGNORE),
    }
    for mask in masks.values():
        for z in (logits, 1e4 * logits, torch.zeros_like(logits), logits - 1e4):
            value, gradient = raised(name, z, {"mask": mask, "target_mask": mask, "sizes": rows["sizes"]}, t)
            assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())
    value, gradient = raised(
        name, logits, {**rows, **dict.fromkeys(("mask", "target_mask"), masks["nothing labelled"])}, t
    )
    assert not value.any() and not gradient.any()


@pytest.mark.parametrize("name", PUSHES)
def test_nothing_waits_for_the_device(name: str) -> None:
    """On a device without values, what asks for one raises."""
    rows = {key: torch.zeros(B, H, W, dtype=torch.int64, device="meta") for key in ("mask", "target_mask")}
    rows["sizes"] = torch.ones(B, K, device="meta")
    out = {"logits": torch.zeros(B, K, H, W, device="meta", requires_grad=True)}
    value = PUSHES[name](out, rows, torch.zeros(B, device="meta"))
    torch.autograd.grad(value.sum(), out["logits"])
    assert value.shape == (B,)


def test_double_softmax_shrinks_the_gradient() -> None:
    """By 2 p_y (1 - p_y) once more: probabilities as logits leave CE between ln(1 + 1/e) and ln(1 + e)."""
    for gap in (4.0, 8.0):
        _, plain = raised("segpgd", one(gap, 0.0), FIRST, torch.zeros(1))
        value, shrunk = raised("segpgd_double_softmax", one(gap, 0.0), FIRST, torch.zeros(1))
        p = 1 / (1 + math.exp(-gap))
        again = 1 / (1 + math.exp(1 - 2 * p))
        assert float(value) == pytest.approx(-math.log(again), rel=1e-5)
        assert float(shrunk[0, 0]) == pytest.approx(2 * (again - 1) * p * (1 - p), rel=1e-2)
        assert float(shrunk.abs().max()) < float(plain.abs().max())
    logits, rows, t = drawn()
    ratios = [raised(name, logits, rows, t)[1].flatten(1).norm(dim=1) for name in ("segpgd_double_softmax", "segpgd")]
    assert bool((ratios[0] < 0.5 * ratios[1]).all())


def test_means_of_each_mask_do_not_weigh_how_many_pixels_there_are() -> None:
    """Ten right pixels and one wrong one, or one and ten: the same by two means, not by one."""
    right, wrong = one(1.0, 0.0), one(0.0, 1.0)
    t, values = torch.tensor([0.5]), {}
    for many, few in ((right, wrong), (wrong, right)):
        logits = torch.cat([*[many] * 10, few], dim=3)
        rows = {"mask": torch.zeros(1, 1, 11, dtype=torch.int64)}
        for name in ("segpgd", "segpgd_per_mask_means"):
            values.setdefault(name, []).append(float(PUSHES[name]({"logits": logits}, rows, t)))
    a, b = math.log(1 + math.exp(-1)), math.log(1 + math.e)
    assert values["segpgd_per_mask_means"] == pytest.approx([0.75 * a + 0.25 * b] * 2, rel=1e-5)
    assert values["segpgd"] == pytest.approx([(7.5 * a + 0.25 * b) / 11, (0.75 * a + 2.5 * b) / 11], rel=1e-5)


def test_leaving_class_zero_out_and_all_defects_together() -> None:
    logits, rows, t = drawn()
    first = rows["mask"] == 0
    without = {"mask": rows["mask"].where(~first, IGNORE)}
    value, gradient = raised("segpgd_without_first", logits, rows, t)
    wanted, slope = raised("segpgd", logits, without, t)
    assert torch.allclose(value, wanted) and torch.allclose(gradient, slope)
    soft = logits.softmax(1)
    wanted = PUSHES["segpgd_per_mask_means"]({"logits": soft}, without, t)
    assert torch.allclose(raised("segpgd_published", logits, rows, t)[0], wanted, rtol=1e-5)
    assert not raised("segpgd_published", logits, rows, t)[1].movedim(1, 3)[first].any()


@pytest.mark.parametrize("name", TARGETED)
def test_a_targeted_harm_leads_to_its_target(name: str) -> None:
    """Steps on the logits themselves raise the target everywhere that it is named, and leave the rest alone."""
    logits, rows, t = drawn()
    named = rows["target_mask"] != IGNORE
    z = logits.clone()
    for _ in range(400):
        z = z + 0.1 * raised(name, z, rows, t)[1].sign()
    assert bool((z.argmax(1) == rows["target_mask"])[named].all())
    assert torch.equal(z.movedim(1, 3)[~named], logits.movedim(1, 3)[~named])


def test_a_target_is_a_mask_or_one_class_everywhere() -> None:
    logits, rows, t = drawn()
    classes = torch.tensor([4, 0, 2])
    everywhere = classes[:, None, None].expand(B, H, W).where(rows["mask"] != IGNORE, IGNORE)
    for name in TARGETED:
        wide = PUSHES[name]({"logits": logits}, {"mask": rows["mask"], "target": classes}, t)
        assert torch.equal(wide, PUSHES[name]({"logits": logits}, {"target_mask": everywhere}, t))


def test_the_default_is_cross_entropy_and_every_targeted_harm_has_a_plain_one() -> None:
    assert next(iter(PUSHES)) == "ce"
    assert {name.removesuffix("_target") for name in TARGETED} < set(LOSSES)
    logits, rows, t = drawn()
    wanted = [cross_entropy(logits[i : i + 1], rows["mask"][i : i + 1], ignore_index=IGNORE) for i in range(B)]
    assert torch.allclose(PUSHES["ce"]({"logits": logits}, rows, t), torch.stack(wanted))
