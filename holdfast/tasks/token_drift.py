"""EmbedAttack on every patch token, over all windows of an image: what is raised where heads answer for every pixel."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.attacks.harm import See
from holdfast.models.encoder import Encoder
from holdfast.models.precision import Engine, Precision
from holdfast.tasks.embedding import Embedding
from holdfast.tasks.task import TOKENS
from holdfast.tasks.windows import WHOLE, Windows, window_tokens

EVERY = "tokens"
"""The level that stands for all positions of the patch tokens, or, of an encoder without them, of its deepest map."""


@dataclass(frozen=True)
class TokenDrift(Embedding):
    """Drift of a map that is read whole, window by window, from images of any size (Kowalczuk et al. 2024, 2407.12588).

    Attributes:
        level: `tokens`, or a map's name that ends in `-tokens`.
        windows: how images are seen: as by the dense heads that are to be harmed.
    """

    windows: Windows = WHOLE

    def passes(self, encoder: Encoder, precision: Precision, engine: Engine) -> See:
        """From pixels [b, 3, h, w] to `embedding` [b, windows * positions * channels]."""
        return window_tokens(encoder, map_of(encoder, self.level), self.windows, precision=precision, engine=engine)


def reads_tokens(level: str) -> bool:
    """Whether a level is a map that is read whole."""
    return level == EVERY or level.endswith(TOKENS)


def map_of(encoder: Encoder, level: str) -> str:
    """The map that a level of `TokenDrift` is read from."""
    if level != EVERY:
        return level.removesuffix(TOKENS)
    return "patch" if "patch" in encoder.mapped else encoder.mapped[-1]
