"""The demo's report and its pictures as files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..report import Facts, Figure, Section, Text, write_report
from .pictures import Picture, pictures
from .study import ALONE, AUTO, GATED, POOLED, SHARED, Study


def write_demo(
    study: Study, folder: str | Path, *, say: Callable[[str], None] = lambda text: None
) -> Path:
    """Write `report.html`, which needs nothing else, and `pictures/*.png`.

    Args:
        study: what to tell.
        folder: where to; made if need be.
        say: is told what is being done.

    Returns:
        The path of the report.

    Raises:
        ImportError: the extra `plots` is not installed.
    """
    folder = Path(folder)
    drawings = pictures(study)
    figures = {}
    for name, picture in drawings.items():
        say(f"Drawing {name}")
        figures[name] = picture.figure()
        save_picture(picture, folder / "pictures" / f"{name}.png")
    say("Writing the report")
    return write_report(
        folder / "report.html",
        title=f"What {study.data.num_tasks} London schools do for their pupils",
        summary=_summary(study),
        sections=sections(study, figures),
    )


def save_picture(picture: Picture, path: Path) -> None:
    """Draw a picture into a PNG file."""
    from matplotlib.figure import Figure as Drawing

    path.parent.mkdir(parents=True, exist_ok=True)
    drawing = Drawing(figsize=picture.size, layout="constrained")
    picture.draw(ax=drawing.subplots())
    drawing.savefig(path, dpi=150)


def sections(study: Study, figures: dict[str, Figure]) -> list[Section]:
    """The report's parts in order."""
    return [
        *_data(study),
        *_models(study, figures),
        *_small_schools(study),
        *_schools(study, figures),
        *_newcomers(study),
        *_honesty(figures),
        *_kinds(study, figures),
        *_works(study),
        *_again(study),
    ]


def _summary(study: Study) -> str:
    return f"""
        One model for all schools ignores that schools differ; one model each learns little where
        pupils are few. A shared Gaussian population of schools lets the data decide how much they
        have in common: its error on pupils it had not seen is {study.error(SHARED):.3f} standard
        deviations of the exam score, against {study.error(ALONE):.3f} for each school alone and
        {study.error(POOLED):.3f} for all as one. Its 90 % intervals held
        {100 * study.held(SHARED):.1f} % of them.
    """


def _data(study: Study) -> list[Section]:
    rows = study.data.rows_per_task
    return [
        Facts(
            [
                (f"{study.data.num_rows:,}", "pupils"),
                (str(study.data.num_tasks), "schools, each a task"),
                (f"{int(rows.min())}–{int(rows.max())}", "pupils a school"),
                (str(study.data.num_task_features), "facts about each school"),
            ],
            heading="The data",
        ),
        Text(
            """
            Pupils of inner London took a reading test at 11 and their exams at 16. To be predicted
            is the exam score, in standard deviations over all pupils, from the reading score, sex,
            and whether verbal reasoning at 11 was in the top or the bottom quarter. A school's
            weights say what it adds for the average pupil and how it rewards each of these.

            Of each school, three quarters of the pupils are to learn from and the others to score.
            """
        ),
    ]


def _models(study: Study, figures: dict[str, Figure]) -> list[Section]:
    return [
        dataclasses.replace(study.scores, heading="Five ways to share"),
        figures["shrinkage"],
    ]


def _small_schools(study: Study) -> list[Section]:
    smallest = min(study.whole.explain_tasks(), key=lambda each: each.rows)
    return [
        Text(
            f"""
            Sharing matters most where there is least to learn from.
            {str(smallest.task).capitalize()} has {smallest.rows} pupils:
            {100 * smallest.shrinkage:.0f} % of what the model knows about it comes from other
            schools, which is worth about {smallest.rows_borrowed:.0f} more pupils of its own.
            """,
            heading="What borrowing did for small schools",
        ),
        study.by_size(),
        study.smallest(),
    ]


def _schools(study: Study, figures: dict[str, Figure]) -> list[Section]:
    pair = study.reversal
    low, high = pair.contrast.interval(0.9)[0]
    weak, average, strong = pair.by_reading.mean
    ahead, behind = pair.ahead, pair.behind
    return [
        Text(
            "League tables rank schools by mean scores. Below, schools are compared for the same "
            "pupil, average in everything, and with their uncertainty.",
            heading="Which schools do more",
        ),
        figures["forest"],
        study.ranks(),
        Text(
            f"""
            Of all pairs of schools that their means put in the wrong order, this one is the
            clearest: the pupils of {ahead} score {pair.gap:.2f} higher on average than those of
            {behind}. Yet for the same average pupil
            {behind} does more, by {pair.contrast.mean[0]:.2f} (90 % interval {_signed(low)} to
            {_signed(high)}), with a probability of {_chance(pair.contrast.probability[0])}. For a
            weak reader, 1.5 standard deviations below the mean, the difference is {_signed(weak)};
            for an average one {_signed(average)}; for a strong one {_signed(strong)}.
            """
        ),
    ]


def _newcomers(study: Study) -> list[Section]:
    five, adapted, alone = study.newcomers.rows[2][:3]
    return [
        Text(
            f"""
            For a school that was not in the fit the model predicts from the population of
            schools, with wider intervals. As pupils of that school come in, it adapts without a
            new fit. After {five} pupils, its error is {adapted:.3f}; a model of these pupils
            alone has {alone:.3f}.
            """,
            heading="A school nobody has seen",
        ),
        study.newcomers,
    ]


def _honesty(figures: dict[str, Figure]) -> list[Section]:
    return [
        dataclasses.replace(figures["coverage"], heading="Do the intervals keep their word?"),
        figures["predictions"],
    ]


def _kinds(study: Study, figures: dict[str, Figure]) -> list[Section]:
    found = study.shares(AUTO).shape[1]
    kinds = "one kind of school" if found == 1 else f"{found} kinds of school"
    reading = "Read the two clusters as a description, not as two kinds that exist."
    return [
        Text(
            f"""
            Left to choose their number, task clustering finds {kinds}. Asked for two, with the
            chance of each depending on a school's intake and whether it is mixed, for boys or for
            girls, it splits them as below; its error on held-out pupils is
            {study.error(GATED):.3f}, against {study.error(SHARED):.3f} for one population.
            {reading if found == 1 else ""}
            """,
            heading="Are there kinds of schools?",
        ),
        figures["responsibilities"],
        figures["relations"],
        figures["bound"],
    ]


def _works(study: Study) -> list[Section]:
    figures = np.array([row[1:3] for row in study.works.rows], dtype=np.float64)
    artist, alone, pooled, shared = figures[:, 0]
    _, density, _, of_shared = figures[:, 1]
    verdict = "no better than" if shared > 0.98 * alone else "better than"
    return [
        Text(
            f"""
            Rows may be texts. Each artist is a task, a row the label of a work of art, its title
            and medium, and to be predicted is the year in which it was made. An artist's mean
            year alone is off by {artist:.2f} years; with the words of the label a shared
            population is off by {shared:.2f}. One model for all artists, off by {pooled:.2f},
            knows the words but not who used them. Here sharing is {verdict} a model for each
            artist, which is off by {alone:.2f} with a log density of {_signed(density)} against
            {_signed(of_shared)}: what a word says of the year is each artist's own.
            """,
            heading="The same with words",
        ),
        study.works,
    ]


def _again(study: Study) -> list[Section]:
    return [
        Text(
            f"""
            Seed {study.seed}. The data are the table Exam of the R package mlmRev, first analysed
            by Goldstein and others (1993), "A multilevel analysis of school examination results",
            Oxford Review of Education 19. The works of art are the table tate_text of the R
            package modeldata, from the Tate's collection. Sentences through a pretrained encoder:
            bmm-mtl fit reviews.csv --task domain --text text --label label --out model/.

            The same on a table of your own: bmm-mtl compare data.csv --task school --target score.
            """,
            heading="How to make this again",
        )
    ]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _chance(probability: float) -> str:
    return "more than 99.9 %" if probability > 0.999 else f"{100 * probability:.1f} %"
