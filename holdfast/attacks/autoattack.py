"""AutoAttack standard: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks, ICML 2020 (arXiv 2003.01690); for L1: Mind the box, ICML 2021 (arXiv 2103.01208).

    APGD on cross-entropy  ->  targeted APGD on DLR  ->  targeted FAB  ->  Square

Every attack goes on with the images that all before it have left; the targets are the nine likeliest wrong classes, or
as many as there are. 100 steps each and 5,000 queries of Square are the standard; with other steps it is not that.
Square keeps to the schedule of 10,000 queries, of which these are the first half. In an L1 ball APGD on cross-entropy
has five starts, and the targeted one five targets. One thing differs there from the published program: the first pass
of APGD begins with a fifth of the values in every step, and not with a share that is read off its random start.
"""

from __future__ import annotations

from holdfast import records
from holdfast.attacks.apgd import APGD
from holdfast.attacks.apgd_l1 import Sparse
from holdfast.attacks.balls import ball
from holdfast.attacks.cascade import Member
from holdfast.attacks.executor import Stage
from holdfast.attacks.fab import FAB
from holdfast.attacks.square import Square

STEPS = 100
QUERIES_PER_STEP = 50
SQUARE_SCHEDULE = 10_000
TARGETS = 9
L1_STARTS = L1_TARGETS = 5
# In an L1 ball APGD comes from outside: three passes, each from the projection of what the one before found.
L1_RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


def standard(record: records.Attack, classes: int) -> tuple[Member, ...]:
    """The four members.

    Args:
        record: norm, steps (100 = standard), restarts of every member, seed.
        classes: that the victim tells apart, at least 2.

    Returns:
        APGD on `ce`; APGD on `dlr_target` and FAB on `margin_target`, over the targets; Square, which raises the score.
    """
    apgd, shape = auto_pgd(record), ball(record.norm)
    fab = FAB(shape, record.steps, seed=record.seed)
    square = Square(shape, QUERIES_PER_STEP * record.steps, seed=record.seed, schedule=SQUARE_SCHEDULE)
    restarts, aimed = range(record.restarts), range(min(TARGETS, classes - 1))
    targets = tuple(Stage(restart=i, target=target) for target in aimed for i in restarts)
    starts = range(max(record.restarts, L1_STARTS)) if record.norm == "l1" else restarts
    fewer = tuple(s for s in targets if s.target < L1_TARGETS) if record.norm == "l1" else targets
    return (
        Member("apgd-ce", apgd, "ce", _wider(record, tuple(Stage(restart=i) for i in starts))),
        Member("apgd-t", apgd, "dlr_target", _wider(record, fewer)),
        Member("fab-t", fab, "margin_target", targets),
        Member("square", square, "margin", tuple(Stage(restart=i) for i in restarts)),
    )


def auto_pgd(record: records.Attack) -> APGD:
    """APGD with the pace of its ball."""
    if record.norm == "l1":
        return APGD(ball("l1"), record.steps, begin=record.start, seed=record.seed, pace=Sparse())
    return APGD(ball(record.norm), record.steps, begin=record.start, seed=record.seed)


def _wider(record: records.Attack, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    if record.norm != "l1":
        return stages
    return tuple(
        stage._replace(radius=radius, share=share, carry=at > 0)
        for stage in stages
        for at, (radius, share) in enumerate(L1_RADII)
    )
