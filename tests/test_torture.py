"""The short version of tests/torture.py."""

from tests import torture


def test_nothing_is_lost_to_a_few_kills(capsys):
    assert torture.main(["--kills", "2", "--seed", "1", "--short"]) == 0, capsys.readouterr().out
