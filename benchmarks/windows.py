"""Sliding windows of a segmentation head: batched, one at a time, and at their limit; memory of a large image.

    python benchmarks/windows.py                                          # 32 and 64 px windows, then 1024 x 2048
    python benchmarks/windows.py --encoder cifar_resnet8 --windows 32 --large 0 0 --out windows.json
    python benchmarks/windows.py --device cuda --encoder resnet50 --images 16

Contenders: `holdfast`; `holdfast recompute`, which keeps nothing for the way back but one pass; `loop`, the usual one:
one image, one window at a time, probabilities padded to the image and added up; and `limit`, encoder and head forward
and back to the crops, which lie there already, in passes of the same size, and nothing else. All on the same random
weights, frozen, in evaluation mode, and the same random images.

Seconds are those of all the images: `forward` without a gradient; `step` one step of an attack: forward, pixel cross
entropy, gradient to the pixels, a signed step. Contenders in turn, the least of several rounds; CPU seconds of one
thread, on a GPU wall seconds. Peak memory is what a step adds on one large image, each contender in a process of its
own.

On Linux, a malloc that gives large tensors back to the system costs up to a fifth of a step on small encoders:
MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 let it keep them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent))
from attack_peers import clock, machine

from holdfast.models.checkpoint import load
from holdfast.models.dense_heads import DenseHead, build_head, spec_for
from holdfast.models.encoder import Encoder, frozen
from holdfast.tasks.sliding import cropped, starts
from holdfast.tasks.windows import Windows, dense_see, plan_for

# What is freed goes back to the system at once: else the first step, which warms up, hides the peak of the second.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
ALPHA = 1 / 255


class Ground(NamedTuple):
    """What all contenders start from.

    Attributes:
        encoder: frozen.
        head: frozen.
        windows: that slide.
        x: images [b, 3, h, w].
        labels: int64 [b, h, w].
    """

    encoder: Encoder
    head: DenseHead
    windows: Windows
    x: Tensor
    labels: Tensor


See = Callable[[Ground, Tensor], Tensor]


def batched(on: Ground, x: Tensor) -> Tensor:
    """Holdfast's way: [b, K, h, w], logarithms of mean probabilities."""
    return dense_see(on.encoder, on.head, on.windows)(x)["logits"]


def recomputed(on: Ground, x: Tensor) -> Tensor:
    """The same, keeping one pass at a time."""
    return dense_see(on.encoder, on.head, on.windows._replace(memory="recompute"))(x)["logits"]


def loop(on: Ground, x: Tensor) -> Tensor:
    """One image, one window at a time."""
    whole, size, side = dense_see(on.encoder, on.head), x.shape[-2:], on.windows.window
    found = []
    for image in x.split(1):
        total, counts = torch.zeros((), device=x.device), torch.zeros(size, device=x.device)
        for top in starts(size[0], side, on.windows.stride):
            for left in starts(size[1], side, on.windows.stride):
                window = image[..., top : top + side, left : left + side]
                soft = whole(window)["logits"].softmax(1)
                around = (left, size[1] - left - side, top, size[0] - top - side)
                total = total + functional.pad(soft, around)
                counts[top : top + side, left : left + side] += 1
        found.append((total / counts).log())
    return torch.cat(found)


SEES: dict[str, See] = {"holdfast": batched, "holdfast recompute": recomputed, "loop": loop}


def step(see: See, on: Ground) -> Tensor:
    """One step of an attack; of a loop image by image, so that it holds the graph of one."""
    moved = []
    parts = range(len(on.x)) if see is loop else [slice(None)]
    for part in parts:
        chosen = slice(part, part + 1) if isinstance(part, int) else part
        x = on.x[chosen].clone().requires_grad_()
        harm = functional.cross_entropy(see(on, x), on.labels[chosen], reduction="sum")
        (grad,) = torch.autograd.grad(harm, x)
        moved.append((on.x[chosen] + ALPHA * grad.sign()).clamp(0, 1))
    return torch.cat(moved)


def limit(on: Ground, *, back: bool) -> None:
    """Encoder and head on the crops of every pass, and back to them."""
    whole = dense_see(on.encoder, on.head)
    with torch.no_grad():
        passes = cropped(plan_for(on.x, on.windows), on.x)
    for crops in passes:
        with torch.set_grad_enabled(back):
            given = crops.detach().requires_grad_(back)
            out = whole(given)["logits"]
            if back:
                torch.autograd.grad(out, given, torch.ones_like(out))


def jobs(on: Ground) -> dict[str, dict[str, Callable[[], object]]]:
    """What is timed: forward and step of each contender."""
    found: dict[str, dict[str, Callable[[], object]]] = {}
    for name, see in SEES.items():
        found[name] = {"forward": _without_gradient(see, on), "step": lambda see=see: step(see, on)}
    found["limit"] = {"forward": lambda: limit(on, back=False), "step": lambda: limit(on, back=True)}
    return found


def _without_gradient(see: See, on: Ground) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.no_grad():
            return see(on, on.x)

    return run


def seconds(work: Callable[[], object], device: str) -> float:
    """Of one call."""
    began = clock(device)
    work()
    return clock(device) - began


@contextmanager
def ground(args: argparse.Namespace, window: int, size: tuple[int, int], images: int, batch: int) -> Iterator[Ground]:
    """The same weights and images for all."""
    encoder = load(f"random:{args.encoder}", options=tuple(args.options), device=args.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = build_head(spec_for(encoder, "segmentation", args.head, outputs=args.classes)).to(args.device)
        x = torch.rand(images, 3, *size).to(args.device)
        labels = torch.randint(args.classes, (images, *size)).to(args.device)
    windows = Windows(window, max(1, window * 2 // 3), batch=batch)
    with frozen(encoder), frozen(head):
        yield Ground(encoder, head, windows, x, labels)


def small(args: argparse.Namespace, window: int) -> dict[str, Any]:
    """Windows of one size over images four times as large: seconds, and how far the contenders are apart."""
    with ground(args, window, (args.scale * window,) * 2, args.images, args.batch) as on:
        them = jobs(on)
        answers = {name: run["forward"]() for name, run in them.items() if name in SEES}
        took = timed(them, args)
        apart = {n: float((a - answers["loop"]).abs().max()) for n, a in answers.items() if n != "loop"}  # type: ignore[operator]
        plan = plan_for(on.x, on.windows)
    return {
        "window": window,
        "image": [args.scale * window] * 2,
        "windows per image": plan.windows,
        "passes": len(plan.passes),
        "seconds": took,
        "loop / holdfast": {of: took["loop"][of] / took["holdfast"][of] for of in ("forward", "step")},
        "step / limit": took["holdfast"]["step"] / took["limit"]["step"],
        "recompute / keep": took["holdfast recompute"]["step"] / took["holdfast"]["step"],
        "largest difference from the loop": apart,
    }


def timed(them: dict[str, dict[str, Callable[[], object]]], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The least of the rounds, contenders in turn, after one round that does not count."""
    taken: dict[str, dict[str, list[float]]] = {name: {of: [] for of in work} for name, work in them.items()}
    for turn in range(args.rounds + 1):
        for name, work in them.items():
            for of, run in work.items():
                spent = seconds(run, args.device)
                taken[name][of] += [spent] if turn else []
    return {name: {of: min(all_of) for of, all_of in work.items()} for name, work in taken.items()}


def large(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """One large image under attack: seconds and peak memory, kept and recomputed."""
    found: dict[str, Any] = {"image": args.large, "window": args.large_window, "windows per pass": args.large_batch}
    for name in ("holdfast", "holdfast recompute"):
        command = [sys.executable, __file__, *argv, "--alone", name]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **RETURNING})
        found[name] = json.loads(ran.stdout) if ran.returncode == 0 else ran.stderr.strip().splitlines()[-1]
    if all(isinstance(found[name], dict) for name in ("holdfast", "holdfast recompute")):
        for of in ("seconds", "peak MB"):
            found[f"recompute / keep, {of}"] = found["holdfast recompute"][of] / found["holdfast"][of]
    return found


def alone(args: argparse.Namespace) -> dict[str, Any]:
    """What a step of one contender takes on the large image, and what it adds to this process, or holds on the GPU."""
    height, width = args.large
    with ground(args, args.large_window, (height, width), 1, args.large_batch) as on:
        see = SEES[args.alone]
        side = args.large_window
        step(see, on._replace(x=on.x[..., :side, :side], labels=on.labels[:, :side, :side]))  # warms up, on one window
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() / 1e6
            spent = seconds(lambda: step(see, on), args.device)
            return {"seconds": spent, "peak MB": torch.cuda.max_memory_allocated() / 1e6 - before}
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _status("VmRSS")
        spent = seconds(lambda: step(see, on), args.device)
        return {"seconds": spent, "peak MB": _status("VmHWM") - before}


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3


def _print(row: dict[str, Any]) -> None:
    print(f"\nwindows of {row['window']} px, {row['windows per image']} per image, {row['passes']} passes")
    for name, took in row["seconds"].items():
        print(f"  {name:20} forward {took['forward']:8.4f} s   step {took['step']:8.4f} s")
    times = row["loop / holdfast"]
    print(
        f"  loop / holdfast: forward {times['forward']:.2f}, step {times['step']:.2f};  step / limit "
        f"{row['step / limit']:.3f};  recompute / keep {row['recompute / keep']:.3f}",
        flush=True,
    )


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="mobilenetv2_050", help="an architecture; its weights are random")
    parser.add_argument("--options", nargs="*", default=[], help="of the architecture, as width=4")
    parser.add_argument("--head", default="linear", choices=("linear", "upernet", "dpt"))
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--windows", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--scale", type=int, default=4, help="side of the images, in windows")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch", type=int, default=0, help="windows per pass; 0 = Holdfast's own choice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, nargs=2, default=[1024, 2048], help="height and width; 0 0 = none")
    parser.add_argument("--large-window", type=int, default=256)
    parser.add_argument("--large-batch", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--alone", default="", choices=("", *SEES), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write everything here as JSON")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here. Next: --device cpu")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write JSON where asked; returns what is written."""
    args = parsed(argv)
    torch.set_num_threads(1)
    if args.alone:
        found = alone(args)
        print(json.dumps(found))
        return found
    said = {key: value for key, value in vars(args).items() if key not in ("out", "alone")}
    found = {"machine": machine(args.device), "options": said, "small": [], "large": None}
    for window in args.windows:
        found["small"].append(small(args, window))
        _print(found["small"][-1])
    if all(args.large):
        found["large"] = large(args, sys.argv[1:] if argv is None else argv)
        print(f"\n{json.dumps(found['large'], indent=1)}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
