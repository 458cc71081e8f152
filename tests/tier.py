"""The quick tier of the tests, and the rest: a plugin of pytest, ``-p tests.tier --tier quick`` or ``--tier rest``.

In the quick tier a test function that runs once for each callback, each event and each plan of a step runs for every
value of each of its parameters, but not for every combination; and each of them in one plan, which changes from one to
the next. Of some parameters a sample is enough, some functions take too long, and of the two backends that compile each
runs one half of the suite. What is left is the rest: the two together are all tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias
from zlib import crc32

import pytest

PLAN = "_loopcore_backend_name"  # the parameter that names a backend and its plan, such as jax-split
SAMPLES = {"seed": 8, "kind": 6, "label": 40}  # so many values of these are enough, and other ones for each function
HALVES = {"jax": 0, "tensorflow": 1}  # which half of the suite runs on a backend, by the checksum of a function's name
WHOLE = (  # files that are too short for halves
    *("test_arrays_of_numpy.py", "test_callbacks_histograms.py", "test_compiled_plans.py", "test_loop_rehearsal.py"),
    "test_trajectory.py",
)
LONG = {  # functions that take more than three seconds of a processor on some backend
    *("test_the_first_20_losses_are_those_of_eager_steps", "test_the_first_20_losses_agree"),
    *("test_the_plan_of_a_step_makes_no_difference", "test_inputs_and_labels_are_mixed_alike"),
    *("test_vae_bounds_the_evidence", "test_vae_raises_the_weight_of_the_divergence", "test_convnet_knows_digits"),
    *("test_byol_averages_parameters_and_statistics", "test_a_residual_network_of_linen"),
    "test_a_transformer_of_equinox",
    *("test_byol_learns_a_representation", "test_wgan_gp_makes_digits", "test_sam_finds_flatter_ground"),
    *("test_pictures_are_written", "test_transformer_draws_digits", "test_char_lm_reads_on"),
    *("test_the_hash_seed_changes_nothing", "test_all_orders_of_the_list_give_the_same_bits"),
    *("test_an_interrupt_at_any_line_leaves_a_learner_that_trains", "test_the_series_of_steps_has_a_bound"),
    *("test_random_schedules_follow_the_model", "test_the_whole_suite_is_collected", "test_several_backends"),
    "test_both_tiers_are_all_tests_and_the_quick_one_has_every_file",
}
TIERS = ("all", "quick", "rest")
Case: TypeAlias = tuple[tuple[str, str], ...]  # parameters but that of the plan, with their values


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--tier``."""
    parser.addoption("--tier", choices=TIERS, default="all", help="which of the collected tests to run")


@pytest.hookimpl(trylast=True)  # what -k leaves out is in neither
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other tier."""
    tier = config.getoption("tier")
    if tier == "all":
        return
    again = bool(config.getoption("loopcore_models", default=""))
    quick = {items[place].nodeid for place in chosen([(item.nodeid, parameters(item)) for item in items], again)}
    missing = files(item.nodeid for item in items) - files(quick)
    if missing and tier == "quick" and not config.getoption("keyword"):
        raise pytest.UsageError(f"the quick tier has no test of {', '.join(sorted(missing))}")
    others = [item for item in items if (item.nodeid in quick) != (tier == "quick")]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if (item.nodeid in quick) == (tier == "quick")]


def files(names: Iterable[str]) -> set[str]:
    """The files of these tests."""
    return {name.partition("::")[0] for name in names}


def parameters(item: pytest.Item) -> dict[str, str]:
    """The value of each parameter of a test, as text."""
    params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    return {name: repr(value) for name, value in params.items()}


def chosen(tests: Sequence[tuple[str, dict[str, str]]], again: bool = False) -> set[int]:
    """Places of the tests of the quick tier.

    What is chosen of a function depends on nothing but its own tests, so that both tiers may be run by any number of
    processes.

    Args:
        tests: name and parameters of each.
        again: whether they run once more, with other models; then one case of each function is enough.
    """
    functions: dict[str, dict[Case, list[int]]] = {}
    for place, (name, values) in enumerate(tests):
        case = tuple(sorted((key, value) for key, value in values.items() if key != PLAN))
        functions.setdefault(name.partition("[")[0], {}).setdefault(case, []).append(place)
    found = set[int]()
    for name, cases in functions.items():
        file, _, function = name.rpartition("::")
        first = crc32(function.encode())
        backend = tests[next(iter(cases.values()))[0]][1].get(PLAN, "").strip("'").partition("-")[0]
        other_half = not again and backend in HALVES and not file.endswith(WHOLE) and first % 2 != HALVES[backend]
        if function in LONG or other_half:
            continue
        few = islice(covering(list(cases), first // 2), 1 if again else None)
        for plan, case in enumerate(few, first // 2):
            found.add(cases[case][plan % len(cases[case])])
    return found


def covering(cases: list[Case], first: int) -> Iterator[Case]:
    """Few of these cases that have every value of each parameter, or as many as there have to be.

    Args:
        cases: the parameters of each case.
        first: with which value a sample begins, whatever their number.
    """
    missing = set[tuple[str, str]]()
    for name in dict(cases[0]):
        values = list(dict.fromkeys(dict(case)[name] for case in cases))
        begin = first % len(values) if name in SAMPLES else 0
        missing.update((name, value) for value in [*values[begin:], *values[:begin]][: SAMPLES.get(name)])
    if not missing:
        yield cases[0]
    while missing:
        best = max(cases, key=lambda case: len(missing.intersection(case)))
        missing.difference_update(best)
        yield best
