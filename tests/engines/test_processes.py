"""One fit by two processes, each with its share of the rows, is the fit of one with all."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing

from bmm_multitask_learning import (
    NUTS,
    Bernoulli,
    Categorical,
    CoordinateAscent,
    Gaussian,
    LatentHierarchy,
    MultitaskModel,
    SharedGaussian,
    TaskClustering,
    TaskData,
    fit,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.processes import (
    all_reduce_max,
    all_reduce_sum,
    num_processes,
    process,
    share,
    sum_before,
)

from ..cases import make_data

# sorted by task, so that the middle task has rows in both processes and the others in one
ROWS = (9, 8, 3, 7)


def with_holes():
    """Two outputs; targets are missing among the first process's rows alone."""
    data = make_data(rows=ROWS, num_features=3, outputs=2)
    y = data.y.clone()
    y[1, 0] = y[4, 1] = torch.nan
    return TaskData(data.x, y, data.task)


def gaussian():
    return make_data(rows=ROWS, num_features=3)


def bernoulli():
    return make_data("bernoulli", rows=ROWS, num_features=3)


def categorical():
    data = make_data(rows=ROWS, num_features=3)
    return TaskData(data.x, (data.y > 0).double() + (data.y > 1).double(), data.task)


def few_rows():
    """Fewer rows than features: held as rows in one process."""
    return make_data(rows=(3, 2, 3, 1), num_features=8)


CASES = {
    "gaussian": (SharedGaussian, Gaussian, gaussian),
    "noise by task": (SharedGaussian, lambda: Gaussian(noise="task"), with_holes),
    "clusters": (lambda: TaskClustering(2, n_init=2), Gaussian, gaussian),
    "tree": (LatentHierarchy, Gaussian, gaussian),
    "few rows": (SharedGaussian, Gaussian, few_rows),
    "bernoulli": (SharedGaussian, Bernoulli, bernoulli),
    "categorical": (SharedGaussian, lambda: Categorical(3), categorical),
}
# bounds by sums in another order; those of classes end where an iteration gains less than tol
TOLERANCE = dict.fromkeys(CASES, 1e-8) | {"bernoulli": 1e-6, "categorical": 1e-6}


def fitted(name, data):
    prior, likelihood, _ = CASES[name]
    model = MultitaskModel(prior(), likelihood())
    result = fit(model, data, engine=CoordinateAscent(max_iter=60), progress=False)
    return model, result


def read_outs(model, result):
    return {
        "mean": model.weights.mean.contiguous(),
        "covariance": model.weights.covariance.contiguous(),
        "relations": model.relations().contiguous(),
        "rows": torch.tensor(model.family().rows_per_task),
        "bound": torch.tensor(result.bound),
    }


def worker(rank, folder):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for name, (_, _, data) in CASES.items():
        found = read_outs(*fitted(name, share(data())))
        save_file(found, f"{folder}/{name}-{rank}.safetensors")
    told = {"sums": [int(f(torch.tensor(3 + rank))) for f in (all_reduce_sum, all_reduce_max)]}
    told["before"] = int(sum_before(torch.tensor(5 + rank)))
    told["errors"] = [refused(*arguments) for arguments in mistakes(rank)]
    with open(f"{folder}/told-{rank}.json", "w", encoding="utf-8") as file:
        json.dump(told, file)
    distributed.destroy_process_group()


def mistakes(rank):
    data = share(gaussian())
    other = data if rank else data.select_tasks([0, 1])
    trained = MultitaskModel(backbone=MLP(3, [2]))
    return [
        (MultitaskModel(), other, CoordinateAscent()),
        (MultitaskModel(), data, NUTS()),
        (trained, data, CoordinateAscent()),
    ]


def refused(model, data, engine):
    try:
        fit(model, data, engine=engine, progress=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return "not refused"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(worker, args=(str(path),), nprocs=2)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_find_the_posterior_of_one(name, folder):
    expected = read_outs(*fitted(name, CASES[name][2]()))
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(
            first[key], value, rtol=TOLERANCE[name], atol=TOLERANCE[name], msg=key
        )


@pytest.mark.slow
def test_processes_add_up_and_refuse_what_is_not_for_several(folder):
    for rank in (0, 1):
        told = json.loads((folder / f"told-{rank}.json").read_text())
        assert told["sums"] == [7, 4]
        assert told["before"] == 5 * rank
        tasks, nuts, backbone = told["errors"]
        assert "every process must have the same tasks" in tasks
        assert "NUTS fits a model in one process only; use SVI()" in nuts
        assert "CoordinateAscent fits a trainable backbone in one process only" in backbone


def test_without_a_group_nothing_changes():
    value = torch.arange(3.0)
    assert (num_processes(), process()) == (1, 0)
    assert all_reduce_sum(value) is value
    assert all_reduce_max(value) is value
    assert torch.equal(sum_before(value), torch.zeros(3))
    data = gaussian()
    assert torch.equal(share(data).x, data.x)
