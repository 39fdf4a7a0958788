"""The command line: `bmm-mtl demo`, `fit`, `predict`, `compare`, `benchmark`, `serve`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from rich.markup import escape

from . import __version__, benchmarks, metrics
from .backbones import SentenceEncoder, WithConstant
from .choices import (
    BENCHMARKS,
    LIKELIHOODS,
    PRIORS,
    USUAL,
    WIDE_PRIORS,
    LikelihoodName,
    PriorName,
    Target,
)
from .comparison import class_probabilities
from .console import ERR, OUT, advice, print_table
from .cross_validation import compare as compare_priors
from .data import LeaveTasksOut, TaskData
from .fitting import fit as fit_model
from .layout import Layout
from .model import MultitaskModel
from .persistence import load
from .prediction import Prediction
from .priors import TaskClustering
from .priors.task_covariance import MAX_WEIGHTS
from .report import write_report
from .tabular import (
    Columns,
    TableError,
    TargetKind,
    as_task_data,
    check_columns,
    choose_features,
    kind_of_target,
    read_table,
    read_target,
    sentences,
    task_labels,
    task_table,
)

app = typer.Typer(
    name="bmm-mtl",
    help="Bayesian multi-task learning: related tasks, their relations, honest predictions.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

_Data = Annotated[Path, typer.Argument(help="A CSV file with a header, a row per observation.")]
_Task = Annotated[str, typer.Option("--task", help="Column of the task labels.")]
_Goal = Annotated[
    str,
    typer.Option("--target", "--label", help="Column to predict; an empty cell: not observed."),
]
_Features = Annotated[
    str, typer.Option(help="Feature columns, by commas; by default every other numeric column.")
]
_TaskFeatures = Annotated[
    str,
    typer.Option(help="Columns of facts about the tasks, by commas; they steer the clusters."),
]
_Kind = Annotated[
    LikelihoodName | None,
    typer.Option(
        "--likelihood",
        help="What the target is; by default classes for text and for 0 and 1, else gaussian.",
    ),
]
_Clusters = Annotated[
    int | None, typer.Option(min=1, help="Number of clusters; by default chosen by the data.")
]
_Separator = Annotated[str, typer.Option(help="What separates the columns of the file.")]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of all that is random.")]


# ---- commands -----------------------------------------------------------------------------------


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer calls it with the option
    if wanted:
        OUT.print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[  # noqa: FBT002
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Bayesian multi-task learning: related tasks, their relations, honest predictions."""


@app.command(epilog="Example: bmm-mtl demo --out reports/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of report and pictures.")] = Path(
        "reports/demo"
    ),
    seed: _Seed = 0,
) -> None:
    """Fit five models to 65 London schools; print a table, write pictures and a report."""
    with advice():
        from .demo import study_schools, write_demo  # needs the extras data and plots

        with ERR.status("Starting") as status:
            study = study_schools(seed=seed, say=status.update)
            report = write_demo(study, out, say=status.update)
        print_table(study.scores)
        OUT.print(f"\nReport    {report.resolve()}", soft_wrap=True)
        OUT.print(f"Pictures  {(out / 'pictures').resolve()}", soft_wrap=True)


@app.command(
    epilog="Example: bmm-mtl fit data.csv --task school --target score --out model/, or "
    "bmm-mtl fit reviews.csv --task domain --text text --label label --out model/"
)
def fit(
    data: _Data,
    task: _Task,
    target: _Goal,
    out: Annotated[Path, typer.Option(help="Folder to write the model into.")],
    features: _Features = "",
    text: Annotated[
        str, typer.Option(help="Column of sentences, in place of features; needs the extra text.")
    ] = "",
    encoder: Annotated[
        str,
        typer.Option(help="What reads the sentences: a folder, or a name of Hugging Face's hub."),
    ] = "all-MiniLM-L6-v2",
    task_features: _TaskFeatures = "",
    prior: Annotated[PriorName, typer.Option(help="How tasks belong together.")] = (
        PriorName.SHARED
    ),
    clusters: _Clusters = None,
    likelihood: _Kind = None,
    separator: _Separator = ",",
    seed: _Seed = 0,
) -> None:
    """Fit a model to a table and save it; with --text, on a frozen encoder, saved with it."""
    with advice():
        if prior is not PriorName.CLUSTERING and (clusters or task_features):
            raise TableError(
                f"--clusters and --task-features belong to --prior clustering; got {prior.value}."
            )
        columns = Columns(task, target, _names(features), _names(task_features), text)
        sentence_encoder = SentenceEncoder.from_pretrained(encoder) if text else None
        raw, layout, chosen = _read(data, columns, likelihood, separator, sentence_encoder)
        columns, classes = layout.columns, layout.classes
        prior_of = (WIDE_PRIORS if text else PRIORS)[prior]
        model = MultitaskModel(
            prior_of(clusters, bool(task_features)), chosen.likelihood(len(classes))
        )
        result = fit_model(
            model, layout.units.standardise(raw), seed=seed, progress=ERR.is_terminal
        )
        if sentence_encoder is not None:
            model.backbone = WithConstant(sentence_encoder)  # frozen: its features were the rows
        model.save(out)
        layout.save(out)
        read = f"text: {columns.text}" if text else f"features: {', '.join(columns.features)}"
        OUT.print(f"{raw.num_rows:,} rows, {raw.num_tasks:,} tasks, {escape(read)}")
        OUT.print(f"{target}: {chosen.kind.value}, {type(model.likelihood).__name__}")
        OUT.print(f"{type(model.prior).__name__} by {escape(result.engine)}")
        state = "converged" if result.converged else "not converged"
        OUT.print(f"bound {result.bound:,.2f} nats, {state}, {result.seconds:.1f} s")
        OUT.print(f"Model     {out.resolve()}", soft_wrap=True)
        OUT.print(f"Next      bmm-mtl predict {out} {data} --out predictions.csv", soft_wrap=True)
        OUT.print(f"          bmm-mtl serve {out}", soft_wrap=True)


@app.command(epilog="Example: bmm-mtl predict model/ new.csv --out predictions.csv")
def predict(
    model: Annotated[Path, typer.Argument(help="The folder that bmm-mtl fit wrote.")],
    data: _Data,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("predictions.csv"),
    coverage: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="Probability that intervals hold.")
    ] = 0.9,
    separator: _Separator = ",",
) -> None:
    """Predict each row of a table, with intervals; unknown tasks get the population's."""
    with advice():
        layout = Layout.load(model)
        fitted = load(model)
        columns = layout.columns
        frame = read_table(data, task=columns.task, text=columns.text, separator=separator)
        check_columns(frame, [columns.task, *columns.features, *columns.task_features])
        labels = task_labels(frame, columns.task)
        x = layout.inputs(frame, fitted.backbone)
        with warnings.catch_warnings():  # said below, in fewer words
            warnings.filterwarnings("ignore", r"\d+ task\(s\) outside the fit", UserWarning)
            prediction = fitted.predict(x, labels, task_features=task_table(frame, columns))
        if layout.kind is TargetKind.REAL:
            prediction = layout.units.prediction(prediction, np.zeros(len(x), dtype=np.int64))
        table = _prediction_table(layout, prediction, labels, coverage)
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False)
        unknown = list(
            dict.fromkeys(t for t, k in zip(labels, table["known"], strict=True) if not k)
        )
        if unknown:
            ERR.print(
                f"[yellow]Note:[/] {len(unknown)} of the tasks were not in the fit "
                f"({escape(', '.join(unknown[:3]))}{', ...' if len(unknown) > 3 else ''}): "
                "their predictions are the population's, and wider."
            )
        OUT.print(f"{len(table):,} rows to {out.resolve()}", soft_wrap=True)
        if columns.target in frame:
            OUT.print(_verdict(layout, frame, table, coverage))


@app.command(epilog="Example: bmm-mtl compare data.csv --task school --target score")
def compare(
    data: _Data,
    task: _Task,
    target: _Goal,
    features: _Features = "",
    task_features: _TaskFeatures = "",
    likelihood: _Kind = None,
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 4,
    new_tasks: Annotated[  # noqa: FBT002
        bool,
        typer.Option("--new-tasks", help="Hold out whole tasks rather than rows of every task."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="HTML file of the table and a picture of it.")
    ] = None,
    separator: _Separator = ",",
    seed: _Seed = 0,
) -> None:
    """Cross-validate every prior; print a table, the best first."""
    with advice():
        columns = Columns(task, target, _names(features), _names(task_features))
        raw, layout, chosen = _read(data, columns, likelihood, separator)
        priors = {name.value: PRIORS[name](None, False) for name in PriorName}  # noqa: FBT003
        if raw.num_tasks * (raw.x.shape[1] + 1) > MAX_WEIGHTS:  # with an intercept
            del priors[PriorName.COVARIANCE.value]
        if task_features:
            priors["gated clusters"] = TaskClustering(gating=True)
        found = compare_priors(
            raw,
            priors,
            chosen.likelihood(len(layout.classes)),
            num_folds=folds,
            splitter=LeaveTasksOut(folds, random_state=seed) if new_tasks else None,
            seed=seed,
            progress=ERR.is_terminal,
        )
        print_table(found.summary())
        if out is not None:
            summary = f"{found.best} predicts {target} of held-out rows best."
            parts = (found.summary(), found.picture())
            write_report(out, title=f"Priors for {target}", summary=summary, sections=parts)
            OUT.print(f"\nReport    {out.resolve()}", soft_wrap=True)


@app.command(epilog="Example: bmm-mtl benchmark school landmine --quick --out benchmarks")
def benchmark(
    names: Annotated[list[str], typer.Argument(help=f"Some of: {', '.join(BENCHMARKS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of CSV, JSON and Markdown.")] = Path(
        "benchmarks"
    ),
    methods: Annotated[
        str, typer.Option(help="Methods, by commas, as the tables name them; by default all.")
    ] = "",
    quick: Annotated[  # noqa: FBT002
        bool, typer.Option("--quick", help="Few splits, sizes and methods.")
    ] = False,
) -> None:
    """Measure methods on real data and planted truth; go on where an earlier run stopped."""
    with advice():
        unknown = [name for name in names if name not in BENCHMARKS]
        if unknown:
            known = ", ".join(BENCHMARKS)
            raise ValueError(f"there is no benchmark {unknown[0]!r}; there are {known}.")
        for name in names:
            protocol = BENCHMARKS[name]
            results = benchmarks.Results(protocol, out)
            results.measure(protocol.runs(quick=quick, only=_names(methods)))
            OUT.print(f"[bold]{name}[/]\n\n{escape(results.page.read_text())}", soft_wrap=True)
            OUT.print(f"{results.page.resolve()}\n", soft_wrap=True)


@app.command(epilog="Example: bmm-mtl serve model/ --port 8000")
def serve(
    model: Annotated[Path, typer.Argument(help="The folder of a saved model.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any.")] = 8000,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of a request at most.")] = 1000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a request at most.")] = 2_000_000,
) -> None:
    """Answer predictions over HTTP; /docs describes the endpoints, with examples."""
    with advice():
        from .serving import create_app, run  # needs the extra serve

        service = create_app(model, max_rows=max_rows, max_bytes=max_bytes)
        OUT.print(f"Serving {model.resolve()}; stop with Ctrl-C.", soft_wrap=True)
        run(service, host=host, port=port)


# ---- parts --------------------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _read(
    path: Path,
    columns: Columns,
    likelihood: LikelihoodName | None,
    separator: str,
    encoder: SentenceEncoder | None = None,
) -> tuple[TaskData, Layout, Target]:
    """The rows in the user's units, their layout, and what the target is."""
    frame = read_table(path, task=columns.task, text=columns.text, separator=separator)
    columns, left_out = choose_features(frame, columns)
    if left_out:
        ERR.print(f"[yellow]Note:[/] text columns are left out: {escape(', '.join(left_out))}")
    chosen = LIKELIHOODS[likelihood or USUAL[kind_of_target(frame, columns.target)]]
    embedded = None
    if encoder is not None:
        read_target(frame, columns.target, chosen.kind)  # errors before the minutes of reading
        texts = sentences(frame, columns.text)
        embedded = encoder.encode(texts, progress=ERR.is_terminal).double().numpy()
    data, classes = as_task_data(frame, columns, chosen.kind, embedded)
    return data, Layout.of(data, columns, chosen.kind, classes), chosen


def _prediction_table(
    layout: Layout, prediction: Prediction, labels: list[str], coverage: float
) -> pd.DataFrame:
    """A row per prediction, in the user's units."""
    table = pd.DataFrame({layout.columns.task: labels})
    if layout.classes:
        chance = class_probabilities(prediction)
        table["predicted"] = [layout.classes[index] for index in chance.argmax(1)]
        for index, name in enumerate(layout.classes):
            table[f"probability_{name}"] = chance[:, index]
        if len(layout.classes) == 2 and layout.kind is TargetKind.BINARY:
            table[["lower", "upper"]] = prediction.interval(coverage).numpy()
    else:
        table["mean"] = prediction.mean.numpy()
        table["std"] = prediction.std.numpy()
        table[["lower", "upper"]] = prediction.interval(coverage).numpy()
    table["known"] = prediction.known.numpy()
    return table


def _verdict(layout: Layout, frame: pd.DataFrame, table: pd.DataFrame, coverage: float) -> str:
    """How good the predictions are, where the table holds the target."""
    y, _ = read_target(frame, layout.columns.target, layout.kind, layout.classes)
    if np.isnan(y).all():
        return "The table has no observed target to score the predictions with."
    seen = f"Against {layout.columns.target}: "
    if layout.classes:
        place = table["predicted"].map({name: i for i, name in enumerate(layout.classes)})
        right = (place.to_numpy() == y)[~np.isnan(y)].mean()
        return f"{seen}{100 * right:.1f} % of the rows are classified right."
    lower, upper = table["lower"].to_numpy(), table["upper"].to_numpy()
    return (
        f"{seen}RMSE {metrics.rmse(y, table['mean'].to_numpy()):.4g}; the {100 * coverage:g} % "
        f"intervals hold {100 * metrics.interval_coverage(y, lower, upper):.1f} % of the rows."
    )
