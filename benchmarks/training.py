"""One replay of free adversarial EMP-SSL, the coding rate and the views: Holdfast beside the published arithmetic.

    python benchmarks/training.py                                    # 12 images x 16 crops, ResNet-18, one thread
    python benchmarks/training.py --device cuda --images 100 --precision fp32 bf16 --out found.json

The reference is what published code does, written down again in plain PyTorch: crops from PIL images one by one,
float32 with channels first, one d x d log-determinant per crop, the perturbation added, stepped and clamped on the
host, LARS with two norms read per layer. Both sides make one optimizer step and one step of the perturbation from one
backward pass, on equal weights and equal crops; that they agree is checked before they are timed (loss within 1e-4).

CPU seconds of one thread, on a GPU wall seconds; contenders in turn, the least of several rounds. `minutes` is the
published run of 10 epochs (500 batches of 100 images x 16 crops, 3 replays) at the rate that was found; it is an
estimate, and made on a GPU alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parent))
from attack_peers import clock, machine

from holdfast import draws
from holdfast.train_config import TrainConfig
from holdfast.training import build
from holdfast.training.methods.empssl import coding_rate
from holdfast.training.step import Trainee, train_step
from holdfast.views import EMP, view

EPS, ALPHA = 8 / 255, 0.01
PUBLISHED = 10 * 500 * 3
"""Replays of 100 images x 16 crops in the published run."""


def config_for(args: argparse.Namespace) -> TrainConfig:
    """The published recipe, on the architecture that was asked for."""
    return TrainConfig(
        method="empssl",
        model=args.model,
        optimizer="lars",
        lr=0.3,
        adversary="free",
        alpha=ALPHA,
        replays=1,
        crops=args.crops,
        dim=args.dim,
        hidden=args.hidden,
        device=args.device,
    )


def built(config: TrainConfig, precision: str, side: int) -> Trainee:
    """What Holdfast trains, from weights drawn by the seed."""
    with build.seeded(torch.device("cpu"), 0, "method"):
        method = build.method_for(build.encoder_for(config), config, side)
    method.precision = precision  # type: ignore[assignment]
    method = method.to(config.device).train()
    return Trainee(
        method, method, build.optimizer_for(method, config), build.adversary_for(config), torch.autograd.backward
    )


class Reference:
    """The published step.

    Args:
        trainee: its weights are copied.
        config: of the recipe.
    """

    def __init__(self, trainee: Trainee, config: TrainConfig) -> None:
        import copy

        self.method: Any = copy.deepcopy(trainee.method).to(memory_format=torch.contiguous_format)
        self.config, self.delta = config, None
        self.buffers: dict[nn.Parameter, Tensor] = {}

    def loss(self, crops: Tensor) -> Tensor:
        """Of all crops [v * b, 3, h, w] in one batch, crop by crop."""
        encoder = self.method.encoder
        pixels = (crops - encoder.mean) / encoder.std
        z = self.method.projector(self.method.pre_feature(encoder.trunk(pixels)))
        parts = normalize(z, dim=1).chunk(self.config.crops)
        mean = torch.stack(list(parts)).mean(0)
        alike = torch.stack([cosine_similarity(part, mean, dim=1).mean() for part in parts]).mean()
        b, d = parts[0].shape
        eye = torch.eye(d, device=z.device)
        rates = [torch.logdet(eye + d / (b * 0.2) * part.T @ part) / 2 for part in parts]
        return -200 * alike - torch.stack(rates).mean()

    def step(self, crops: Tensor) -> float:
        """One replay; `crops` lie on the host, as the perturbation does."""
        delta = torch.zeros_like(crops) if self.delta is None else self.delta
        seen = (crops + delta).to(self.config.device).requires_grad_()
        for p in self.method.parameters():
            p.grad = None
        loss = self.loss(seen)
        loss.backward()
        self._descend()
        assert seen.grad is not None
        delta = (delta + ALPHA * seen.grad.cpu().sign()).clamp(-EPS, EPS)
        self.delta = torch.max(torch.min(delta, 1 - crops), -crops)
        return loss.item()

    @torch.no_grad()
    def _descend(self) -> None:
        """LARS, then SGD with Nesterov momentum 0.9, parameter by parameter."""
        for p in self.method.parameters():
            if p.grad is None:
                continue
            gradient, rate = p.grad, self.config.lr
            if p.ndim > 1:
                size, slope = p.norm(), gradient.norm()
                if size != 0 and slope != 0:
                    trust = 0.005 * size / (slope + size * 1e-4 + 1e-8)
                    gradient = (gradient + 1e-4 * p) * min(trust / rate, 1)
            held = self.buffers.get(p)
            held = gradient.clone() if held is None else held.mul_(0.9).add_(gradient)
            self.buffers[p] = held
            p.add_(gradient + 0.9 * held, alpha=-rate)


def fastest(contenders: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, float]:
    """The least seconds of each, in turn; the first turn warms up."""
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(rounds + 1):
        for name, do in contenders.items():
            began = clock(device)
            do()
            if turn:
                best[name] = min(best[name], clock(device) - began)
    return best


def step_times(args: argparse.Namespace, crops: Tensor) -> dict[str, Any]:
    """One replay: the published step, and ours at each precision."""
    config = config_for(args)
    b, side = len(crops) // args.crops, crops.shape[-1]
    rows = {"key": draws.keys([str(i) for i in range(b)])}
    trainees = {precision: built(config, precision, side) for precision in args.precision}
    reference = Reference(trainees[args.precision[0]], config)
    there = {f"crop{i}": part.to(args.device) for i, part in enumerate(crops.chunk(args.crops))}
    losses = {"reference": reference.step(crops)}
    losses |= {name: float(train_step(trainee, there, rows)) for name, trainee in trainees.items()}
    if "fp32" in losses and abs(losses["fp32"] - losses["reference"]) > 1e-4 * abs(losses["reference"]):
        raise SystemExit(f"not the same step: losses {losses}")
    contenders: dict[str, Callable[[], object]] = {"reference": lambda: reference.step(crops)}
    for name, trainee in trainees.items():
        contenders[f"holdfast {name}"] = lambda trainee=trainee: train_step(trainee, there, rows)
    seconds = fastest(contenders, args.device, args.rounds)
    found = {"seconds": seconds, "times as fast": _ratios(seconds), "losses of the first step": losses}
    if args.device != "cpu":
        found["minutes"] = {name: PUBLISHED * 100 / b * value / 60 for name, value in seconds.items()}
    return found


def rate_times(args: argparse.Namespace) -> dict[str, Any]:
    """The coding rate of every crop's batch and its gradient."""
    z = normalize(torch.randn(args.crops, args.rows, args.dim, device=args.device), dim=2)

    def reference() -> None:
        leaf = z.clone().requires_grad_()
        eye, scale = torch.eye(args.dim, device=args.device), args.dim / (args.rows * 0.2)
        rates = [torch.logdet(eye + scale * part.T @ part) / 2 for part in leaf]
        torch.stack(rates).mean().backward()

    def ours() -> None:
        coding_rate(z.clone().requires_grad_()).mean().backward()

    seconds = fastest({"reference": reference, "holdfast": ours}, args.device, args.rounds)
    return {"shape": list(z.shape), "seconds": seconds, "times as fast": _ratios(seconds)}


def view_times(args: argparse.Namespace, images: np.ndarray) -> dict[str, Any]:
    """Crops per second, from bytes to float pixels; the same policy as PIL and torchvision draw it, image by image."""
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.2)
    pil = transforms.Compose(
        [
            transforms.RandomResizedCrop(images.shape[1], (0.08, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([jitter], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([transforms.GaussianBlur(5, (0.1, 2.0))], 0.1),
            transforms.RandomSolarize(128, 0.1),
            transforms.ToTensor(),
        ]
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(args.device).float() / 255
    keys = draws.keys([str(i) for i in range(len(images))])
    seconds = fastest(
        {
            "reference": lambda: torch.stack([pil(Image.fromarray(image)) for image in images]),
            "holdfast": lambda: view(pixels, keys, EMP, "crop"),
        },
        args.device,
        args.rounds,
    )
    rates = {name: len(images) / value for name, value in seconds.items()}
    return {"images": len(images), "crops per second": rates, "times as fast": _ratios(seconds)}


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds["reference"] / value, 3) for name, value in seconds.items()}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar_resnet18")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=100, help="images of a batch in the coding rate alone")
    parser.add_argument("--views", type=int, default=512, help="images that are cropped once each")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=("fp32", "bf16"))
    parser.add_argument("--parts", nargs="+", default=["step", "rate", "views"], choices=("step", "rate", "views"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    drawn = np.random.default_rng(0).integers(0, 256, (args.views, args.side, args.side, 3), dtype=np.uint8)
    found: dict[str, Any] = {"machine": machine(args.device), "options": vars(args)}
    if "step" in args.parts:
        found["step"] = step_times(args, torch.rand(args.images * args.crops, 3, args.side, args.side))
    if "rate" in args.parts:
        found["coding rate"] = rate_times(args)
    if "views" in args.parts:
        found["views"] = view_times(args, drawn)
    print(json.dumps(found, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
