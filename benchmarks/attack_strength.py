"""AutoAttack beside pyautoattack, on the same weights and images: every member alone, and the cascade of all four.

    python benchmarks/attack_strength.py WEIGHTS --arch cifar_resnet20 --data cifar10:FOLDER --out found.json
    python benchmarks/attack_strength.py WEIGHTS ... --parts cascade --bf16 --eps linf:0.5/255

How many images survive each attack, on how many the two disagree, and what it costs: CPU seconds of one thread, on a
GPU wall seconds. The two draw other random numbers, so that a few images near the edge may differ either way. APGD-CE
is also compared by its loss: the mean over the images that are correct of the largest cross-entropy that it saw, whole
budget on either side. Everything is judged by the plain module in float32; an attack in bfloat16 ends, for what
survives it, with the short float32 pass that belongs to it. The standard (100 steps, 5,000 queries) takes about 10 CPU
seconds per image that survives, so that all of it takes hours on a small machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from attack_peers import BIG, Ground, clock, correct, ground, harmed, machine, quiet
from attacks import arguments, budget

from holdfast import records
from holdfast.attacks.cascade import Member, cascade
from holdfast.attacks.executor import Seen, Stop
from holdfast.attacks.methods import build
from holdfast.attacks.scores import cross_entropy
from holdfast.models.precision import true_float32
from holdfast.tasks.classification import Classification

PLANNED = ("linf:0.5/255", "linf:1/255", "l2:0.25")
NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")
STANDARD, QUERIES_PER_STEP = 100, 50


def ours(on: Ground, names: tuple[str, ...], *, stop: Stop = "lost") -> tuple[Tensor, Tensor]:
    """Pixels that these members of Holdfast's AutoAttack find, and the largest value that each image's harm had."""
    rows = {**on.rows, "eps": torch.full((len(on.x),), on.record.eps, device=on.x.device)}
    largest = torch.full((len(on.x),), -torch.inf, device=on.x.device)

    def watch(seen: Seen) -> None:
        largest.scatter_reduce_(0, seen.at, seen.value, "amax")

    members: list[Member] = [m for m in build(on.record, classes=on.encoder.classes) if m.name in (*names, "float32")]
    with harmed(on) as harm:
        found = cascade(members, harm, Classification().pushes, on.x, rows, slots=on.batch, stop=stop, watch=watch)
    return found.pixels, largest


def theirs(on: Ground, names: tuple[str, ...]) -> Tensor:
    """Pixels that these members of pyautoattack find."""
    attack = _peer(on)
    attack.attacks_to_run = list(names)
    found, _ = attack.run_standard_evaluation(on.x.contiguous(), on.rows["label"], batch_size=on.batch)
    return found


def their_loss(on: Ground) -> Tensor:
    """The largest cross-entropy that pyautoattack's APGD-CE finds of every image, [n]."""
    attack, found = _peer(on).apgd, []
    attack.loss = "ce"
    for part, label in on.parts():
        pixels = attack.perturb(part, label, best_loss=True)
        with torch.no_grad():
            found.append(cross_entropy(on.net(pixels), label))
    return torch.cat(found)


def _peer(on: Ground) -> Any:
    """AutoAttack standard; with other than 100 steps its members are made anew, as its own constructor makes them."""
    from pyautoattack import AutoAttack

    norm, steps = BIG[on.record.norm], on.record.steps
    attack = AutoAttack(
        on.net, norm=norm, eps=on.record.eps, seed=on.record.seed, device=on.x.device, version="standard"
    )
    targets = min(9, on.encoder.classes - 1)
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    if steps != STANDARD:
        same: dict[str, Any] = {"eps": on.record.eps, "norm": norm, "seed": on.record.seed, "device": on.x.device}
        logger = logging.getLogger("peer")
        for name in ("apgd", "apgd_targeted"):
            old = getattr(attack, name)
            setattr(attack, name, type(old)(on.net, n_iter=steps, n_restarts=1, logger=logger, **same))
        attack.apgd_targeted.n_target_classes = targets
        attack.fab.n_iter, attack.square.n_queries = steps, QUERIES_PER_STEP * steps
    return attack


def duel(on: Ground, names: tuple[str, ...], device: str, *, coarse: bool) -> dict[str, object]:
    """Survivors, disagreement and seconds of the two, and of Holdfast in bfloat16 where it is asked for."""
    contenders = {"holdfast": lambda: ours(on, names)[0], "pyautoattack": lambda: theirs(on, names)}
    if coarse:
        other = Ground(**{**vars(on), "record": msgspec.structs.replace(on.record, precision="bf16")})
        contenders["holdfast bf16"] = lambda: ours(other, names)[0]
    robust, seconds = {}, {}
    for name, attack in contenders.items():
        with quiet():
            began = clock(device)
            pixels = attack()
            seconds[name] = round(clock(device) - began, 2)
        robust[name] = correct(on, pixels) & correct(on, on.x)
    peer = robust["pyautoattack"]
    return {
        "robust images": {name: int(kept.sum()) for name, kept in robust.items()},
        "lost to holdfast alone": int((peer & ~robust["holdfast"]).sum()),
        "lost to pyautoattack alone": int((~peer & robust["holdfast"]).sum()),
        "seconds": seconds,
        "pyautoattack / holdfast": {
            name: round(seconds["pyautoattack"] / value, 2) for name, value in seconds.items() if name != "pyautoattack"
        },
    }


def losses(on: Ground) -> dict[str, float]:
    """Mean over the correct images of the largest cross-entropy that APGD-CE of either saw."""
    kept = correct(on, on.x)
    with quiet():
        mine, peer = ours(on, ("apgd-ce",), stop="never")[1][kept].mean(), their_loss(on)[kept].mean()
    return {
        "holdfast": round(float(mine), 5),
        "pyautoattack": round(float(peer), 5),
        "difference in percent": round(100 * float(mine / peer - 1), 2),
    }


@true_float32()
def main(argv: list[str] | None = None) -> dict[str, object]:
    """Parse, measure, write after every duel: it is long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--eps", nargs="+", type=budget, default=[budget(word) for word in PLANNED])
    parser.add_argument("--steps", type=int, default=STANDARD)
    parser.add_argument("--parts", nargs="+", default=["loss", *NAMES, "cascade"], choices=("loss", *NAMES, "cascade"))
    parser.add_argument("--seed", type=int, default=0, help="of the random starts and windows of either")
    parser.add_argument("--bf16", action="store_true", help="also Holdfast's attack in bfloat16")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    record = records.Attack(method="autoattack", push="", steps=args.steps, precision=args.precision, seed=args.seed)
    on = ground(args, record)
    radii: list[dict[str, object]] = []
    found: dict[str, object] = {
        "machine": machine(args.device),
        "weights": Path(args.weights).name,
        "images": len(on.x),
        "correct": int(correct(on, on.x).sum()),
        "options": {k: getattr(args, k) for k in ("steps", "batch", "precision", "engine", "seed")},
        "radii": radii,
    }
    for norm, eps in args.eps:
        here = Ground(**{**vars(on), "record": msgspec.structs.replace(record, norm=norm, eps=eps)})
        radii.append({"norm": norm, "eps": f"{eps * 255:.4g}/255" if norm == "linf" else f"{eps:g}"})
        for part in args.parts:
            names = NAMES if part == "cascade" else (part,)
            seen = losses(here) if part == "loss" else duel(here, names, args.device, coarse=args.bf16)
            radii[-1]["largest cross-entropy of apgd-ce" if part == "loss" else part] = seen
            print(json.dumps({part: seen}), flush=True)
            if args.out:
                Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
