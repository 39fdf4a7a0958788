"""The demo: what it computes, and that its report is whole."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bmm_multitask_learning.demo import Study, study_schools, write_demo
from bmm_multitask_learning.demo.pictures import own_estimates
from bmm_multitask_learning.demo.study import ALONE, AUTO, GATED, POOLED, SHARED
from bmm_multitask_learning.demo.works import ARTIST, read_works

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def study() -> Study:
    return study_schools(seed=0)


@pytest.fixture(scope="module")
def report(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(study, tmp_path_factory.mktemp("demo"))


def test_the_shared_population_beats_both_ends(study):
    assert study.error(SHARED) < study.error(ALONE) < study.error(POOLED)
    # 1040 rows: three binomial standard deviations around 90 %
    assert abs(study.held(SHARED) - 0.9) < 3 * np.sqrt(0.9 * 0.1 / 1040)


def test_scores_name_every_model_with_finite_figures(study):
    assert [row[0] for row in study.scores.rows] == [ALONE, POOLED, SHARED, AUTO, GATED]
    assert np.isfinite(np.array([row[1:] for row in study.scores.rows], dtype=float)).all()


def test_borrowing_falls_with_size_and_sharing_helps_small_schools(study):
    smallest, *_, largest = study.smallest().rows
    assert smallest[1] < largest[1]
    assert smallest[2] > 0.8 > 0.5 > largest[2]
    _, _, _, alone, pooled, shared = study.by_size().rows[0]
    assert shared < min(alone, pooled)


def test_sizes_cover_every_school_and_every_pupil_once(study):
    sizes = study.by_size().rows
    assert sum(row[1] for row in sizes) == study.data.num_tasks
    assert sum(row[2] for row in sizes) == study.test.num_rows


def test_ranks_are_probabilities_in_the_order_of_the_effects(study):
    rows = study.ranks(count=3).rows
    effects = [row[1] for row in rows]
    assert effects == sorted(effects, reverse=True)
    assert all(0 <= value <= 1 for row in rows for value in row[2:5])
    assert rows[0][3] > 0.9 > rows[-1][3]


def test_the_reversal_contradicts_the_mean_scores(study):
    pair = study.reversal
    assert pair.gap > 0
    assert pair.contrast.mean[0] > 0
    assert pair.contrast.probability[0] > 0.95
    np.testing.assert_allclose(pair.by_reading.mean[1], pair.contrast.mean[0])


def test_adapting_to_a_newcomer_beats_its_own_rows_and_improves(study):
    rows = study.newcomers.rows
    assert [row[0] for row in rows] == [0, 1, 5, 20]
    assert rows[0][2] is None
    assert all(adapted < alone for _, adapted, alone, *_ in rows[1:])
    assert rows[-1][1] < rows[0][1]
    assert rows[-1][4] < rows[0][4]
    assert all(abs(row[3] - 0.9) < 0.03 for row in rows)


def test_words_help_and_artists_differ(study):
    names = [row[0] for row in study.works.rows]
    assert names == [ARTIST, ALONE, POOLED, SHARED]
    (_, artist, *_), (_, alone, *_), (_, pooled, *_), (_, shared, *_) = study.works.rows
    assert shared < artist - 0.2
    assert shared < pooled - 1
    assert abs(shared - alone) < 0.15  # sharing earns nothing here, and costs little
    # 1728 works of 110 artists, not independent: five binomial standard deviations
    assert all(abs(row[3] - 0.9) < 5 * np.sqrt(0.9 * 0.1 / 1728) for row in study.works.rows)


def test_works_of_an_artist_fall_on_one_side_each():
    train, test = read_works(seed=3)
    assert train.tasks == test.tasks
    assert set(train.rows_per_task.tolist()) == {5}
    assert int(test.rows_per_task.min()) >= 5
    again, _ = read_works(seed=3)
    assert (again.x == train.x).all()


def test_own_estimates_leave_out_the_smallest_schools(study):
    few = study.data.rows_per_task.numpy() < 12
    np.testing.assert_array_equal(np.isnan(own_estimates(study)).any(1), few)


def test_the_same_seed_gives_the_same_figures(study):
    again = study_schools(seed=0)
    assert [row[:-1] for row in again.scores.rows] == [row[:-1] for row in study.scores.rows]
    assert again.newcomers.rows == study.newcomers.rows


def test_another_seed_splits_differently(study):
    again = study_schools(seed=1)
    assert again.error(SHARED) != study.error(SHARED)
    assert again.error(SHARED) < again.error(POOLED)


def test_the_report_carries_every_picture_and_fetches_nothing(report):
    page = report.read_text(encoding="utf-8")
    names = {path.stem for path in (report.parent / "pictures").glob("*.png")}
    assert names == {
        *("bound", "coverage", "forest", "predictions"),
        *("relations", "responsibilities", "shrinkage"),
    }
    assert page.count("<picture>") == len(names)
    sources = re.findall(r'(?:src|srcset|href)="(.{5})', page)
    assert all(source.startswith(("data:", "#part")) for source in sources)
    assert len(re.findall("<h2", page)) == 9


def test_the_readme_shows_a_picture_that_is_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert pictures
    assert all((README.parent / picture).is_file() for picture in pictures)


def test_the_readme_code_runs_and_prints_what_it_says(capsys):
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)[0].splitlines()
    assert printed == promised
