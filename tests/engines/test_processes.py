"""One fit by two processes, each with its share of the rows, is the fit of one with all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing, nn

from bmm_multitask_learning import (
    NUTS,
    SVI,
    Bernoulli,
    Categorical,
    CoordinateAscent,
    Gaussian,
    LatentHierarchy,
    MultitaskModel,
    Poisson,
    SharedGaussian,
    TaskClustering,
    TaskData,
    fit,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.engines import Callback, Checkpoint
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


def poisson():
    data = make_data(rows=ROWS, num_features=3)
    return TaskData(data.x, data.y.exp().round(), data.task)


def model_of(prior, likelihood=Gaussian, backbone=lambda: None):
    return lambda: MultitaskModel(prior(), likelihood(), backbone=backbone())


def mlp():
    return MLP(3, [3], seed=0)


def tree():
    return LatentHierarchy("isotropic", mixing=0.6)


EM = CoordinateAscent(max_iter=60)
# two checks, and a tree sought anew at the first
LONG = SVI(steps=100)
# name: model, data, engine, tolerance of sums in another order
CASES = {
    "gaussian": (model_of(SharedGaussian), gaussian, EM, 1e-8),
    "noise by task": (
        model_of(SharedGaussian, lambda: Gaussian(noise="task")),
        with_holes,
        EM,
        1e-8,
    ),
    "clusters": (model_of(lambda: TaskClustering(2, n_init=2)), gaussian, EM, 1e-8),
    "tree": (model_of(LatentHierarchy), gaussian, EM, 1e-8),
    "few rows": (model_of(SharedGaussian), few_rows, EM, 1e-8),
    "bernoulli": (model_of(SharedGaussian, Bernoulli), bernoulli, EM, 1e-6),
    "categorical": (model_of(SharedGaussian, lambda: Categorical(3)), categorical, EM, 1e-6),
    "svi": (model_of(SharedGaussian, Gaussian, mlp), gaussian, SVI(steps=30), 1e-6),
    "svi by rows": (model_of(SharedGaussian, Poisson, mlp), poisson, SVI(steps=30), 1e-6),
    "svi with a tree": (model_of(tree), gaussian, LONG, 1e-6),
}


def fitted(name, data):
    model, _, engine, _ = CASES[name]
    model = model()
    return model, fit(model, data, engine=engine, progress=False)


def read_outs(model, result):
    trained = [p.detach().flatten() for p in model.backbone.parameters()]
    return {
        "history": torch.tensor(result.history[-20:]),
        "backbone": torch.cat([torch.zeros(1), *trained]).double(),
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
    for name, (_, data, _, _) in CASES.items():
        found = read_outs(*fitted(name, share(data())))
        save_file(found, f"{folder}/{name}-{rank}.safetensors")
    for name, callbacks in (("whole", []), ("parts", [KillAt(60)])):
        found = read_outs(*in_batches(rank, Path(folder) / name, callbacks))
        save_file(found, f"{folder}/{name}-{rank}.safetensors")
    told = {"sums": [int(f(torch.tensor(3 + rank))) for f in (all_reduce_sum, all_reduce_max)]}
    told["before"] = int(sum_before(torch.tensor(5 + rank)))
    told["errors"] = [refused(*arguments) for arguments in mistakes(rank)]
    with open(f"{folder}/told-{rank}.json", "w", encoding="utf-8") as file:
        json.dump(told, file)
    distributed.destroy_process_group()


class KillAt(Callback):
    def __init__(self, step):
        self.at = step

    def on_step(self, training):
        if training.step == self.at:
            raise KeyboardInterrupt


def in_batches(rank, folder, callbacks):
    """Minibatches, dropout and validation; first stopped, where a callback stops it."""
    settings = {"batch_size": 4, "accumulate": 2, "validation_fraction": 0.2, "patience": 5}
    checkpoint = Checkpoint(folder, every=25)
    for extra in (callbacks, []):
        # the first process's weights are those of all
        backbone = nn.Sequential(MLP(3, [3], seed=rank), nn.Dropout(0.2))
        model = MultitaskModel(backbone=backbone)
        engine = SVI(steps=100, checkpoint=checkpoint, callbacks=extra, **settings)
        try:
            result = fit(model, share(gaussian()), engine=engine, progress=False)
            break
        except KeyboardInterrupt:
            continue
    return model, result


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
    _, data, _, tolerance = CASES[name]
    expected = read_outs(*fitted(name, data()))
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.slow
def test_processes_with_batches_stay_together_and_go_on_from_their_checkpoints(folder):
    found = {
        (name, rank): load_file(folder / f"{name}-{rank}.safetensors")
        for name in ("whole", "parts")
        for rank in (0, 1)
    }
    expected = found["whole", 0]
    assert torch.isfinite(expected["bound"])
    for other in found.values():
        for key, value in expected.items():
            assert torch.equal(other[key], value), key


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
