"""Numbers in a model card: added once, replaced the next time, everything else kept."""

from holdfast.training.card import with_robustness

CARD = "# A net\n\n## Objective\n\nText.\n\n## Limits\n\n- few\n"


def test_numbers_come_before_the_limits_and_are_replaced() -> None:
    once = with_robustness(CARD, {"clean accuracy": "90 %"}, origin="records in `a`")
    assert once.index("Text.") < once.index("| clean accuracy | 90 % |") < once.index("## Limits") < once.index("- few")
    twice = with_robustness(once, {"clean accuracy": "80 %"}, origin="records in `b`")
    assert twice == with_robustness(CARD, {"clean accuracy": "80 %"}, origin="records in `b`")
    assert "90 %" not in twice


def test_a_card_without_limits_keeps_its_text() -> None:
    assert with_robustness("Mine.\n", {"a": "b"}, origin="c").startswith("Mine.\n\n## Robustness")
