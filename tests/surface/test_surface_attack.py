"""`holdfast.attack`: where it begins, whom it aims at; and each mistake in three parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import holdfast
from holdfast.attacks.methods import METHODS
from holdfast.configs import AttackConfig
from holdfast.errors import ConfigError, DataError, HoldfastError, PixelError, TrustError
from holdfast.looking import attacked
from holdfast.models.checkpoint import load

SIDE, CLASSES = 6, 4


class Linear(nn.Module):
    """Logits that are linear in the pixels: every optimum is known."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(scale * torch.randn(CLASSES, 3 * SIDE * SIDE, generator=draw) / 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.weight.T


class Changed(nn.Module):
    """A module whose output is changed."""

    def __init__(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, pixels: Tensor) -> Tensor:
        return self.change(self.module(pixels))


def images(n: int = 5) -> Tensor:
    """Far from the box, so that it does not bind."""
    return 0.3 + 0.4 * torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def through(**fields: Any) -> AttackConfig:
    return AttackConfig(**{"through": "classification", "eps": 0.02, "steps": 5, **fields})


def attack(module: nn.Module, pixels: Any, labels: Any = None, **fields: Any) -> Tensor:
    return holdfast.attack(module, pixels, labels, **{"through": "classification", "eps": 0.02, "steps": 5, **fields})


# -- the attack itself -------------------------------------------------------------------------------------------------


def test_what_a_bare_module_returns_is_taken_for_logits() -> None:
    module, x = Linear(), images()
    label = module(x).argmax(1)
    found = attacked(load(module), x, label, through(push="margin", eps=0.01))
    again = module(found.pixels).detach()
    others = again.scatter(1, label[:, None], -torch.inf).amax(1)
    assert torch.allclose(found.score, others - again.gather(1, label[:, None])[:, 0], atol=1e-6)


def test_a_target_is_reached_where_it_can_be_and_is_optimal_where_not() -> None:
    """Through a linear module the best step towards a class is the sign of its row, minus that of the clean label."""
    module, x, eps = Linear(), images(), 0.004
    label = module(x).argmax(1)
    found = attacked(load(module), x, label, through(target="2", push="margin", eps=eps, steps=20))
    direction = (module.weight[2] - module.weight[label]).sign().view_as(x)
    best = x + eps * direction
    aimed = label != 2
    unreached = aimed & (found.score <= 0)
    # Where the target is not reached, the whole run was spent on this one difference of logits.
    reach = module(found.pixels) - module(found.pixels).gather(1, label[:, None])
    optimum = module(best) - module(best).gather(1, label[:, None])
    assert bool((reach[:, 2] <= optimum[:, 2] + 1e-5).all())
    assert bool(unreached.any())
    far = attacked(load(module), x, label, through(target="2", eps=0.3, steps=20))
    assert bool((module(far.pixels).argmax(1) == 2).all()) and bool((far.score > 0).all())


def test_a_given_delta_is_where_the_attack_begins(tmp_path: Path) -> None:
    module, x, eps = Linear(), images(), 0.003
    label = module(x).argmax(1)
    others = module(x).scatter(1, label[:, None], -torch.inf).argmax(1)
    best = eps * (module.weight[others] - module.weight[label]).sign().view_as(x).detach()
    still = {"push": "margin", "eps": eps, "alpha": 1e-9, "steps": 1}
    drawn = attacked(load(module), x, label, through(**still))
    begun = attacked(load(module), x, label, through(**still), delta=best)
    assert bool((begun.score > drawn.score + 0.01).all())
    assert torch.allclose(begun.pixels, x + best, atol=1e-6)
    # too long a delta is cut to the ball; files say the same
    assert torch.allclose(attacked(load(module), x, label, through(**still), delta=5 * best).pixels, begun.pixels)
    hwc = best.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "delta.npz", delta=hwc)
    np.savez(tmp_path / "found.npz", adversarial=x.permute(0, 2, 3, 1).numpy() + hwc)
    torch.save(best, tmp_path / "delta.pt")
    for name in ("delta.npz", "found.npz", "delta.pt"):
        read = attacked(load(module), x, label, through(**still), delta=str(tmp_path / name))
        assert torch.allclose(read.pixels, begun.pixels, atol=1e-7), name


def test_one_delta_serves_all_images() -> None:
    module, x = Linear(), images()
    delta = torch.full((3, SIDE, SIDE), 0.01)
    found = attacked(load(module), x, None, through(alpha=1e-9, steps=1, push="margin"), delta=delta)
    begun = attacked(
        load(module), x, None, through(alpha=1e-9, steps=1, push="margin"), delta=delta.expand(5, -1, -1, -1)
    )
    assert torch.equal(found.pixels, begun.pixels)


def test_a_surrogate_is_attacked_and_the_encoder_judged() -> None:
    """Twice the logits give the same attack: what differs is the score, and it is that of the encoder."""
    module, double, x = Linear(), Linear(scale=2.0), images()
    label = module(x).argmax(1)
    found = attacked(load(module), x, label, through(eps=0.002, push="margin"), surrogate=load(double))
    assert torch.allclose(2 * found.score, found.trace["surrogate_score"], atol=1e-6)
    other = attacked(load(module), x, label, through(eps=0.002, push="margin"), surrogate=load(Linear(seed=7)))
    own = attacked(load(module), x, label, through(eps=0.002, push="margin"))
    assert float(other.score.mean()) < float(own.score.mean()), "another encoder's gradient is worth less"


def test_what_was_handed_over_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module.train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.random.get_rng_state()
    attack(module, images(), target="1")
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(part.training for part in module.modules()) and all(p.requires_grad for p in module.parameters())
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "classification" in method.through])
def test_every_method_attacks_a_few_images(name: str) -> None:
    x = images(3)
    found = attacked(load(Linear()), x, None, through(method=name, steps=6, eps=0.1))
    assert 0 < float((found.pixels - x).abs().max()) <= 0.1 + 1e-6
    assert found.score.shape == (3,)


def test_without_a_gradient_square_does_what_the_message_says() -> None:
    module, x = Changed(Linear(), lambda z: z.detach()), images()
    found = attacked(load(module), x, None, through(method="square", steps=60, eps=0.05))
    assert bool((found.score > found.trace["clean_score"]).all())


# -- what is refused ---------------------------------------------------------------------------------------------------


def nan(logits: Tensor) -> Tensor:
    return torch.where(torch.arange(len(logits))[:, None] == 2, torch.nan, logits)


PROBABILITIES = Changed(Linear(), lambda z: z.softmax(1))
MISTAKES: dict[str, tuple[nn.Module, Any, Any, dict[str, Any], type[HoldfastError], str]] = {
    "probabilities": (PROBABILITIES, images(), None, {}, ConfigError, "are probabilities.*Drop the softmax"),
    "nan": (Changed(Linear(), nan), images(), None, {}, TrustError, "logits of image 2.*not finite.*Look for"),
    "label": (Linear(), images(), torch.tensor([0, 1, 2, 3, 4]), {}, DataError, r"in 0\.\.4\..*from 0 to 3"),
    "label type": (Linear(), images(), torch.zeros(5), {}, DataError, r"labels are torch.float32 \[5\].*int64"),
    "sizes": (
        Linear(),
        [torch.rand(3, 6, 6), torch.rand(3, 8, 8)],
        None,
        {},
        DataError,
        "Images of 6x6 and 8x8 pixels.*--size",
    ),
    "eps": (Linear(), images(), None, {"eps": 8}, ConfigError, r"eps 8 .*Did you mean 8/255\?"),
    "normalised": (Linear(), images() * 4 - 2, None, {}, PixelError, r"pixels span \[-.*drop Normalize"),
    "bytes": (Linear(), (images() * 255).byte(), None, {}, PixelError, r"torch.uint8.*images.float\(\) / 255"),
    "detached": (
        Changed(Linear(), lambda z: z.detach()),
        images(),
        None,
        {},
        ConfigError,
        "follows the gradient.*not differentiable: its outputs do not depend.*method square",
    ),
    "numpy": (
        Changed(Linear(), lambda z: torch.from_numpy(z.numpy())),
        images(),
        None,
        {},
        ConfigError,
        "not differentiable: Can't call numpy.*method square",
    ),
    "target": (Linear(), images(), None, {"target": "7"}, ConfigError, '"7" was to be aimed at.*4 apart.*0 to 3'),
    "target of the embedding": (
        Linear(),
        images(),
        None,
        {"target": "1", "through": "embedding"},
        ConfigError,
        "has no classes.*--through classification",
    ),
    "two logits": (
        Changed(Linear(), lambda z: z[:, :2]),
        images(),
        None,
        {"push": "dlr"},
        ConfigError,
        "dlr was asked for.*three largest.* 2 logits.*Take margin",
    ),
    "method": (Linear(), images(), None, {"method": "pdg"}, ConfigError, '"pdg".*Perhaps you meant "pgd"'),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_in_three_parts(name: str) -> None:
    module, pixels, labels, fields, kind, says = MISTAKES[name]
    with pytest.raises(kind, match=says) as caught:
        attacked(load(module), pixels, labels, through(**fields))
    assert caught.value.asked and caught.value.found and caught.value.next


@pytest.mark.parametrize("fields", [{"push": "margin"}, {"method": "autoattack", "steps": 0}], ids=["margin", "auto"])
def test_two_logits_are_attacked_by_what_needs_no_third(fields: dict[str, Any]) -> None:
    module = Changed(Linear(), lambda z: z[:, :2])
    found = attacked(load(module), images(), None, through(**{"eps": 0.2, **fields}))
    assert bool((found.score > 0).all()), "a linear model with a radius far beyond its margins keeps no image"


@pytest.mark.parametrize("delta", [torch.zeros(2, 3, SIDE, SIDE), torch.full((3, SIDE, SIDE), math.nan), "no.npz"])
def test_a_delta_that_does_not_fit_is_named(delta: Any) -> None:
    with pytest.raises(DataError, match=r"delta"):
        attacked(load(Linear()), images(), None, through(), delta=delta)


def test_a_method_that_begins_where_it_chooses_is_given_no_delta() -> None:
    with pytest.raises(ConfigError, match=r"square begins where it chooses.*pgd"):
        attacked(load(Linear()), images(), None, through(method="square"), delta=torch.zeros(3, SIDE, SIDE))


def test_one_image_has_no_other_to_pass_for() -> None:
    with pytest.raises(ConfigError, match=r"whose neighbour one becomes.*at least three images"):
        attacked(load(Linear()), images(1), None, through(through="embedding", aim="towards"))


def test_a_surrogate_of_other_classes_is_refused() -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 7))
    with pytest.raises(ConfigError, match=r"7 classes apart.*4.*embedding"):
        attacked(load(Linear()), images(), None, through(), surrogate=load(other))


def test_plain_encoders_are_not_refused() -> None:
    """Rows that sum to one by chance, or outputs that are small, are no probabilities."""
    positive = Changed(Linear(), lambda z: z.relu() + 0.01)
    assert attack(positive, images()).shape == images().shape
