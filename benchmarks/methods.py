"""Every self-supervised method at a small scale: does its loss fall, do its features help, do they collapse?

    python benchmarks/methods.py --data scenes --model scenes_resnet8 --epochs 10 --out methods.json
    python benchmarks/methods.py --data cifar10:FOLDER --model cifar_resnet20 --epochs 30 --adversaries none pgd free

Each method is trained by `holdfast.train` from the same random weights on the same images, with the views of its paper.
kNN accuracy and effective rank are those of the held-out images that the run itself checks, before and after; the
interval is Wilson's at 95 %. Seconds are those of the whole run, of one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from attack_peers import machine

import holdfast
from holdfast.evaluation.statistics import wilson

LARS: dict[str, Any] = {"optimizer": "lars", "lr": 0.3, "warmup": 0.0}
SMALL: dict[str, dict[str, Any]] = {
    "barlow": {"dim": 256, **LARS},
    "byol": {"dim": 64, "hidden": 256, "momentum": 0.95, **LARS},
    "dino": {"dim": 64, "hidden": 256, "momentum": 0.95},
    "empssl": {"dim": 64, "hidden": 256, "crops": 4, **LARS},
    "simclr": {"temperature": 0.2, "dim": 64},
    "simsiam": {"dim": 256, "hidden": 64, "optimizer": "sgd", "lr": 0.2},
    "supcon": {"temperature": 0.2, "dim": 64},
    "swav": {"dim": 64, "hidden": 256, "prototypes": 16, "temperature": 0.2, **LARS},
}
"""Heads of a width that fits nets of some 100,000 weights, and an optimizer where AdamW fails; what is not named is the
paper's, or as asked for."""


def one(name: str, adversary: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one method and read what its run wrote."""
    began, out = time.perf_counter(), folder / f"{name}-{adversary}"
    fields = {"data": args.data, "model": args.model, "epochs": args.epochs, "batch": args.batch, "lr": args.lr}
    fields |= {"limit": args.limit, "threads": 1, "seed": args.seed, "device": args.device, "out": str(out)}
    given = {"crop": args.crop, "colours": args.colours, "hue": args.hue, "grey": args.grey}
    fields |= {key: value for key, value in given.items() if value is not None}
    fields |= {"adversary": adversary, "eps": args.eps, "steps": args.steps, "replays": 3, **SMALL[name]}
    holdfast.train(name, **fields)
    seconds = time.perf_counter() - began
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    checks = [line for line in lines if "knn_accuracy" in line]
    held = _held(out)
    tenth = max(1, len(losses) // 10)
    first, last = (row["knn_accuracy"] for row in (checks[0], checks[-1]))
    before, after = (wilson(round(share * held), held) for share in (first, last))
    return {
        "method": name,
        "adversary": adversary,
        "loss at first": round(sum(losses[:tenth]) / tenth, 4),
        "loss at last": round(sum(losses[-tenth:]) / tenth, 4),
        "kNN before": round(first, 4),
        "kNN after": round(last, 4),
        "interval": [round(v, 4) for v in after],
        "beats random beyond the interval": after[0] > before[1],
        "effective rank": round(checks[-1]["effective_rank"], 1),
        "held out": held,
        "seconds": round(seconds, 1),
    }


def _held(out: Path) -> int:
    """How many images were held out, as the card says it."""
    words = (out / "README.md").read_text().split(" more were held out")[0].split()
    return int(words[-1].replace(",", ""))


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--model", default="scenes_resnet8")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--crop", type=float, help="smallest share of the area in a view")
    parser.add_argument("--colours", type=float, help="change of brightness, contrast and saturation")
    parser.add_argument("--hue", type=float, help="turn of the hue")
    parser.add_argument("--grey", type=float, help="probability of a grey view")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--eps", default="4/255")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", default=sorted(SMALL))
    parser.add_argument("--adversaries", nargs="+", default=["none"])
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.methods:
            for adversary in args.adversaries:
                found.append(one(name, adversary, args, Path(folder)))
                print(json.dumps(found[-1]), flush=True)
    if args.out:
        report = {"machine": machine(args.device), "options": vars(args), "runs": found}
        Path(args.out).write_text(json.dumps(report, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
