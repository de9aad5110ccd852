"""The contenders of `attacks.py`: each takes the same ground and gives adversarial pixels.

All begin at the clean image, so that PGD's steps are the same arithmetic for all of them; APGD alone begins at random,
since its peer can do nothing else. Peers see the bare trunk with its normalisation, in evaluation mode, with weights
as a user hands them over (they want a gradient) and pixels as a loader lays them (channel by channel); where that costs
them, it is theirs to avoid. The limit and the bare loop have frozen weights and, as Holdfast on a CPU, the channels of
a pixel together, which is faster. A peer that is not installed is left out and named.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from holdfast import records
from holdfast.attacks.balls import ball
from holdfast.attacks.board import laid
from holdfast.attacks.cascade import cascade
from holdfast.attacks.harm import Harm
from holdfast.attacks.methods import build, step_size
from holdfast.attacks.scores import cross_entropy
from holdfast.data.batches import batches
from holdfast.data.sources import images, open_source
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder, Engine
from holdfast.tasks.classification import Classification
from holdfast.tasks.task import still, victim

PACKAGES = ("torch", "timm", "foolbox", "torchattacks", "adversarial-robustness-toolbox", "pyautoattack")
BIG = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class Ground:
    """What all contenders share.

    Attributes:
        encoder: for Holdfast.
        net: the same as a plain module from pixels to logits, for the others.
        x: clean pixels, float32 [n, 3, h, w], on the device.
        rows: `label`, `key`, and what a targeted attack reads, [n] each.
        record: norm, radius, steps, precision, from the clean image.
        batch: images per pass.
        engine: that Holdfast's attack passes run by.
    """

    encoder: Encoder
    net: nn.Module
    x: Tensor
    rows: dict[str, Tensor]
    record: records.Attack
    batch: int
    engine: Engine = "eager"

    @property
    def alpha(self) -> float:
        """The step in pixel units."""
        return step_size(self.record.eps, self.record.alpha, self.record.steps)

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and labels, batch by batch, the pixels as a loader lays them."""
        return zip(self.x.contiguous().split(self.batch), self.rows["label"].split(self.batch))

    def laid(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, laid as Holdfast lays them."""
        return zip(self.x.split(self.batch), self.rows["label"].split(self.batch))


class Plain(nn.Module):
    """Trunk and normalisation, with nothing of Holdfast's between them."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.trunk, self.mean, self.std = encoder.trunk, encoder.mean, encoder.std
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [b, k] of pixels in [0, 1]."""
        return self.trunk((pixels - self.mean) / self.std)


def ground(given: Any, record: records.Attack) -> Ground:
    """Weights and images as the command line names them: `weights`, `arch`, `options`, `data`, `limit`, `device`..."""
    encoder = load(given.weights, arch=given.arch, options=tuple(given.options), mean=given.mean, std=given.std)
    encoder = encoder.to(given.device)
    shape = encoder.geometry
    data = images(given.data, limit=given.limit, subset=given.subset, size=shape.size, resize=shape.resize)
    found = list(batches(open_source(data), size=given.batch))
    x = laid(torch.cat([b.pixels for b in found]).to(given.device))
    rows = {name: torch.cat([b.rows[name] for b in found]).to(given.device) for name in found[0].rows}
    task = Classification(known=encoder.classes)
    with still(encoder, task), torch.no_grad():
        logits = torch.cat([encoder.logits(part) for part in x.split(given.batch)])
    rows |= task.aims({"logits": logits}, rows, seed=0)
    return Ground(encoder, Plain(encoder), x, rows, record, given.batch, given.engine)


@contextlib.contextmanager
def harmed(on: Ground, push: str = "ce") -> Iterator[Harm]:
    """Holdfast's harm: attack passes by the engine that was asked for, judgement eager and in float32."""
    task = Classification(known=on.encoder.classes)
    with victim(on.encoder, task, push, precision=on.record.precision, engine=on.engine) as harm:
        yield harm


def holdfast(on: Ground, *, stop: str = "lost", **changed: Any) -> Tensor:
    """Holdfast's attack of the record, `changed` in some fields."""
    record = msgspec.structs.replace(on.record, **changed)
    rows = {**on.rows, "eps": torch.full((len(on.x),), record.eps, device=on.x.device)}
    pushes = Classification().pushes
    with harmed(on) as harm:
        members = build(record, classes=on.encoder.classes)
        return cascade(members, harm, pushes, on.x, rows, slots=on.batch, stop=stop).pixels  # type: ignore[arg-type]


def limit(on: Ground) -> Tensor:
    """What no fixed-budget attack can go below: forward and backward to the input, `steps` times, and nothing else."""
    with _unlearning(on.net):
        for part, label in on.laid():
            pixels = part
            for _ in range(on.record.steps):
                pixels = pixels.detach().requires_grad_()
                torch.autograd.grad(cross_entropy(on.net(pixels), label).sum(), pixels)
    return on.x


def bare(on: Ground) -> Tensor:
    """The loop that one writes by hand, on frozen weights: no look at what it did."""
    shape, found = ball(on.record.norm), []
    with _unlearning(on.net):
        for part, label in on.laid():
            pixels, eps = part, torch.full((len(part),), on.record.eps, device=part.device)
            for _ in range(on.record.steps):
                pixels = pixels.detach().requires_grad_()
                (slope,) = torch.autograd.grad(cross_entropy(on.net(pixels), label).sum(), pixels)
                pixels = shape.project(part, pixels.detach() + on.alpha * shape.steepest(slope), eps)
            found.append(pixels)
    return torch.cat(found)


def foolbox(on: Ground) -> Tensor:
    """foolbox's PGD."""
    import foolbox as peer

    model = peer.PyTorchModel(on.net, bounds=(0, 1), device=on.x.device)
    kind = peer.attacks.LinfPGD if on.record.norm == "linf" else peer.attacks.L2PGD
    attack = kind(abs_stepsize=on.alpha, steps=on.record.steps, random_start=False)
    return torch.cat([attack(model, part, label, epsilons=on.record.eps)[0] for part, label in on.parts()])


def torchattacks(on: Ground) -> Tensor:
    """torchattacks' PGD."""
    import torchattacks as peer

    kind = peer.PGD if on.record.norm == "linf" else peer.PGDL2
    attack = kind(on.net, eps=on.record.eps, alpha=on.alpha, steps=on.record.steps, random_start=False)
    return torch.cat([attack(part, label) for part, label in on.parts()])


def art(on: Ground) -> Tensor:
    """PGD of the Adversarial Robustness Toolbox."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch as Peer
    from art.estimators.classification import PyTorchClassifier

    model = PyTorchClassifier(
        on.net,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(on.x.shape[1:]),
        nb_classes=on.encoder.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if on.x.is_cuda else "cpu",
    )
    norm = float("inf") if on.record.norm == "linf" else 2
    size = {"eps": on.record.eps, "eps_step": on.alpha, "max_iter": on.record.steps, "batch_size": on.batch}
    attack = Peer(model, norm=norm, num_random_init=0, verbose=False, **size)
    found = attack.generate(on.x.cpu().numpy(), on.rows["label"].cpu().numpy())
    return torch.from_numpy(found).to(on.x.device)


def autoattack_apgd(on: Ground) -> Tensor:
    """pyautoattack's APGD on the cross-entropy; it makes one gradient more than it is told steps."""
    from pyautoattack.autopgd_base import APGDAttack

    size = {"n_iter": on.record.steps, "eps": on.record.eps, "norm": BIG[on.record.norm], "n_restarts": 1}
    attack = APGDAttack(on.net, loss="ce", seed=0, device=on.x.device, logger=logging.getLogger("peer"), **size)
    return torch.cat([attack.perturb(part, label) for part, label in on.parts()])


PGD: dict[str, Callable[[Ground], Tensor]] = {
    "limit": limit,
    "bare loop": bare,
    "holdfast, whole budget": lambda on: holdfast(on, stop="never"),
    "holdfast": holdfast,
    "foolbox": foolbox,
    "torchattacks": torchattacks,
    "art": art,
}
APGD: dict[str, Callable[[Ground], Tensor]] = {
    "holdfast apgd, whole budget": lambda on: holdfast(on, stop="never", method="apgd", start="random"),
    "holdfast apgd": lambda on: holdfast(on, method="apgd", start="random"),
    "pyautoattack apgd": autoattack_apgd,
}


def correct(on: Ground, pixels: Tensor) -> Tensor:
    """Whether each image is classified correctly, by the plain module in float32, bool [n]."""
    with torch.no_grad():
        logits = torch.cat([on.net(part) for part in pixels.split(on.batch)])
    return logits.argmax(1) == on.rows["label"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Peers warn about what is not theirs to mend here, and draw from the global generator."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def clock(device: str) -> float:
    """CPU time of this process; on a GPU wall time, all work before it done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def machine(device: str) -> dict[str, object]:
    """Processor, versions, date: without them a time says nothing."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(names),
        "GPU": torch.cuda.get_device_name() if device != "cpu" else "not measured",
        "threads": torch.get_num_threads(),
        "float32": "true float32 for all contenders: no TensorFloat-32" if device != "cpu" else "float32",
        "clock": "CPU seconds of the process" if device == "cpu" else "wall seconds",
        "python": platform.python_version(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


@contextlib.contextmanager
def _unlearning(net: nn.Module) -> Iterator[None]:
    """No gradient for the weights."""
    wanted = [(p, p.requires_grad) for p in net.parameters()]
    for p, _ in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in wanted:
            p.requires_grad_(flag)
