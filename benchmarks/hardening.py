"""One step of DeACL: Holdfast beside its arithmetic and beside the published arrangement.

    python benchmarks/hardening.py                                      # ResNet-20, 64 images, PGD-5, one thread
    python benchmarks/hardening.py --device cuda --model cifar_resnet18 --images 512 --precision bf16 --out found.json

Contenders: `holdfast`, the one training step; `limit`, the arithmetic and nothing else: the teacher's pass once, k
passes of the student with a gradient to the pixels alone, one pass over clean and perturbed images with all gradients,
the optimizer; `published`, the same with weights that keep asking for gradients during the attack, as published code
leaves them. All from equal weights on equal images, without views (`benchmarks/training.py` times those), and the first
losses are compared before anything is timed (within 1e-3: random starts are equal, sums are not).

CPU seconds of one thread, on a GPU wall seconds; contenders in turn, the least of several rounds. `epoch` is what
50,000 images would take at that rate: an estimate.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

sys.path.insert(0, str(Path(__file__).resolve().parent))
from attack_peers import machine
from training import fastest

from holdfast import draws
from holdfast.models.encoder import Encoder
from holdfast.train_config import TrainConfig
from holdfast.training import build
from holdfast.training.step import Trainee, train_step

EPS, ALPHA = 8 / 255, 2 / 255


def config_for(args: argparse.Namespace) -> TrainConfig:
    """DeACL as published, on the architecture that was asked for."""
    return TrainConfig(
        method="deacl",
        model=f"random:{args.model}",
        optimizer="sgd",
        lr=0.01,
        eps=EPS,
        alpha=ALPHA,
        steps=args.steps,
        precision=args.precision,
    )


def trainee_for(config: TrainConfig, device: str, side: int) -> Trainee:
    """What `holdfast train deacl` would step."""
    with build.seeded(torch.device("cpu"), "benchmark"):
        method = build.method_for(build.encoder_for(config), config, side).to(device).train()
    optimizer = build.optimizer_for(method, config)
    return Trainee(method, method, optimizer, build.adversary_for(config), torch.autograd.backward)


class Plain:
    """The step written down: teacher, PGD on the student in evaluation mode, one pass over both images.

    Args:
        trainee: its student and teacher are copied.
        config: of the optimizer and the attack.
        free: whether the student's weights ask for gradients during the attack.
    """

    def __init__(self, trainee: Trainee, config: TrainConfig, *, free: bool) -> None:
        method: Any = trainee.method
        self.student: Encoder = copy.deepcopy(method.encoder)
        self.teacher: Encoder = copy.deepcopy(method.teacher)
        self.config, self.free = config, free
        self.optimizer = build.optimizer_for(self.student, config)

    def step(self, x: Tensor, start: Tensor) -> float:
        """One step from the same random start; returns the loss."""
        precision = self.config.precision
        with torch.no_grad():
            target = self.teacher(x, precision=precision).pooled
        self.student.eval()
        self.student.requires_grad_(self.free)
        moved = start.clone()
        for _ in range(self.config.steps):
            moved.requires_grad_()
            apart = -cosine_similarity(self.student(moved, precision=precision).pooled, target).sum()
            if self.free:
                torch.autograd.backward(apart)
                gradient = moved.grad
            else:
                (gradient,) = torch.autograd.grad(apart, moved)
            assert gradient is not None
            moved = (moved.detach() + ALPHA * gradient.sign()).sub_(x).clamp_(-EPS, EPS).add_(x).clamp_(0, 1)
        self.student.train().requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        clean, hard = self.student(torch.cat([x, moved]), precision=precision).pooled.chunk(2)
        loss = (1 - cosine_similarity(clean, target)).mean() + 2 * (1 - cosine_similarity(hard, clean)).mean()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return float(loss.detach())


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    config = build.settled(config_for(args))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(args.images, 3, args.side, args.side, generator=generator).to(args.device)
    rows = {"key": draws.keys([str(i) for i in range(args.images)])}
    trainee = trainee_for(config, args.device, args.side)
    limit, published = (Plain(trainee, config, free=free) for free in (False, True))
    adversary: Any = trainee.adversary
    start = adversary.ball.start(x, torch.full((len(x),), EPS, device=x.device), rows["key"], "adversary", "image")
    losses = {"limit": limit.step(x, start), "published": published.step(x, start)}
    losses["holdfast"] = float(train_step(trainee, {"image": x}, rows))
    if max(losses.values()) - min(losses.values()) > 1e-3:
        raise SystemExit(f"not the same step: losses {losses}")
    contenders: dict[str, Callable[[], object]] = {
        "limit": lambda: limit.step(x, start),
        "holdfast": lambda: train_step(trainee, {"image": x}, rows),
        "published": lambda: published.step(x, start),
    }
    seconds = fastest(contenders, args.device, args.rounds)
    found = {
        "machine": machine(args.device),
        "options": vars(args),
        "losses of the first step": losses,
        "seconds": seconds,
        "times the limit": {name: round(value / seconds["limit"], 3) for name, value in seconds.items()},
        "images per second": {name: round(args.images / value, 1) for name, value in seconds.items()},
        "epoch of 50,000 in minutes": {name: round(50_000 / args.images * s / 60, 2) for name, s in seconds.items()},
    }
    print(json.dumps(found, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
