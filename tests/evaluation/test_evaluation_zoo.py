"""Every broken model raises exactly its own flags, through the same bench that measures real ones; a plain one none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
import torch
from broken_models import zoo
from torch import Tensor

import holdfast
from holdfast.evaluation.checks import FLAGS, Check, checks, flags
from holdfast.evaluation.curves import Subject, subjects
from holdfast.evaluation.evidence import evidence
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder
from holdfast.records import Attack, Judge, Surrogate

PAGE = Path(__file__).parents[2] / "docs" / "believability.md"
EXPECTED = {
    "plain": set(),
    "quantised": {"zero-gradients", "noise-as-good", "black-box-better", "above-chance"},
    "shattered": {"noise-as-good", "black-box-better"},
    "scaled": {"zero-gradients", "noise-as-good", "ce-margin-gap", "above-chance"},
    "noisy": {"randomised"},
    "softmax": {"probabilities"},
    "batch": {"coupled-batch"},
}
OWN = Judge(task="classification", head="own")


def attacks(surrogate: Encoder, eps: float, **square: int) -> list[Attack]:
    """What is needed for every flag of classification: two radii, two step counts, two harms, three controls."""
    ce = Attack(push="ce", eps=eps, steps=20)
    margin = msgspec.structs.replace(ce, push="margin")
    return [
        ce,
        msgspec.structs.replace(ce, eps=2 * eps),
        msgspec.structs.replace(ce, steps=30),
        margin,
        msgspec.structs.replace(margin, surrogate=Surrogate(encoder=surrogate.model, judge=OWN)),
        msgspec.structs.replace(ce, method="noise"),
        Attack(method="square", push="margin", eps=eps, **square),
    ]


# -- what is measured on the victim ------------------------------------------------------------------------------------


def seen(logits: Callable[[Tensor], Tensor], pixels: Tensor) -> dict[str, Tensor]:
    def see(x: Tensor) -> Mapping[str, Tensor]:
        return {"logits": logits(x)}

    return evidence(see, pixels, see(pixels))


def linear(x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, 3 * 16 * 5).view(5, 48)
    return x.flatten(1) @ weight.T


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_plain_victim_gives_no_evidence_against_itself(pixels: Tensor) -> None:
    found = seen(linear, pixels)
    assert {name: part.shape for name, part in found.items()} == {
        f"check_{name}": (9,) for name in ("repeated", "company", "probabilities", "outside")
    }
    assert found["check_repeated"].max() == 0 and found["check_company"].max() < 1e-6
    assert not found["check_probabilities"].any() and found["check_outside"].max() == 0


def test_gaps_are_in_units_of_the_spread(pixels: Tensor) -> None:
    """Logits (0, 4) that move by (0.2, 0): a gap of 0.05, whatever the scale."""
    for scale in (1.0, 2000.0):
        calls = iter((0.0, 0.2, 0.0, 0.0))

        def logits(x: Tensor, scale: float = scale, calls: object = calls) -> Tensor:
            return scale * torch.tensor([next(calls), 4.0]).expand(len(x), 2)

        assert seen(logits, pixels)["check_repeated"].tolist() == pytest.approx([0.05] * 9)


def test_last_digits_of_large_logits_are_no_disagreement(pixels: Tensor) -> None:
    drift = iter((0.0, 6e-5, -6e-5, 0.0))  # one unit in the last place of 1000
    found = seen(lambda x: 1000 + 0.1 * linear(x) / 1e3 + next(drift), pixels)
    assert found["check_repeated"].max() < 1e-3 and found["check_company"].max() < 1e-3


@pytest.mark.parametrize("n", [1, 3, 8])
def test_every_image_is_shown_in_other_company(n: int, pixels: Tensor) -> None:
    """Also where few images were repeated to fill the pass: more of the same would be no other company."""
    padded = pixels[torch.arange(8) % n]
    found = seen(lambda x: linear(x - x.mean(0)), padded)
    assert found["check_company"].min() > 0.01
    assert found["check_repeated"].max() == 0


def test_noise_is_seen_and_the_global_random_state_is_left(pixels: Tensor) -> None:
    torch.manual_seed(3)
    first = torch.randn(1)
    torch.manual_seed(3)
    found = evidence(lambda x: {"logits": linear(x + 0.1 * torch.randn_like(x))}, pixels, {"logits": linear(pixels)})
    assert torch.equal(torch.randn(1), first)
    assert found["check_repeated"].min() > 1e-3


def test_probabilities_and_stray_pixels_are_seen(pixels: Tensor) -> None:
    assert seen(lambda x: linear(x).softmax(1), pixels)["check_probabilities"].all()
    assert not seen(lambda x: linear(x).log_softmax(1), pixels)["check_probabilities"].any()
    assert not seen(lambda x: linear(x).sigmoid(), pixels)["check_probabilities"].any()
    pixels[2, 0, 0, 0], pixels[5, 1, 1, 1] = 1.25, -0.5
    assert seen(linear, pixels)["check_outside"].tolist() == pytest.approx([0, 0, 0.25, 0, 0, 0.5, 0, 0, 0])


# -- the zoo -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """The whole zoo through one bench: 64 drawn scenes, and one attack at a radius at which nothing can stand."""
    models = zoo()
    unbounded = Attack(push="ce", eps=0.5, steps=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the noisy model draws from the global state
        run = holdfast.bench(
            list(models.values()),
            data="scenes",
            limit=64,
            attack_limit=64,
            tasks=["classification"],
            corruptions=["none"],
            attacks=[*attacks(models["plain"], 2 / 255, steps=30), unbounded],
            chunk=64,
            threads=1,
            out=str(tmp_path_factory.mktemp("zoo") / "run"),
        )
    return {subject.name: subject for subject in subjects([run])}


def by_flag(subject: Subject) -> dict[str, Check]:
    return {check.flag: check for check in checks(subject)}


def raised(subject: Subject) -> set[str]:
    return {flag for flag, check in by_flag(subject).items() if check.status == "failed"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_model_raises_exactly_its_own_flags(benched: dict[str, Subject], name: str) -> None:
    found = by_flag(benched[name])
    assert raised(benched[name]) == EXPECTED[name], {flag: check.text for flag, check in found.items()}


def test_a_plain_model_passes_what_was_measured_and_all_was(benched: dict[str, Subject]) -> None:
    found = by_flag(benched["plain"])
    assert {flag for flag, check in found.items() if check.status == "not measured"} == {"other-head-better"}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_record_of_a_cell_holds_its_flags(benched: dict[str, Subject], name: str) -> None:
    subject = benched[name]
    for result in subject.results:
        assert result.flags == flags(result.cell, subject.run.outcomes(result.id))
        assert set(result.flags) <= EXPECTED[name]


@pytest.mark.parametrize("name", ["noisy", "batch"])
def test_changing_answers_are_not_compared(benched: dict[str, Subject], name: str) -> None:
    found = by_flag(benched[name])
    compared = ("noise-as-good", "black-box-better", "ce-margin-gap", "not-monotone", "still-gaining", "above-chance")
    assert {found[flag].status for flag in compared} == {"not measured"}


def test_an_unbounded_radius_is_no_evidence(benched: dict[str, Subject]) -> None:
    """Shattered gradients find nothing at 2/255, and "accuracy at eps 0.5 is at chance" holds all the same."""
    assert by_flag(benched["shattered"])["above-chance"].status == "passed"
    assert "noise-as-good" in raised(benched["shattered"])


def test_the_matrix_on_the_page_is_what_is_measured() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    head = next(row for row in table if row[0] == "model")
    written = {
        row[0]: {flag.strip("`") for flag, mark in zip(head[1:], row[1:], strict=True) if mark == "X"}
        for row in table
        if row[0] in EXPECTED and len(row) == len(head)
    }
    assert written == EXPECTED
    assert [flag.strip("`") for flag in head[1:]] == list(FLAGS)


@pytest.mark.slow
def test_a_published_net_raises_none(real: Callable[[str], Path], tmp_path: Path) -> None:
    """ResNet-20 on 200 images at 0.5/255 and 1/255, ResNet-56 as the surrogate; every image-by-image check included."""
    weights = real("weights")
    surrogate = load(weights / "cifar10_resnet56.th", arch="cifar_resnet56")
    run = holdfast.bench(
        str(weights / "cifar10_resnet20.th"),
        arch="cifar_resnet20",
        data=f"cifar10:{real('cifar10_lossless')}",
        subset="first",
        limit=200,
        attack_limit=200,
        tasks=["classification"],
        corruptions=["none"],
        attacks=attacks(surrogate, 0.5 / 255, steps=300),
        chunk=64,
        threads=1,
        out=str(tmp_path / "run"),
    )
    (subject,) = subjects([run])
    found = by_flag(subject)
    assert raised(subject) == set(), {flag: check.text for flag, check in found.items()}
    assert {flag for flag, check in found.items() if check.status == "not measured"} == {
        "above-chance",
        "other-head-better",
    }
