"""Speed: to a given accuracy against NumPyro, a step of SVI against plain PyTorch, and scaling."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import TraceMeanField_ELBO

from bmm_multitask_learning import (
    Gaussian,
    MultitaskModel,
    SharedGaussian,
    TaskClustering,
    TaskData,
    datasets,
    fit,
    metrics,
)
from bmm_multitask_learning.benchmarks import Split
from bmm_multitask_learning.benchmarks.school import prepare
from bmm_multitask_learning.engines.coordinate_ascent import Ascent
from bmm_multitask_learning.engines.start import start_sites
from bmm_multitask_learning.engines.variational_program import VariationalProgram
from bmm_multitask_learning.likelihoods import Rows

from .plain_loop import PlainLoop
from .record import FOLDER, markdown, write

TARGET = 0.380
LIMIT = 120.0
PAGE = """
Two cores unless it says one thread; every ratio from one run. Times are wall clock, the median
of repeated runs where they are short.

**School to an explained variance (global) of {target:.3f}, split {split}.** NumPyro has the
same model, non-centred, with its own usual hyperpriors; compilation is counted, and given apart.
Its SVI is AutoNormal with Adam(.01), looked at every 100 steps; its NUTS is one chain of
100 + 100 draws.

{school}

**One step of SVI**, 64 tasks × 50 rows, D = 8, `TaskClustering(4, covariance="isotropic")`, all
rows, one thread. The plain loop is the same bound with the same guide, written by hand
(`tests/benchmarks/plain_loop.py`). With Gaussian noise the library takes the expected log
likelihood from sums over rows made once; ratios are to the loop that does the same, and the loop
that sums over rows at every step stands beside it. *Bound* is the mean at the start, over the same
draws. The share of Pyro's functions is by Python's profiler, which favours neither.

{step}

**Closed form at scale.**

{scale}

**Time and memory against tasks and rows**, one iteration of `SharedGaussian` after the statistics,
D = 16, 20 rows a task, and the statistics themselves:

{growth}
"""


def median_seconds(job: Callable[[], object], repeats: int) -> float:
    """Median wall-clock time of a job, after one warm-up."""
    job()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# ---- School against NumPyro ------------------------------------------------------------


def school() -> tuple[int, list[dict[str, object]]]:
    """The first split on which SharedGaussian reaches the target, and the times to it."""
    for split in range(20):
        problem = prepare(Split("", split))
        train, test = (part.data(problem.num_tasks) for part in problem[:2])
        score = _scorer(test)
        model = MultitaskModel(prior=SharedGaussian(), likelihood=Gaussian())
        fit(model, train, progress=False)
        if score(model.weights.mean.numpy()) >= TARGET:
            break
    rows = [_ours_to_target(train, score)]
    from . import numpyro_school as others

    arrays = (train.x.numpy(), train.y.numpy(), train.task.numpy())
    svi = others.svi(arrays, train.num_tasks, score, TARGET, limit=LIMIT)
    rows.append({"method": "NumPyro SVI, AutoNormal", **svi})
    nuts = others.nuts(arrays, train.num_tasks, score)
    rows.append({"method": "NumPyro NUTS, 100 + 100", **nuts, "reached": nuts["best"] >= TARGET})
    for row in rows[1:]:
        row["ratio"] = row["seconds"] / rows[0]["seconds"]
    return split, rows


def _ours_to_target(train: TaskData, score: Callable[[np.ndarray], float]) -> dict[str, object]:
    def once() -> float:
        model = MultitaskModel(prior=SharedGaussian(), likelihood=Gaussian())
        fit(model, train, progress=False)
        return score(model.weights.mean.numpy())

    start = time.perf_counter()
    best = once()
    first = time.perf_counter() - start
    seconds = median_seconds(once, 3)
    return {
        "method": "CoordinateAscent, to convergence",
        "seconds": seconds,
        "start": first,
        "best": best,
        "reached": best >= TARGET,
    }


def _scorer(test: TaskData) -> Callable[[np.ndarray], float]:
    x, y, task = test.x.numpy(), test.y.numpy(), test.task.numpy()

    def score(weights: np.ndarray) -> float:
        mean = np.einsum("nd,nd->n", x, weights[task])
        return metrics.explained_variance(y, mean, task, "global")

    return score


# ---- one step of SVI -------------------------------------------------------------------


def step() -> list[dict[str, object]]:
    """Milliseconds of one step: the library, and the plain loop on statistics and on rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _step()
    finally:
        torch.set_num_threads(threads)


def _step(repeats: int = 600) -> list[dict[str, object]]:
    data, _ = datasets.make_clusters(rows_per_task=50, num_features=8, seed=0)
    prior = TaskClustering(4, covariance="isotropic", n_init=1)
    model = MultitaskModel(prior=prior, likelihood=Gaussian())
    named = model.named_data(data)
    model.build(named)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sites = {
            "tasks": start_sites(
                model.family(), model.rows("tasks", data), generator, progress=False
            )
        }
    eta, theta = dict(prior.eta), dict(model.likelihood.eta)
    program = VariationalProgram(model, named, sites)
    optimiser = torch.optim.AdamW(program.gradient_parameters(), lr=0.01)
    elbo = TraceMeanField_ELBO()
    on_statistics, on_rows = (
        PlainLoop(
            data.x.reshape(64, 50, 8),
            data.y.reshape(64, 50),
            eta["centre"][:, 0, 0],
            eta["precision"].reshape(4),
            eta["proportion"],
            theta["noise_level"][0],
            prior.scatter[0, 0],
            model.likelihood.noise_scatter[0],
            by_rows=by_rows,
        )
        for by_rows in (False, True)
    )

    def ours() -> None:
        program.load(named)
        optimiser.zero_grad()
        with pyro.validation_enabled(is_validate=False):
            loss = elbo.differentiable_loss(program.model, program.guide)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(program.gradient_parameters(), 10.0 * program.num_rows)
        optimiser.step()
        program.move_sites(program.factors(), 1.0)

    def our_bound() -> float:
        program.load(named)
        with pyro.validation_enabled(is_validate=False):
            return -float(elbo.loss(program.model, program.guide))

    bounds = (our_bound, lambda: -float(on_statistics.loss()), lambda: -float(on_rows.loss()))
    means = [_mean_bound(bound) for bound in bounds]
    figures = {
        "library, Pyro": ours,
        "plain PyTorch loop, sums over rows made once": on_statistics.step,
        "plain PyTorch loop, row by row": on_rows.step,
    }
    seconds = {name: [] for name in figures}
    for _ in range(repeats):  # in turns, so that all see the same machine
        for name, job in figures.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    share = _pyro_share(ours)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    base = middle["plain PyTorch loop, sums over rows made once"]
    rows: list[dict[str, object]] = [
        {"method": name, "ms": 1e3 * value, "ratio": value / base, "bound": mean}
        for (name, value), mean in zip(middle.items(), means, strict=True)
    ]
    rows[0]["pyro_share"] = share
    return rows


def _mean_bound(bound: Callable[[], float], draws: int = 400) -> float:
    """Mean of a bound at the start, before any step."""
    torch.manual_seed(0)
    with torch.no_grad():
        return statistics.mean(bound() for _ in range(draws))


def _pyro_share(job: Callable[[], None], repeats: int = 100) -> float:
    """Share of a step spent in Pyro's own functions, by Python's profiler."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.enable()
    for _ in range(repeats):
        job()
    profile.disable()
    table = pstats.Stats(profile).stats
    own = {key: value[2] for key, value in table.items()}
    pyro_time = sum(t for (file, _, _), t in own.items() if f"{os.sep}pyro{os.sep}" in file)
    return pyro_time / sum(own.values())


# ---- closed form at scale --------------------------------------------------------------


def statistics_of_rows() -> dict[str, object]:
    """Per-task statistics of two million rows against one matrix product of the same size."""
    N, D, K = 2_000_000, 32, 1000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    y = torch.randn(N, generator=generator, dtype=torch.float64)
    task = torch.arange(N) // (N // K)
    likelihood = Gaussian()

    def ours() -> object:
        return likelihood.summarise(Rows.from_targets(x, y, None, task, K))

    product = median_seconds(lambda: x.mT @ x, 3)
    seconds = median_seconds(ours, 3)
    return {
        "job": "statistics of 2·10⁶ rows × 32, 1000 tasks",
        "seconds": seconds,
        "yardstick": "one product XᵀX",
        "yardstick_seconds": product,
        "ratio": seconds / product,
    }


def iteration(K: int, D: int, rows: int) -> dict[str, float]:
    """Seconds of statistics and of one EM iteration, and the batched Cholesky's."""
    generator = torch.Generator().manual_seed(0)
    task = torch.arange(K).repeat_interleave(rows)
    x = torch.randn(len(task), D, generator=generator, dtype=torch.float64)
    y = x.sum(-1) + torch.randn(len(task), generator=generator, dtype=torch.float64)
    model = MultitaskModel(prior=SharedGaussian(), likelihood=Gaussian())
    data = TaskData(x, y, task, tasks=range(K))
    with torch.no_grad():
        model.build(data)
        # forget the peak of the imports
        Path("/proc/self/clear_refs").write_text("5")
        family, features = model.family(), model.rows("tasks", data)
        start = time.perf_counter()
        family.likelihood.summarise(features)
        prepared_in = time.perf_counter() - start
        family.likelihood.initialise(features)
        ascent = Ascent(family, features)
        family.prior.initialise(ascent.statistics(), generator, 0)
        del x, y, data, features
        before = _peak_bytes()
        seconds = median_seconds(ascent.step, 2)
        peak = _peak_bytes()
        A = ascent.statistics().A[:, 0] + torch.eye(D, dtype=torch.float64)
        cholesky = median_seconds(lambda: torch.linalg.cholesky(A), 2)
    return {
        "K": K,
        "N": K * rows,
        "D": D,
        "statistics_seconds": prepared_in,
        "iteration_seconds": seconds,
        "cholesky_seconds": cholesky,
        "peak_GiB": peak / 2**30,
        "before_GiB": before / 2**30,
    }


def _peak_bytes() -> int:
    # of this program image: getrusage carries the parent's peak over
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def isolated(K: int, D: int, rows: int) -> dict[str, float]:
    """`iteration` in a process of its own, so that its peak memory is its own."""
    code = (
        f"import json, torch; torch.set_num_threads({torch.get_num_threads()});"
        "from tests.benchmarks.speed import iteration;"
        f"print(json.dumps(iteration({K}, {D}, {rows})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def growth() -> pd.DataFrame:
    """One iteration against the number of tasks, statistics against the number of rows."""
    by_tasks = [{"axis": "tasks", **isolated(K, 16, 20)} for K in (100, 1000, 10_000, 100_000)]
    by_rows = [{"axis": "rows", **isolated(1000, 16, n)} for n in (2, 20, 200, 2000)]
    return pd.DataFrame([*by_tasks, *by_rows])


def picture(table: pd.DataFrame) -> None:
    """Time and memory against K and N on logarithmic axes, as docs/images/scaling.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (kind, column, label) in zip(
        axes,
        (("tasks", "K", "tasks K (20 rows each)"), ("rows", "N", "rows N (1000 tasks)")),
        strict=True,
    ):
        part = table[table.axis == kind]
        for key, style, name in (
            ("statistics_seconds", "o-", "statistics"),
            ("iteration_seconds", "s-", "one EM iteration"),
        ):
            axis.loglog(part[column], part[key], style, label=name)
        axis.set(xlabel=label, ylabel="seconds")
        axis.grid(visible=True, which="major", alpha=0.3)
        memory = axis.twinx()
        memory.loglog(part[column], part.peak_GiB, "^:", color="0.45", label="peak memory")
        memory.set_ylim(0.1, 10)
        memory.set_ylabel("peak memory of the process, GiB", color="0.35")
        handles = [*axis.get_legend_handles_labels()[0], *memory.get_legend_handles_labels()[0]]
        axis.legend(handles, [h.get_label() for h in handles], loc="upper left", frameon=False)
    folder = FOLDER.parent / "images"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "scaling.png", dpi=150)
    plt.close(figure)


# ---- tables ----------------------------------------------------------------------------


def main() -> None:
    """Measure, and write tables and picture."""
    step_rows = step()
    print(step_rows)
    jobs = [statistics_of_rows()]
    print(jobs)
    large = isolated(100_000, 32, 4)
    jobs.append(
        {
            "job": "one EM iteration, 100,000 tasks × 32 features",
            "seconds": large["iteration_seconds"],
            "yardstick": "one batched Cholesky",
            "yardstick_seconds": large["cholesky_seconds"],
            "ratio": large["iteration_seconds"] / large["cholesky_seconds"],
            "peak_GiB": large["peak_GiB"],
            "before_GiB": large["before_GiB"],
        }
    )
    print(jobs)
    table = growth()
    picture(table)
    print(table)
    split, school_rows = school()
    page = PAGE.format(
        target=TARGET,
        split=split,
        school=_school_table(school_rows),
        step=_step_table(step_rows),
        scale=_job_table(jobs),
        growth=_growth_table(table)
        + "\n![Time and memory against tasks and rows](images/scaling.png)",
    )
    parts = {"school": school_rows, "step": step_rows, "scale": jobs}
    frames = [pd.DataFrame(rows).assign(part=name) for name, rows in parts.items()]
    everything = pd.concat([*frames, table.assign(part="growth")])
    write("speed", everything, page, {"benchmark": "speed", "target": TARGET, "split": split})


def _school_table(rows: list[dict[str, object]]) -> str:
    body = [
        [
            str(row["method"]),
            f"{row['seconds']:.2f}" + ("" if row["reached"] else " (stopped)"),
            f"{row['start']:.2f}" if "start" in row else "–",
            f"{row['best']:.4f}",
            f"{row['ratio']:.0f}×" if "ratio" in row else "1",
        ]
        for row in rows
    ]
    heads = ["method", "seconds", "first run or first 100 steps", "EV global", "ratio"]
    return markdown(heads, body)


def _step_table(rows: list[dict[str, object]]) -> str:
    body = [
        [
            str(row["method"]),
            f"{row['ms']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['pyro_share']:.0%}" if "pyro_share" in row else "–",
            f"{row['bound']:.2f}",
        ]
        for row in rows
    ]
    return markdown(["", "ms a step", "ratio", "time in Pyro's functions", "bound"], body)


def _job_table(rows: list[dict[str, object]]) -> str:
    body = [
        [
            str(row["job"]),
            f"{row['seconds']:.2f}",
            f"{row['yardstick']}: {row['yardstick_seconds']:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['peak_GiB']:.1f} GiB ({row['before_GiB']:.1f} before the iteration)"
            if "peak_GiB" in row
            else "–",
        ]
        for row in rows
    ]
    return markdown(["job", "seconds", "yardstick, seconds", "ratio", "peak of the process"], body)


def _growth_table(table: pd.DataFrame) -> str:
    body = [
        [
            f"{row.K:,}",
            f"{row.N:,}",
            f"{row.statistics_seconds:.4f}",
            f"{row.iteration_seconds:.4f}",
            f"{row.peak_GiB:.2f}",
        ]
        for row in table.itertuples()
    ]
    heads = ["tasks", "rows", "statistics, s", "one iteration, s", "peak of the process, GiB"]
    return markdown(heads, body)
