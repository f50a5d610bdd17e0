"""Which scans a choice takes."""

from types import SimpleNamespace

import pytest

from data_setup.selection import EVERYTHING, Selection


def facts(**known: str) -> SimpleNamespace:
    unknown = dict.fromkeys(("vendor", "model", "region", "protocol", "laterality"))
    return SimpleNamespace(**{**unknown, **known})


@pytest.mark.parametrize(
    ("choice", "known", "taken"),
    [
        ({}, {}, True),
        ({"manufacturers": ["zeiss"]}, {"vendor": "Carl Zeiss Meditec"}, True),
        ({"manufacturers": ["Zeiss", "Topcon"]}, {"vendor": "Topcon"}, True),
        ({"manufacturers": ["Zeiss"]}, {"vendor": "Topcon"}, False),
        ({"manufacturers": ["Zeiss"]}, {}, False),
        ({"models": ["maestro2"]}, {"model": "3DOCT-1Maestro2"}, True),
        ({"regions": ["Macula"]}, {"region": "Macula, 6 x 6"}, True),
        ({"regions": ["Macula"]}, {"region": "Optic Disc"}, False),
        ({"laterality": "R"}, {"laterality": "R"}, True),
        ({"laterality": "R"}, {"laterality": "L"}, False),
        ({"laterality": "R"}, {}, False),
        ({"models": ["Cirrus"], "laterality": "L"}, {"model": "Cirrus", "laterality": "R"}, False),
    ],
)
def test_every_choice_must_match(choice: dict, known: dict, taken: bool) -> None:
    assert Selection(**choice).takes(facts(**known)) is taken


@pytest.mark.parametrize(
    ("person", "taken"),
    [("1001", True), ("1100", True), ("1101", False), ("4001", True), ("x", False), (None, False)],
)
def test_participants_are_numbers_and_ranges(person: str | None, taken: bool) -> None:
    assert Selection(participants="1001-1100, 4001").takes_person(person) is taken
    assert EVERYTHING.takes_person(person)


@pytest.mark.parametrize("wrong", ["all", "1100-1001", "1001-", "1001;1002", ""])
def test_a_wrong_range_is_named(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"data\.select\.participants"):
        Selection(participants=wrong)


def test_a_choice_describes_itself() -> None:
    assert EVERYTHING.describe() == "everything"
    assert "manufacturers=('Zeiss',)" in Selection(manufacturers=("Zeiss",)).describe()
