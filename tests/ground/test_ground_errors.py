"""The tree of errors: exit codes, three-part messages, the nearest word."""

import inspect

from holdfast import errors


def test_exit_codes_follow_the_tree() -> None:
    assert errors.ConfigError("x").exit_code == errors.DataError("x").exit_code == 2
    assert errors.TrustError("x").exit_code == errors.CellsFailed("x").exit_code == 1
    assert errors.Interrupted("x").exit_code == 130


def test_the_docstring_draws_the_whole_tree() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, Exception):
            assert name in (errors.__doc__ or ""), name


def test_three_parts_in_order() -> None:
    error = errors.DataError("There is none.", asked="Images of a/ were asked for.", next="Try b/.")
    assert str(error) == "Images of a/ were asked for. There is none. Try b/."


def test_nearest() -> None:
    assert errors.nearest("pdg", ["pgd", "apgd"]) == 'Perhaps you meant "pgd".'
    assert errors.nearest("zzz", ["b", "a"]) == "Known: a, b."
    assert errors.nearest("zzz", []) == ""
