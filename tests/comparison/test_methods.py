"""The methods that are compared, and the seeds that all commands count alike."""

from __future__ import annotations

from transfermpl import args
from transfermpl.comparison.methods import METHODS
from transfermpl.comparison.seeds import seeds_of
from transfermpl.comparison.verdict import DEFAULT_REPEAT


def test_every_way_to_train_is_one_that_the_command_line_takes() -> None:
    for method in METHODS:
        given = {**method.options, **({"load_path": "run"} if method.start else {})}
        assert args.make({"name": "x", **given})


def test_five_seeds_by_default_and_one_for_a_single_method() -> None:
    def seeds(*line: str) -> tuple[list[int], list[int]]:
        options = args.parse(["--name", "x", *line])
        return tuple(seeds_of(options.run, options.study, default) for default in (DEFAULT_REPEAT, 1))

    assert seeds("--compare", "--seed", "3")[0] == [3, 4, 5, 6, 7]
    assert seeds("--compare", "--repeat", "2")[0] == [0, 1]
    assert seeds("--seed", "3")[1] == [3]
