"""The tables of the experiment "methods": means, standard deviations and paired differences, computed by hand."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.scripts import load_script


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return load_script("methods_table")


def row(table: ModuleType, res_ciou: float, **figures: float | None) -> object:
    others = dict.fromkeys(table.Row.__dataclass_fields__, None) | {"malformed": 0.0, "points_an_object": 0.0}
    return table.Row(**others | {"res_ciou": res_ciou} | figures)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_figures_are_the_mean_and_the_sample_standard_deviation_over_the_seeds(table: ModuleType) -> None:
    seeds = {seed: row(table, value, points_an_object=2.96) for seed, value in enumerate((0.6, 0.7, 0.8))}
    titles, rule, line, *_ = table.tables({"PPG": seeds})
    assert len(cells(titles)) == len(cells(rule)) == len(cells(line))
    figures = dict(zip(cells(titles), cells(line), strict=True))
    # With n - 1: sqrt((0.1 ** 2 + 0.1 ** 2) / 2).
    assert figures["RES cIoU"] == "70.0 ± 10.0"
    assert (figures["points"], figures["N-acc"], figures["of oracle"]) == ("3.0 ± 0.0", "-", "-")


def test_one_seed_has_no_spread(table: ModuleType) -> None:
    rows = {"PPG": {0: row(table, 0.7, seconds_a_query=0.1234, points_on=0.9)}, "base": {0: row(table, 0.8)}}
    titles, _, line, _, _, _, _, difference = table.tables(rows)
    figures = dict(zip(cells(titles), cells(line), strict=True))
    assert (figures["RES cIoU"], figures["points on"], figures["s/query"]) == ("70.0", "90.0", "0.123")
    assert cells(difference)[:2] == ["PPG - base", "-10.0"]


def test_the_share_of_the_oracle_is_computed_seed_by_seed(table: ModuleType) -> None:
    rows = {
        "PPG": {0: row(table, 0.6), 1: row(table, 0.4), 2: row(table, 0.3)},
        "oracle": {0: row(table, 0.8), 1: row(table, 0.8)},
    }
    summaries = table.summarize_rows(rows)
    share = summaries["PPG"][table.SHARE]
    assert share.by_seed == pytest.approx({0: 0.75, 1: 0.5}) and share.mean == pytest.approx(0.625)
    assert summaries["oracle"][table.SHARE].mean == 1


def test_differences_are_paired_by_seed_and_count_the_sign_of_the_mean(table: ModuleType) -> None:
    rows = {
        "PPG": {0: row(table, 0.60), 1: row(table, 0.70), 2: row(table, 0.80), 3: row(table, 0.9)},
        "base": {0: row(table, 0.61), 1: row(table, 0.64), 2: row(table, 0.70)},
    }
    (name, figures), *more = table.differences(rows).items()
    assert name == "PPG - base" and not more
    difference = figures["res_ciou"]
    assert difference.by_seed == pytest.approx({0: -0.01, 1: 0.06, 2: 0.10})
    assert difference.mean == pytest.approx(0.05) and difference.sd == pytest.approx(0.0031**0.5)
    assert difference.same_sign == 2
    assert cells(table.tables(rows)[-1])[1:3] == ["+5.0 ± 5.6 (2/3)", "-"]


def test_a_difference_of_zero_has_no_sign(table: ModuleType) -> None:
    rows = {"PPG": {0: row(table, 0.6), 1: row(table, 0.7)}, "base": {0: row(table, 0.6), 1: row(table, 0.7)}}
    assert table.differences(rows)["PPG - base"]["res_ciou"].same_sign == 0


def test_the_json_holds_every_seed(table: ModuleType) -> None:
    rows = {"PPG": {0: row(table, 0.6), 1: row(table, 0.7)}, "base": {0: row(table, 0.5), 1: row(table, 0.5)}}
    record = table.to_json(rows)
    assert record["rows"]["PPG"][1]["res_ciou"] == 0.7
    assert record["summaries"]["PPG"]["res_ciou"]["by_seed"] == {0: 0.6, 1: 0.7}
    assert record["differences"]["PPG - base"]["res_ciou"]["by_seed"] == pytest.approx({0: 0.1, 1: 0.2})
    assert record["summaries"]["PPG"]["points_on"] is None


def test_each_difference_is_of_two_rows(table: ModuleType) -> None:
    rows = load_script("measure_methods").ROWS
    assert all(name in rows for pair in table.DIFFERENCES for name in pair)
