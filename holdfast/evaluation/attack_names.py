"""How an attack is called: on the page, in a table, in a sentence."""

from __future__ import annotations

from holdfast.records import DENSE_TASKS, Attack

HARMS = {
    "ce": "cross-entropy",
    "margin": "margin",
    "dlr": "DLR",
    "mse": "embedding MSE",
    "l2": "embedding L2",
    "cosine": "embedding cosine",
}
METHODS = {
    "fgsm": "FGSM",
    "mpgd": "momentum PGD",
    "fab": "FAB",
    "square": "Square",
    "noise": "uniform noise",
    "autoattack": "AutoAttack",
}
OWN_STEPS = {"fgsm": 1, "autoattack": 100, "sea": 300}
"""Steps that go without saying: those that define the method."""


def attack_name(attack: Attack) -> str:
    """An attack without its radius, in words: PGD-20 on cross-entropy, 5 restarts."""
    steps = "" if OWN_STEPS.get(attack.method) == attack.steps else f"-{attack.steps}"
    told = [METHODS.get(attack.method, attack.method.upper()) + steps]
    if attack.push:
        dense = attack.through in DENSE_TASKS
        harm = f"{attack.through} {attack.push}" if dense else HARMS.get(attack.push, attack.push)
        told[0] += f" on {'embedding ' if attack.through == 'embedding' and attack.push == 'ce' else ''}{harm}"
    told += [f"of {attack.level}"] if attack.level else []
    told += ["towards another image" if attack.through == "embedding" else "towards another class"] * (
        attack.aim == "towards"
    )
    told += [f"{attack.targets} targets"] if attack.targets else []
    told += [f"scored by {attack.scored}"] if attack.scored != "drift" else []
    told += [f"{attack.restarts} restarts"] if attack.restarts > 1 else []
    told += [f"alpha {radius(attack.alpha, attack.norm)}"] if attack.alpha else []
    told += ["from the clean image"] if attack.start == "zero" else []
    told += [f"mean of {attack.samples} passes"] if attack.samples > 1 else []
    told += [attack.precision] if attack.precision != "fp32" else []
    told += [f"made on {_surrogate(attack)}"] if attack.surrogate else []
    told += [f"seed {attack.seed}"] if attack.seed else []
    return ", ".join(told)


def short_name(attack: Attack) -> str:
    """An attack in one word for a row of a table, radius included: pgd-20 ce linf 8/255."""
    method = attack.method if OWN_STEPS.get(attack.method) == attack.steps else f"{attack.method}-{attack.steps}"
    reach = f"{attack.norm} {radius(attack.eps, attack.norm)}" if attack.eps else f"{attack.norm} nearest"
    parts = [method, attack.through if attack.through in DENSE_TASKS else "", attack.push, reach]
    parts += [f"level {attack.level}"] if attack.level else []
    parts += ["towards"] if attack.aim == "towards" else []
    parts += [f"{attack.targets} targets"] if attack.targets else []
    parts += [attack.precision] if attack.precision != "fp32" else []
    parts += [f"made on {_surrogate(attack)}"] if attack.surrogate else []
    return " ".join(part for part in parts if part)


def radius(eps: float, norm: str) -> str:
    """An epsilon as it is typed: 4/255 for Linf, 0.5 for L2."""
    return f"{eps * 255:.4g}/255" if norm == "linf" else f"{eps:.4g}"


def _surrogate(attack: Attack) -> str:
    assert attack.surrogate is not None, "asked only where there is one"
    return attack.surrogate.encoder.name or attack.surrogate.encoder.spec
