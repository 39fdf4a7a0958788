"""Saved models predict as before, bit for bit; broken files say what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from torch import nn

from bmm_multitask_learning import (
    Bernoulli,
    Categorical,
    CoordinateAscent,
    Family,
    Gaussian,
    IndependentTasks,
    LatentHierarchy,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    TaskClustering,
    TaskData,
    fit,
    load,
)
from bmm_multitask_learning.backbones import MLP
from bmm_multitask_learning.priors import TaskPrior


def make_data(targets: str = "real") -> TaskData:
    generator = torch.Generator().manual_seed(3)
    task = np.repeat(["a", "b", "c"], [7, 2, 11])
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(20, generator=generator, dtype=torch.float64)
    y = {"real": y, "binary": (y > 0).double(), "class": (y > 0).double() + (y > 1)}[targets]
    features = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    return TaskData(x, y, task, task_features=features)


MODELS = {
    "independent": (lambda: MultitaskModel(prior=IndependentTasks()), "real"),
    "pooled": (lambda: MultitaskModel(prior=PooledTasks()), "real"),
    "shared": (lambda: MultitaskModel(prior=SharedGaussian("diagonal")), "real"),
    "noise by task": (lambda: MultitaskModel(likelihood=Gaussian(noise="task")), "real"),
    "clusters": (
        lambda: MultitaskModel(prior=TaskClustering("auto", gating=True, task_mean=True)),
        "real",
    ),
    "hierarchy": (lambda: MultitaskModel(prior=LatentHierarchy()), "real"),
    "bernoulli": (lambda: MultitaskModel(likelihood=Bernoulli()), "binary"),
    "categorical": (lambda: MultitaskModel(likelihood=Categorical(3)), "class"),
    "mlp": (lambda: MultitaskModel(backbone=MLP(5, [4], seed=1)), "real"),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = MultitaskModel()
    fit(model, make_data(), progress=False)
    model.save(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("make", "targets"), MODELS.values(), ids=MODELS)
def test_same_prediction(make, targets, tmp_path) -> None:
    data = make_data(targets)
    model = make()
    fit(model, data, engine=CoordinateAscent(max_iter=5), progress=False)
    model.save(tmp_path)
    again = load(tmp_path)
    features = {"new": [0.3, -1.0]}
    for task in ("a", "b", "new"):
        if task == "new":
            with pytest.warns(UserWarning, match="outside the fit"):
                old = model.predict(data.x, task, task_features=features)
            with pytest.warns(UserWarning, match="outside the fit"):
                new = again.predict(data.x, task, task_features=features)
        else:
            old, new = model.predict(data.x, task), again.predict(data.x, task)
        assert torch.equal(old.mean, new.mean)
        assert torch.equal(old.latent_std, new.latent_std)
    assert torch.equal(model.relations(), again.relations())
    assert model.explain_tasks() == again.explain_tasks()
    assert again.prior.get_params() == model.prior.get_params()


def test_same_prediction_in_a_fresh_process(saved: Path) -> None:
    x = make_data().x.numpy()
    np.save(saved / "x.npy", x)
    script = (
        "import sys, numpy as np; from bmm_multitask_learning import load\n"
        "folder = sys.argv[1]; x = np.load(folder + '/x.npy')\n"
        "np.save(folder + '/mean.npy', load(folder).predict(x, 'b').mean)"
    )
    subprocess.run([sys.executable, "-c", script, str(saved)], check=True)
    np.testing.assert_array_equal(np.load(saved / "mean.npy"), load(saved).predict(x, "b").mean)


def test_families_and_their_names_survive(tmp_path) -> None:
    model = MultitaskModel(
        families={
            "marks": Family(SharedGaussian("isotropic")),
            "passed": Family(likelihood=Bernoulli()),
        }
    )
    data = {"marks": make_data(), "passed": make_data("binary")}
    fit(model, data, progress=False)
    model.save(tmp_path)
    again = load(tmp_path)
    x = data["marks"].x
    assert torch.equal(
        model.predict(x, "c", family="passed").mean, again.predict(x, "c", family="passed").mean
    )
    assert again["marks"].prior.covariance == "isotropic"


class UnitPrior(TaskPrior):
    """A prior of a user's own: w ~ N(0, scale² I), nothing to infer but one precision."""

    closed_form = False

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def register_hyperparameters(self, like):
        self.register_buffer("precision", like.new_ones(()))

    def hyperprior(self):
        one = torch.ones_like(self.precision)
        return {"precision": pyro.sample("precision", pyro.distributions.Gamma(2 * one, one))}

    def forward(self, eta):
        sizes = self.sizes
        std = self.scale * eta["precision"].rsqrt()
        shape = (sizes.num_tasks, sizes.num_outputs, sizes.num_features)
        return pyro.distributions.Normal(torch.zeros_like(std).expand(shape), std).to_event(3)

    def population(self, eta, posterior, task_features, num_tasks):
        raise ValueError("no new tasks")

    def relations(self):
        return torch.eye(self.sizes.num_tasks)


def test_own_prior_is_named_at_load(tmp_path) -> None:
    from bmm_multitask_learning import SVI

    data = make_data()
    model = MultitaskModel(prior=UnitPrior(scale=0.5))
    fit(model, data, engine=SVI(steps=2), progress=False)
    model.save(tmp_path)
    with pytest.raises(ValueError, match=r"load\(path, classes=\[UnitPrior\]\)"):
        load(tmp_path)
    again = load(tmp_path, classes=[UnitPrior])
    assert again.prior.scale == 0.5
    assert torch.equal(model.predict(data.x, "a").mean, again.predict(data.x, "a").mean)


def test_own_backbone_is_given_at_load(tmp_path) -> None:
    data = make_data()
    model = MultitaskModel(backbone=nn.Linear(5, 3, dtype=torch.float64).requires_grad_(False))
    fit(model, data, progress=False)
    model.save(tmp_path)
    with pytest.raises(ValueError, match=r"backbone of the class Linear.*load\(path, backbone="):
        load(tmp_path)
    with pytest.raises(ValueError, match="has shape"):
        load(tmp_path, backbone=nn.Linear(5, 4, dtype=torch.float64))
    again = load(tmp_path, backbone=nn.Linear(5, 3, dtype=torch.float64))
    assert torch.equal(model.predict(data.x, "a").mean, again.predict(data.x, "a").mean)


def test_unfitted_model_is_not_saved(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="call fit"):
        MultitaskModel().save(tmp_path)


def test_missing_folder_and_files(saved: Path, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="incomplete"):
        load(saved)


def test_truncated_tensors(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load(saved)


def test_truncated_config(saved: Path) -> None:
    file = saved / "config.json"
    file.write_text(file.read_text()[:-30])
    with pytest.raises(ValueError, match="not readable JSON"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something else"}, "not written by this library"),
        ({"format_version": 99}, r"format version 99; this release reads up to 1"),
        ({"families": None}, "not a complete model description"),
        ({"dtype": "torch.int8"}, "not a complete model description"),
    ],
)
def test_foreign_newer_or_incomplete_config(saved: Path, change, message) -> None:
    file = saved / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_tensors_of_another_model(saved: Path, tmp_path) -> None:
    other = MultitaskModel(prior=TaskClustering(2))
    fit(other, make_data(), progress=False)
    other.save(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks|does not have"):
        load(saved)
