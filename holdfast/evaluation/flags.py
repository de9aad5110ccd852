"""The flags of believability: names, thresholds and what each means, as data. `docs/believability.md` has the numbers.

After Carlini et al. 2019 (arXiv 1902.06705), the flags of AutoAttack (Croce and Hein 2020, arXiv 2003.01690) and the
indicators of attack failure of Pintor et al. 2022 (arXiv 2106.09947).
"""

from __future__ import annotations

from typing import NamedTuple

ZERO_GRADIENTS = 0.01
"""Share of looks whose gradient was zero everywhere or not finite."""
DISAGREEMENT = 0.10
"""Difference in accuracy under attacks on cross-entropy and on a margin."""
OVER_NOISE = 6.0
"""An attack must raise the score of an image by so many times what its random start moved it, or lose it."""
OVER_NOISE_DRIFT = 2.0
"""The same for an embedding, whose drift saturates."""
RAISED = 0.5
"""Share of the images that survive noise for which that must hold."""
FEW = 5
"""So many images must be lost to noise before it is compared with the gradient by their number."""
BETTER = 0
"""So many images may be lost to a black-box attack and survive every white-box one."""
RISE = 0.02
"""Accuracy that the defender may gain from a larger radius, or from more steps."""
STILL_RISING = 0.03
"""Share of the images that may fall in the last quarter of the steps."""
STILL_DRIFTING = 0.10
"""Share of an embedding's drift, or of a dense task's rise from its clean score, that may be made there."""
ROUNDING = 0.05
"""Accuracy that may return when attacked images are rounded to 8 bits."""
REPEATED = 1e-3
"""Gap between the logits of one image in two passes, in units of their spread."""
COMPANY = 1e-3
"""The same between two passes in which the image has other company."""
PROBABILITIES = 0.5
"""Share of the images whose outputs are probabilities."""
TOLERANCE = 1e-6
"""Pixel units by which a perturbation may exceed its radius."""
CLOSE = 1e-4
"""Share of a score by which two engines may differ."""
WHOLE_RANGE = 0.5
"""The Linf radius from which every image can be made grey."""


class Flag(NamedTuple):
    """One thing that must not be so if an attack is to be believed.

    Attributes:
        id: stable name, in records and on the page.
        name: what holds where the flag is not raised.
        threshold: when it is raised.
        about: what a raised flag means, and what to do.
    """

    id: str
    name: str
    threshold: str
    about: str


_CLEAR = "and the 95 % interval of the paired difference excludes 0"
FLAGS: dict[str, Flag] = {
    flag.id: flag
    for flag in (
        Flag(
            "clean-unknown",
            "Clean accuracy is known for the attacked images",
            "an attacked image has no clean answer",
            "A fall in accuracy cannot be stated. Measure the clean images too.",
        ),
        Flag(
            "noise-as-good",
            "The gradient finds what noise does not",
            f"noise at the same radius loses at least {FEW} images that were right, and the gradient not clearly more "
            f"(95 % interval); or less than {RAISED:.0%} of the images that survive a random start are lost, or moved "
            f"{OVER_NOISE:g} times as far by the gradient as by the start (embeddings: {OVER_NOISE_DRIFT:g} times); "
            "where every pixel is answered for, that holds for all images",
            "The gradient points nowhere: shattered, zero, or of another function. Attack through an approximation of "
            "the offending part (BPDA), or without gradient.",
        ),
        Flag(
            "zero-gradients",
            "Gradients are not zero",
            f"more than {ZERO_GRADIENTS:.0%} of the looks had a gradient that was zero everywhere, or not finite",
            "Something rounds, saturates or overflows: an input quantiser, logits so large that float32 saturates. "
            "Raise a margin, or go round the part.",
        ),
        Flag(
            "not-monotone",
            "A larger radius, or more steps, never helps the defender",
            f"accuracy rises by more than {RISE:.0%} from one radius, or number of steps, to the next, {_CLEAR}",
            "What was found in a small ball lies in every larger one: the attack is stuck.",
        ),
        Flag(
            "above-chance",
            "A large radius brings accuracy down to chance",
            f"accuracy is above chance, interval included, at Linf {WHOLE_RANGE:g} or more",
            "The attack fails where nothing can stand. Not raised, it is no evidence: at such a radius a random start "
            "loses most images by itself, and broken models pass.",
        ),
        Flag(
            "still-gaining",
            "The attack has converged",
            f"more than {STILL_RISING:.0%} of the images fall in the last quarter of the steps (of an embedding, "
            f"segmentation or depth: more than {STILL_DRIFTING:.0%} of the rise is made there)",
            "More steps would find more: the accuracy is not a bound worth quoting.",
        ),
        Flag(
            "ce-margin-gap",
            "Cross-entropy and margin agree",
            f"accuracy under two otherwise equal attacks differs by more than {DISAGREEMENT:.0%}, {_CLEAR}",
            "One of the two meets masked gradients; quote the worst case over both, and find out why.",
        ),
        Flag(
            "black-box-better",
            "No black-box attack beats the gradient on any image",
            f"more than {BETTER} images are lost to Square or to transfer and survive every white-box attack of the "
            "same norm and radius",
            "Whoever sees the gradient can do at least what others can: the white-box attack is too weak, or masked.",
        ),
        Flag(
            "other-head-better",
            "No attack through another head beats the direct one",
            "an attack through the embedding leaves less accuracy than the direct one, interval included",
            "The path through the head is masked or saturated.",
        ),
        Flag(
            "lost-in-rounding",
            "The attack survives rounding to 8 bits",
            f"more than {ROUNDING:.0%} of accuracy returns when attacked images are rounded (radii of 1/255 and more), "
            f"{_CLEAR}",
            "The perturbation cannot be stored in a file: the images are not ones that anybody can be shown.",
        ),
        Flag(
            "out-of-ball",
            "The ball is respected",
            f"a perturbation is longer than its radius + {TOLERANCE:g}",
            "The attack had more than it says.",
        ),
        Flag(
            "out-of-range",
            "Pixels stay in [0, 1]",
            "a pixel of an attacked image is outside [0, 1]",
            "Such an image does not exist; the victim is asked outside of what it knows.",
        ),
        Flag(
            "randomised",
            "The same input gives the same answer",
            f"a logit differs by more than {REPEATED:g} of the spread between two passes over the same pixels",
            "Single answers are no verdicts: average over passes (samples), and judge many times. Flags that compare "
            "single answers are not measured then.",
        ),
        Flag(
            "coupled-batch",
            "An image is judged alone, whatever else is in its batch",
            f"a logit differs by more than {COMPANY:g} of the spread when the rest of the batch is exchanged",
            "Batch normalisation in training mode, or the like. Attack and judgement see different functions; put the "
            "model into evaluation mode. Flags that compare single answers are not measured then.",
        ),
        Flag(
            "probabilities",
            "The victim answers with logits, not probabilities",
            f"the outputs of more than {PROBABILITIES:.0%} of the images are not negative and add up to 1",
            "Losses take a softmax of what is one already, so that gradients fade. Take the layer before it.",
        ),
    )
}
