"""PGD and APGD beside foolbox, torchattacks, ART, pyautoattack, a bare loop and the physical limit, in one run.

    python benchmarks/attacks.py WEIGHTS --arch cifar_resnet20 --data cifar10:FOLDER --out found.json
    python benchmarks/attacks.py WEIGHTS ... --device cuda --precision bf16 --engine compiled

The same weights, images, starts and steps for all. The limit is `steps` times forward and backward to the input, on
frozen weights, and nothing else: no start, no step, no judgement. Seconds are those of a whole attack, contenders in
turn, medians over the rounds; CPU seconds of one thread, on a GPU wall seconds. Robust accuracy is judged for all by
the plain module in float32, on the pixels that they return. Peak memory is what the attack adds, each contender in a
process of its own. Peers: pip install foolbox pyautoattack; pip install --no-deps torchattacks
adversarial-robustness-toolbox (torchattacks pins a requests of 2021; ART then also wants scikit-learn).

Precision and engine are Holdfast's alone: no peer has them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from attack_peers import APGD, PGD, Ground, clock, correct, ground, machine, quiet

from holdfast import codec, records
from holdfast.models.precision import true_float32

CONTENDERS = {**PGD, **APGD}
# What is freed goes back to the system at once: else the first attack, which warms up, hides the peak of the second.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
PLANNED = ("linf:0.25/255", "linf:0.5/255", "linf:1/255", "linf:2/255", "linf:4/255", "l2:0.1", "l2:0.25")
Contender = Callable[[Ground], torch.Tensor]


def budget(word: str) -> tuple[str, float]:
    """`linf:1/255` as a norm and a radius."""
    norm, _, eps = word.rpartition(":")
    return norm or "linf", codec.number(eps)


def present(names: list[str], on: Ground) -> tuple[dict[str, Contender], dict[str, str]]:
    """Contenders that can run here, each warmed by one step on a batch, and why the others cannot."""
    able, absent = {}, {}
    few = Ground(
        on.encoder,
        on.net,
        on.x[: on.batch],
        {name: row[: on.batch] for name, row in on.rows.items()},
        msgspec.structs.replace(on.record, steps=1),
        on.batch,
        on.engine,
    )
    for name in names:
        try:
            with quiet():
                CONTENDERS[name](few)
            able[name] = CONTENDERS[name]
        except ImportError as error:
            absent[name] = str(error)
    return able, absent


def round_of(able: dict[str, Contender], on: Ground, device: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Seconds and robust images of every contender, in turn."""
    seconds, robust = {}, {}
    for name, attack in able.items():
        with quiet():
            began = clock(device)
            pixels = attack(on)
            seconds[name] = clock(device) - began
        robust[name] = correct(on, pixels)
    return seconds, robust


def compare(args: argparse.Namespace, on: Ground, able: dict[str, Contender]) -> Iterator[dict[str, object]]:
    """Every radius: robust accuracy, median seconds, and the ratios that are promised."""
    for norm, eps in args.eps:
        here = Ground(
            **{**vars(on), "record": msgspec.structs.replace(on.record, norm=norm, eps=eps)},
        )
        rounds = [round_of(able, here, args.device) for _ in range(args.rounds)]
        seconds = {name: statistics.median(times[name] for times, _ in rounds) for name in able}
        robust = {name: round(100 * float(kept.float().mean()), 2) for name, kept in rounds[0][1].items()}
        yield {
            "norm": norm,
            "eps": f"{eps * 255:.4g}/255" if norm == "linf" else f"{eps:g}",
            "robust accuracy": {name: share for name, share in robust.items() if name != "limit"},
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            **ratios(seconds),
        }


def ratios(seconds: dict[str, float]) -> dict[str, object]:
    """What is promised, where the contenders that it needs have run."""
    whole = seconds.get("holdfast, whole budget")
    if whole is None:
        return {}
    found: dict[str, object] = {}
    if "limit" in seconds:
        found["limit / holdfast without dropping"] = round(seconds["limit"] / whole, 3)
    if "holdfast" in seconds:
        found["without dropping / with"] = round(whole / seconds["holdfast"], 2)
    peers = {name: round(seconds[name] / whole, 2) for name in ("foolbox", "torchattacks", "art") if name in seconds}
    return {**found, "peer / holdfast without dropping": peers}


def peak(args: argparse.Namespace, name: str, on: Ground) -> float:
    """MB that an attack adds to this process, or holds on the GPU: one batch, a few steps."""
    contender = CONTENDERS[name]
    short = Ground(**{**vars(on), "record": msgspec.structs.replace(on.record, steps=3)})
    with quiet():
        contender(Ground(**{**vars(short), "record": msgspec.structs.replace(on.record, steps=1)}))
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            contender(short)
            return torch.cuda.max_memory_allocated() / 1e6
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _status("VmRSS")
        contender(short)
        return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3


def alone(argv: list[str], name: str) -> float | str:
    """The peak of a contender in a process of its own."""
    command = [sys.executable, __file__, *argv, "--alone", name]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **RETURNING})
    return float(json.loads(ran.stdout)) if ran.returncode == 0 else ran.stderr.strip().splitlines()[-1]


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--eps", nargs="+", type=budget, default=[budget(word) for word in PLANNED])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--memory", action="store_true", help="also peak memory")
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Those that all programs on attacks share."""
    parser.add_argument("weights")
    parser.add_argument("--arch", default="")
    parser.add_argument("--options", nargs="*", default=[])
    parser.add_argument("--mean", nargs=3, type=float)
    parser.add_argument("--std", nargs=3, type=float)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--subset", default="first", choices=("random", "first"))
    parser.add_argument("--batch", type=int, default=64, help="images per pass, of all contenders")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--engine", default="eager", choices=("eager", "folded", "compiled"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")


@true_float32()
def main(argv: list[str] | None = None) -> dict[str, object]:
    """Parse, measure, write."""
    given = sys.argv[1:] if argv is None else argv
    args = parsed(given)
    torch.set_num_threads(args.threads)
    norm, eps = args.eps[0]
    record = records.Attack(norm=norm, eps=eps, steps=args.steps, start="zero", precision=args.precision)
    on = ground(args, record)
    if args.alone:
        print(json.dumps(peak(args, args.alone, on)))
        return {}
    able, absent = present(args.only, on)
    radii: list[dict[str, object]] = []
    found: dict[str, object] = {
        "machine": machine(args.device),
        "weights": Path(args.weights).name,
        "images": len(on.x),
        "clean accuracy": round(100 * float(correct(on, on.x).float().mean()), 2),
        "options": {k: getattr(args, k) for k in ("steps", "batch", "rounds", "precision", "engine")},
        "absent": absent,
        "radii": radii,
    }
    for radius in compare(args, on, able):
        radii.append(radius)
        print(json.dumps(radius), flush=True)
        if args.out:  # it may be long: what is done is kept
            Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    if args.memory:
        found["peak MB that the attack adds"] = {name: alone(given, name) for name in able}
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
