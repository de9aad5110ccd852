"""PGD beside foolbox's LinfPGD and a bare loop: the same weights, images, starts, steps; robust accuracy and CPU time.

    python benchmarks/attacks.py WEIGHTS --arch cifar_resnet20 --data cifar10:FOLDER [--limit 1000] [--out results.json]

The bare loop is the limit of what a fixed-budget PGD costs: forward and backward to the input, nothing else. Times are
process CPU seconds, the three taken in turn, medians over the rounds; Holdfast with and without resting lost images.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import foolbox
import torch

from holdfast import codec, records
from holdfast.attacks.balls import Linf
from holdfast.attacks.executor import pursue
from holdfast.attacks.methods import build, step_size
from holdfast.attacks.scores import cross_entropy
from holdfast.data.batches import batches
from holdfast.data.sources import images, open_source
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder, frozen
from holdfast.tasks.classification import Classification
from holdfast.tasks.task import victim


class Started(foolbox.attacks.LinfPGD):
    """foolbox's PGD from starts that are given, so that both begin at the same pixels."""

    starts: torch.Tensor

    def get_random_start(self, x0, epsilon):  # type: ignore[no-untyped-def]
        """The given start."""
        return type(x0)(self.starts)


Rows = dict[str, torch.Tensor]


def ours(encoder: Encoder, x: torch.Tensor, rows: Rows, record: records.Attack, stop: str) -> torch.Tensor:
    """Pixels that Holdfast's PGD finds."""
    attack, stages = build(record)
    eps = torch.full((len(x),), record.eps)
    with victim(encoder, Classification(), "ce") as harm:
        (found,) = pursue(attack, harm, x, {**rows, "eps": eps}, stages, slots=len(x), stop=stop)
    return found.pixels


def theirs(encoder: Encoder, x: torch.Tensor, rows: Rows, record: records.Attack) -> torch.Tensor:
    """Pixels that foolbox finds from the same start with the same step."""
    model = foolbox.PyTorchModel(torch.nn.Sequential(Logits(encoder)).eval(), bounds=(0, 1))
    alpha = step_size(record.eps, record.alpha, record.steps)
    attack = Started(abs_stepsize=alpha, steps=record.steps, random_start=True)
    eps = torch.full((len(x),), record.eps)
    attack.starts = Linf().start(x, eps, rows["key"], "pgd", record.seed, 0)
    raw, _, _ = attack(model, x, rows["label"], epsilons=record.eps)
    return raw


def bare(encoder: Encoder, x: torch.Tensor, rows: Rows, record: records.Attack) -> torch.Tensor:
    """The bare loop on frozen parameters."""
    eps, alpha = record.eps, step_size(record.eps, record.alpha, record.steps)
    adversarial = Linf().start(x, torch.full((len(x),), eps), rows["key"], "pgd", record.seed, 0)
    with frozen(encoder):
        for _ in range(record.steps):
            adversarial.requires_grad_()
            loss = cross_entropy(encoder.logits(adversarial), rows["label"]).sum()
            (gradient,) = torch.autograd.grad(loss, adversarial)
            adversarial = adversarial.detach() + alpha * gradient.sign()
            adversarial = (x + (adversarial - x).clamp(-eps, eps)).clamp(0, 1)
    return adversarial


class Logits(torch.nn.Module):
    """An encoder with its own head, as the module that foolbox wants."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [b, k]."""
        return self.encoder.logits(x)


def correct(encoder: Encoder, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Whether each image is classified correctly, bool [b]."""
    with frozen(encoder), torch.no_grad():
        return encoder.logits(x).argmax(1) == label


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Robust accuracy and CPU seconds of every contender at every radius."""
    encoder = load(args.weights, arch=args.arch, options=tuple(args.options), mean=args.mean, std=args.std)
    geometry = encoder.geometry
    data = images(args.data, limit=args.limit, subset=args.subset, size=geometry.size, resize=geometry.resize)
    source = open_source(data)
    contenders: dict[str, Callable[..., torch.Tensor]] = {
        "holdfast": lambda *a: ours(*a, "lost"),
        "holdfast, whole budget": lambda *a: ours(*a, "never"),
        "foolbox": theirs,
        "bare loop": bare,
    }
    found: list[dict[str, object]] = []
    for radius in args.eps:
        record = records.Attack(eps=radius, steps=args.steps)
        kept = dict.fromkeys(("clean", *contenders), 0)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for batch in batches(source, size=args.batch):
            rows = dict(batch.rows)
            kept["clean"] += int(correct(encoder, batch.pixels, rows["label"]).sum())
            for name, attack in contenders.items():
                began = time.process_time()
                pixels = attack(encoder, batch.pixels, rows, record)
                seconds[name].append(time.process_time() - began)
                kept[name] += int(correct(encoder, pixels, rows["label"]).sum())
        n = len(source)
        found.append({
            "eps": f"{radius * 255:.4g}/255",
            "accuracy": {name: round(100 * k / n, 2) for name, k in kept.items()},
            "median CPU seconds per batch": {name: round(statistics.median(s), 4) for name, s in seconds.items()},
        })
        print(json.dumps(found[-1]), flush=True)
    return {
        "weights": Path(args.weights).name,
        "images": n,
        "steps": args.steps,
        "batch": args.batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "foolbox": foolbox.__version__,
        "processor": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "radii": found,
    }


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--arch", default="")
    parser.add_argument("--options", nargs="*", default=[])
    parser.add_argument("--mean", nargs=3, type=float)
    parser.add_argument("--std", nargs=3, type=float)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--subset", default="random", choices=("random", "first"))
    parser.add_argument("--eps", nargs="+", type=codec.number, default=[0.25 / 255, 0.5 / 255, 1 / 255])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    found = measure(args)
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
