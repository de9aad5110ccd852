"""Answers for every pixel as pictures: which colour says what."""

from __future__ import annotations

import numpy as np

from holdfast.data.batches import IGNORE
from holdfast.reporting.dense_pictures import NOTHING, coloured, legend, pictures

GALLERY = {
    "truth": np.array([[[0, 1], [1, IGNORE]]], np.uint8),
    "clean_answer": np.array([[[0, 1], [1, 0]]], np.uint8),
    "answer": np.array([[[0, 2], [1, 2]]], np.uint8),
    "parts": np.array(["background", "cat", "dog", "boat"]),
}
RIGHT, WRONG = (68, 1, 84), (253, 231, 37)


def test_classes_have_the_colours_of_voc_and_what_has_no_label_one_of_its_own() -> None:
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        IGNORE: (224, 224, 192),
    }
    (found,) = coloured(np.array([list(known)], np.uint8)).tolist()
    assert [tuple(colour) for colour in found] == list(known.values())
    (all_of_them,) = coloured(np.arange(256, dtype=np.uint8)[None]).tolist()
    assert len({tuple(colour) for colour in all_of_them}) == 256


def test_errors_are_where_an_answer_is_not_the_truth() -> None:
    shown = {name: picture.tolist() for name, picture in pictures(GALLERY, 0)}
    grey = NOTHING.tolist()
    assert shown["error, clean"] == [[list(RIGHT), list(RIGHT)], [list(RIGHT), grey]]
    assert shown["error, attacked"] == [[list(RIGHT), list(WRONG)], [list(RIGHT), grey]]
    assert shown["truth"][1][1] == [224, 224, 192] and shown["answer, attacked"][1][1] == [0, 128, 0]


def test_the_legend_names_what_occurs() -> None:
    assert legend(GALLERY) == (
        ("background", "rgb(0 0 0)"),
        ("cat", "rgb(128 0 0)"),
        ("dog", "rgb(0 128 0)"),
        ("no label", "rgb(224 224 192)"),
    )
    metres = {name: np.ones((1, 2, 2), np.float32) for name in ("truth", "clean_answer", "answer")}
    assert legend({**metres, "parts": np.array([])}) == ()
