"""The machinery under args.py, shown on a small table of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest

from transfermpl.base.options import (
    OptionTable,
    Rule,
    as_page,
    check_rules,
    folder_name,
    option,
    parser_of,
    read_config,
    share,
    with_config,
    words_of,
)
from transfermpl.utils import UserError


@dataclasses.dataclass(frozen=True)
class Oven:
    """Oven"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": ("bake",), "searchable": True}

    heat: float = option(180.0, "Heat the oven to X degrees.", above=0, high=300)
    minutes: int | None = option(None, "Bake for N minutes.", low=1, default_text="until it is done", on_resume=True)
    fan: bool = option(True, "Turn on the fan (60% of the heat).", searchable=False)
    light: bool = option(False, "Turn on the light.", commands=("bake", "look"))
    grill: bool | None = option(None, "Turn on the grill.", default_text="for pizza")


@dataclasses.dataclass(frozen=True)
class Dough:
    """Dough"""

    flour: str = option("wheat", "Take this flour.", choices=("wheat", "rye"), commands=("bake",))
    spices: tuple[str, ...] = option((), "Add these spices.", parse=folder_name, metavar="SPICE", commands=("bake",))
    water: float = option(0.6, "Add this share of water.", parse=share, commands=("bake", "look"))
    recipe: str | None = option(None, "Bake by this recipe.", metavar="FILE", commands=("look",), command="look")


TABLE = OptionTable({"oven": Oven, "dough": Dough})
RULES = (Rule("grill", excludes=("fan", "light")), Rule("spices", needs=("recipe", "flour")))


def values(*arguments: str) -> dict[str, Any]:
    """What the command line says."""
    found = vars(parser_of(TABLE, usage="bake.py [options]", about="Bakes.", version="bake 1").parse_args(arguments))
    return {name: value for name, value in found.items() if value is not None}


# --- the table --------------------------------------------------------------------------------------------------------


def test_an_option_knows_its_group_its_type_and_what_holds_for_its_group() -> None:
    heat, minutes, spices = TABLE["heat"], TABLE["minutes"], TABLE["spices"]
    assert (heat.group, heat.kind, heat.several, heat.commands) == ("oven", float, False, ("bake",))
    assert (minutes.kind, minutes.default, minutes.on_resume) == (int, None, True)
    assert (spices.kind, spices.several, spices.searchable) == (str, True, False)
    assert TABLE["light"].commands == ("bake", "look")
    assert TABLE.names(lambda o: o.searchable) == {"heat", "minutes", "light", "grill"}
    assert [option.name for option in TABLE.of_group("dough")] == ["flour", "spices", "water", "recipe"]
    assert Oven().heat == 180
    assert Dough(flour="rye").flour == "rye"


def test_an_option_that_no_command_reads_is_refused() -> None:
    @dataclasses.dataclass
    class Loose:
        """Loose"""

        end: str = option("", "Hang loose.")

    with pytest.raises(TypeError, match="commands"):
        OptionTable({"loose": Loose})


def test_an_unknown_name_is_told_what_comes_close() -> None:
    with pytest.raises(UserError, match="no option --minute; did you mean --minutes"):
        TABLE["minute"]
    with pytest.raises(UserError, match="see --help"):
        TABLE.converted({"qqq": 1})


def test_values_are_converted_and_none_is_the_default() -> None:
    converted = TABLE.converted({"heat": "200", "minutes": None, "fan": False, "spices": ["dill"], "water": "60%"})
    assert converted == {"heat": 200.0, "fan": False, "spices": ("dill",), "water": 0.6}
    assert isinstance(converted["heat"], float)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("heat", 0, "must be above 0 and at most 300"),
        ("heat", float("nan"), "out of range"),
        ("minutes", 0.5, "a whole number"),
        ("minutes", "", "is empty"),
        ("minutes", True, "takes a int"),
        ("fan", "yes", "true or false"),
        ("flour", "oat", "choose from wheat, rye"),
        ("spices", ["a/b"], "plain folder name"),
        ("spices", [""], "list of words"),
        ("water", "60", "write 60%"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"--{name}.*{says}"):
        TABLE.converted({name: value})


def test_what_is_turned_on() -> None:
    assert TABLE.turned_on({"heat": 180.0, "minutes": 3, "fan": False, "light": True, "spices": ()}) == {
        "minutes", "light",
    }  # fmt: skip


def test_rules_exclude_and_need() -> None:
    check_rules(RULES, {"fan", "light", "heat"})
    check_rules(RULES, {"spices", "flour"})
    with pytest.raises(UserError, match="--grill and --light exclude each other"):
        check_rules(RULES, {"grill", "light"})
    with pytest.raises(UserError, match="--spices needs --recipe or --flour beside it"):
        check_rules(RULES, {"spices"})


# --- from and to words ------------------------------------------------------------------------------------------------


def test_the_parser_reads_what_the_table_knows() -> None:
    assert values("--heat", "90", "--no_fan", "--light", "--spices", "dill", "salt") == {
        "heat": "90", "fan": False, "light": True, "spices": ["dill", "salt"],
    }  # fmt: skip
    assert values("--no_grill", "--no_light") == {"grill": False, "light": False}
    assert values("--no_fan", "--fan") == {"fan": True}
    with pytest.raises(UserError, match="did you mean --heat"):
        values("--heet", "3")
    with pytest.raises(UserError, match="--heat: expected one argument"):
        values("--heat")
    with pytest.raises(UserError, match="--light: ignored explicit argument"):
        values("--light=3")


def test_help_shows_usage_examples_groups_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of(
            TABLE, usage="bake.py [options]", about="Bakes.\n\nExamples:\n  bake.py --light", version="bake 1"
        ).parse_args(["-h"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: bake.py [options]\n\nBakes.\n\nExamples:\n  bake.py --light\n\nOven:\n  -h, --help")
    words = " ".join(shown.split())
    for line in (
        "--heat X Heat the oven to X degrees. Default: 180.0.",
        "--minutes N Bake for N minutes. Default: until it is done.",
        "--fan, --no_fan Turn on the fan (60% of the heat). Default: on.",
        "--light Turn on the light. Default: off.",
        "--grill, --no_grill Turn on the grill. Default: for pizza.",
        "Dough: --flour {wheat,rye} Take this flour. Default: wheat.",
        "--spices SPICE [SPICE ...] Add these spices.",
    ):
        assert line in words
    assert "--no_light" not in words


def test_the_command_line_overrides_the_config_file_and_what_it_excludes(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('heat = 100\nfan = true\nflour = "rye"\n')
    of_file = read_config(tmp_path / "c.toml", TABLE)
    assert with_config({"heat": "90"}, of_file, RULES) == {"heat": "90", "fan": True, "flour": "rye"}
    assert with_config({"grill": True}, of_file, RULES) == {"grill": True, "heat": 100, "flour": "rye"}
    (tmp_path / "c.json").write_text('{"heet": 1}')
    with pytest.raises(UserError, match=r"c\.json: there is no option --heet; did you mean --heat"):
        read_config(tmp_path / "c.json", TABLE)


def test_words_make_the_values_again() -> None:
    chosen = {"heat": 90.0, "minutes": None, "fan": False, "light": True, "flour": "wheat", "spices": ("dill", "salt")}
    words = words_of(TABLE, chosen, ())
    assert words == ["--heat", "90.0", "--no_fan", "--light", "--spices", "dill", "salt"]
    assert TABLE.converted(values(*words)) == {n: v for n, v in chosen.items() if v not in (None, "wheat")}
    assert words_of(TABLE, {"flour": "wheat"}, {"flour"}) == ["--flour", "wheat"]
    assert words_of(TABLE, {"recipe": "-r"}, ()) == ["--recipe=-r"]


def test_the_page_has_a_section_a_group() -> None:
    page = as_page(TABLE, "# Baking\n", ("bake", "look"))
    assert page.startswith("# Baking\n\n## Oven\n\n| option | default | what it does | commands that read it |\n")
    for row in (
        "| `--heat X` | `180.0` | Heat the oven to X degrees. | bake |",
        "| `--minutes N` | until it is done | Bake for N minutes. | bake |",
        "| `--fan`, `--no_fan` | on | Turn on the fan (60% of the heat). | bake |",
        "| `--light` | off | Turn on the light. | all |",
        "| `--spices SPICE` ... |  | Add these spices. | bake |",
    ):
        assert row in page.splitlines()
