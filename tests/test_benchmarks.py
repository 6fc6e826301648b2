"""The statistics of the benchmarks, the order of measurements, the profile, and the report."""

import random
from collections import Counter
from pathlib import Path

import pytest

import jobhandle_celery
from benchmarks import __main__, cases, report
from benchmarks.arithmetic import differences, percentile, ratios, summary
from benchmarks.compare import to_table
from benchmarks.interleaved import measure_interleaved
from benchmarks.marks import VARIABLE, Marks, body
from benchmarks.progress import Progress
from benchmarks.result import Curve, Goal, Result, Series, load
from benchmarks.stacks import COMMON_FILES, sum_up


def test_median_and_quartiles_are_those_of_the_sorted_values() -> None:
    values = [float(value) for value in range(1, 10)]
    random.shuffle(values)

    result = summary(values)

    assert (result.median, result.low, result.high) == (5, 3, 7)
    assert result.spread == pytest.approx(0.4)


def test_quartiles_of_fewer_than_four_values_are_minimum_and_maximum() -> None:
    result = summary([3.0, 1.0, 2.0])

    assert (result.median, result.low, result.high) == (2, 1, 3)
    assert summary([7.0]).spread == 0


def test_ratio_is_made_within_each_round() -> None:
    # The second round was on a machine at half the speed.
    assert ratios([100, 50], [200, 100]) == [0.5, 0.5]
    assert differences([3, 5], [1, 2]) == [2, 3]
    with pytest.raises(ValueError, match="argument"):
        ratios([1, 2], [1])


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (95, 95), (99, 99), (100, 100)])
def test_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    values = [float(value) for value in range(1, 101)]

    assert percentile(values, percent) == expected
    assert percentile([4.0], percent) == 4


def test_each_round_runs_all_measurements_in_a_shuffled_order() -> None:
    runs: list[str] = []

    def measure(name: str) -> int:
        runs.append(name)
        return len(runs)

    measurements = {name: lambda name=name: measure(name) for name in "abc"}
    measured = measure_interleaved(measurements, 30, Progress([]), warm_up=True)

    rounds = ["".join(runs[start : start + 3]) for start in range(0, len(runs), 3)]
    assert len(rounds) == 31
    assert {"".join(sorted(order)) for order in rounds} == {"abc"}
    assert len(set(rounds)) == 6
    assert measured["a"] == [number + 1 for number, name in enumerate(runs) if name == "a"][1:]


def test_each_body_appends_a_mark_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = Marks(tmp_path / "marks")
    monkeypatch.setenv(VARIABLE, str(marks.path))

    assert [body(number) for number in (3, 1)] == [3, 1]

    first, second = marks.wait_for(2)
    assert (first.number, second.number) == (3, 1)
    assert first.started <= first.ended <= second.started <= second.ended
    marks.clear()
    assert marks.count() == 0
    body(4)  # workers keep the file open
    assert [mark.number for mark in marks.all()] == [4]
    with pytest.raises(TimeoutError, match="1 of 2"):
        marks.wait_for(2, timeout=0)


def test_goal_is_reached_or_missed_by_its_median() -> None:
    assert report.reached(Goal("rate", [1.0, 5.0, 6.0], 5, at_least=True)) == "reached"
    assert report.reached(Goal("rate", [9.0, 4.0, 4.0], 5, at_least=True)) == "**missed**"
    assert report.reached(Goal("time", [1.0, 5.0, 6.0], 5, at_least=False)) == "reached"
    assert report.reached(Goal("time", [1.0, 6.0, 6.0], 5, at_least=False)) == "**missed**"
    assert report.reached(Goal("no bound", [1.0], 0)) == ""


def test_table_has_the_ratio_to_the_first_of_the_same_unit() -> None:
    series = [
        Series("first", [100.0, 300.0], "jobs/s"),
        Series("half", [100.0], "jobs/s"),
        Series("other", [0.25], "ms"),
    ]

    lines = report.series_table(series).splitlines()

    assert lines[2:] == [
        "| first | 1.00 × | 200 jobs/s | 100 – 300 | ± 50% | 2 |",
        "| half | 0.50 × | 100 jobs/s | 100 – 100 | ± 0% | 1 |",
        "| other | 1.00 × | 0.25 ms | 0.25 – 0.25 | ± 0% | 1 |",
    ]


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0"), (1234.5, "1,234"), (99.96, "100"), (0.01234, "0.0123"), (-7.5, "-7.5")]
)
def test_number_has_three_significant_digits(value: float, expected: str) -> None:
    assert report.number(value) == expected


def _result() -> Result:
    return Result(
        "submit",
        "Submit one job",
        "One\nproducer.",
        goals=[Goal("rate against bare", [0.6, 0.7], 0.5, "×")],
        series=[Series("ours", [1234.5678, 1300.0], "jobs/s")],
        curves=[Curve("Growth of it", "producers", "jobs/s", {"ours": [(1, 10.0), (2, 20.0)]})],
        tables={"Settings": [["system", "settings"], ["a|b", "c"]]},
        missing={"RQ": "not installed"},
    )


def test_saved_result_is_loaded_again(tmp_path: Path) -> None:
    result = _result()

    result.save(tmp_path)

    found = load("submit", tmp_path)
    assert found is not None
    assert found.series == [Series("ours", [1234.57, 1300.0], "jobs/s")]
    assert (found.goals, found.curves, found.tables) == (result.goals, result.curves, result.tables)
    assert load("never run", tmp_path) is None


def test_report_has_results_and_prose_and_keeps_both(tmp_path: Path) -> None:
    results, prose = tmp_path / "results", tmp_path / "prose"
    prose.mkdir()
    (prose / "introduction.md").write_text("# Benchmarks\n")
    (prose / "submit.md").write_text("It waits for the disk.\n")
    _result().save(results)

    report.write(["submit", "never run"], tmp_path, results, prose)
    written = (tmp_path / "README.md").read_text()

    for expected in (
        "# Benchmarks",
        "| rate against bare | ≥ 0.5 × | 0.65 × (0.6 – 0.7) | reached |",
        "`python -m benchmarks submit`: One producer.",
        "| ours | 1.00 × | 1,267 jobs/s | 1,235 – 1,300 | ± 3% | 2 |",
        "| a\\|b | c |",
        "Not measured: RQ (not installed)",
        "It waits for the disk.",
    ):
        assert expected in written
    assert "never run" not in written
    assert (prose / "submit.md").read_text() == "It waits for the disk.\n"
    report.write(["submit"], tmp_path, results, prose)
    assert (tmp_path / "README.md").read_text() == written


def test_quick_run_prints_its_results_and_writes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers of a quick run mean nothing: they must not replace measurements."""
    saved: list[str] = []
    monkeypatch.setattr(cases, "ALL", {"submit": lambda _: _result()})
    monkeypatch.setattr(Result, "save", lambda result: saved.append(result.name))
    monkeypatch.setattr(report, "write", lambda _: saved.append("README.md"))

    __main__.main(["--quick"])

    assert "| ours | 1.00 × | 1,267 jobs/s" in capsys.readouterr().out
    assert saved == []
    __main__.main([])
    assert saved == ["submit", "README.md"]


def test_curve_is_drawn_as_the_same_file_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = _result()
    result.save(tmp_path / "results")

    pictures = []
    for _ in range(2):
        report.write(["submit"], tmp_path, tmp_path / "results", tmp_path)
        pictures.append((tmp_path / "plots" / "submit-growth-of-it.svg").read_bytes())

    assert pictures[0] == pictures[1]
    assert "plots/submit-growth-of-it.svg" in (tmp_path / "README.md").read_text()


STORE = "jobhandle_celery/store"


def test_stack_is_attributed_to_its_innermost_package() -> None:
    raw = "\n".join(
        f"thread (0x1): {thread};{frames} {count}"
        for thread, frames, count in [
            ("MainThread", "run (benchmarks/producer.py:1);submit (jobhandle_celery/handle.py:9)", 3),
            ("MainThread", f"finish ({STORE}/runs.py:1);go (sqlalchemy/a.py:2)", 2),
            ("MainThread", "trace (celery/app/trace.py:1);dumps (json/__init__.py:2)", 4),
            ("MainThread", f"finish ({STORE}/runs.py:1);apply ({STORE}/database.py:1)", 1),
            ("lease", "wait (threading.py:1)", 100),
        ]
    )

    stacks = sum_up(raw)

    assert stacks.owners == Counter({"this library's own code": 4, "SQLAlchemy": 2, "Celery": 4})
    assert stacks.functions == Counter({"`submit` (handle.py)": 3, "`finish` (store/runs.py)": 3})


@pytest.mark.parametrize("name", COMMON_FILES)
def test_common_file_of_the_profile_exists(name: str) -> None:
    """Samples in a file that has moved would count for that file instead of the function that calls it."""
    assert (Path(jobhandle_celery.__file__).parent / name).is_file()


def test_comparison_of_checkouts_has_medians_and_ratios_of_each_round() -> None:
    # The second round was on a machine at half the speed.
    other = [{"claim, elapsed": 100.0}, {"claim, elapsed": 200.0}]
    this = [{"claim, elapsed": 110.0}, {"claim, elapsed": 220.0}]

    lines = to_table(this, other).splitlines()

    assert lines[2:] == ["| claim, elapsed | 150 µs per job | 165 µs per job | 1.10 × (1.10 – 1.10) |"]
