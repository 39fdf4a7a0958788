"""Sharing architectures: what each computes, what its prior adds, and what training finds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bmm_multitask_learning import (
    SVI,
    CoordinateAscent,
    IndependentTasks,
    MultitaskModel,
    SharedGaussian,
    TaskData,
    fit,
    load,
)
from bmm_multitask_learning.backbones import (
    MLP,
    Column,
    CrossStitch,
    MixtureOfExperts,
    OwnColumn,
    ParameterPrior,
    Sluice,
    SoftSharing,
    Towers,
)
from bmm_multitask_learning.family import Family

# rows, inputs, columns, layers' widths
N, P, J, HIDDEN = 20, 3, 4, (6, 6)

KINDS: dict[str, Callable[[], nn.Module]] = {
    "towers": lambda: Towers(P, HIDDEN, num_columns=J),
    "soft": lambda: SoftSharing(P, HIDDEN, num_columns=J, strength=2.0),
    "evidence": lambda: SoftSharing(P, HIDDEN, num_columns=J),
    "stitch": lambda: CrossStitch(P, HIDDEN, num_columns=J),
    "sluice": lambda: Sluice(P, HIDDEN, num_columns=J, num_subspaces=3),
    "experts": lambda: MixtureOfExperts(P, HIDDEN, num_columns=J, num_experts=2),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def stir(network: nn.Module, scale: float = 0.3) -> nn.Module:
    """Move every parameter at random, off whatever is special in its start."""
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p += scale * normal(*p.shape, seed=i)
    return network


def nonlinear(num_rows: int = 30, seed: int = 0) -> TaskData:
    """J tasks, each a sine of its own inputs' sum."""
    x = normal(num_rows * J, P, seed=seed)
    task = torch.arange(J).repeat(num_rows)
    y = torch.sin((1 + task) * 0.7 * x.sum(1)) + 0.1 * normal(len(x), seed=seed + 1)
    return TaskData(x, y, task)


def model(backbone: nn.Module) -> MultitaskModel:
    family = Family(IndependentTasks(), reader=OwnColumn())
    return MultitaskModel(backbone=backbone, families={"tasks": family})


# ---- what they compute -------------------------------------------------------------------------


def test_a_tower_is_an_mlp():
    network, x = Towers(P, [5, 2], num_columns=J, activation="gelu", seed=7), normal(N, P)
    for j in range(J):
        alone = MLP(P, [5, 2], activation="gelu", seed=7 + j)
        torch.testing.assert_close(network(x)[:, j], alone(x))


def test_identity_stitches_leave_towers():
    network, towers = CrossStitch(P, [5, 2], num_columns=J), Towers(P, [5, 2], num_columns=J)
    network.stitches.data.copy_(torch.eye(J).double())
    x = normal(N, P)
    torch.testing.assert_close(network(x), towers(x))
    stir(network)
    assert not torch.allclose(network(x), towers(x))


def test_stitches_mix_each_layer():
    """By loops over columns."""
    network, x = stir(CrossStitch(P, [5, 2], num_columns=2)), normal(N, P)
    h = [x, x]
    for l in range(2):
        weight, bias = network.towers.weights[l], network.towers.biases[l]
        g = [torch.tanh(h[k] @ weight[k] + bias[k]) for k in range(2)]
        alpha = network.stitches[l]
        h = [alpha[j, 0] * g[0] + alpha[j, 1] * g[1] for j in range(2)]
    torch.testing.assert_close(network(x)[..., 1:], torch.stack(h, 1))


def test_one_subspace_and_the_last_layer_are_cross_stitch():
    sluice = stir(Sluice(P, HIDDEN, num_columns=J, num_subspaces=1))
    stitch = CrossStitch(P, HIDDEN, num_columns=J)
    stitch.load_state_dict({n: v for n, v in sluice.state_dict().items() if n != "logits"})
    sluice.logits.data.copy_(torch.tensor([-torch.inf, 0.0]))
    x = normal(N, P)
    torch.testing.assert_close(sluice(x), stitch(x))


def test_a_sluice_mixes_its_layers():
    network, x = stir(Sluice(P, HIDDEN, num_columns=J)), normal(N, P)
    beta = torch.rand(J, generator=torch.Generator().manual_seed(0)).double()
    layers = []
    for logits in ([0.0, -torch.inf], [-torch.inf, 0.0]):
        network.logits.data.copy_(torch.tensor(logits))
        layers.append(network(x)[..., 1:])
    assert not torch.allclose(*layers)
    network.logits.data.copy_(torch.stack([beta, 1 - beta], 1).log())
    torch.testing.assert_close(network.mixture, torch.stack([beta, 1 - beta], 1))
    mixed = beta[:, None] * layers[0] + (1 - beta)[:, None] * layers[1]
    torch.testing.assert_close(network(x)[..., 1:], mixed)


def test_stitches_of_subspaces():
    """A stitch carries one part of one column to one part of another."""
    network, x = Sluice(P, [6], num_columns=2, num_subspaces=2), normal(N, P)
    alone = Towers(P, [6], num_columns=2)(x)[..., 1:]
    alpha = torch.eye(4).double()
    alpha[0, 3] = 0.5  # column 0, first part, takes of column 1, second part
    network.stitches.data.copy_(alpha)
    expected = alone.clone()
    expected[:, 0, :3] += 0.5 * alone[:, 1, 3:]
    torch.testing.assert_close(network(x)[..., 1:], expected)


@torch.no_grad()
def test_orthogonality_of_subspaces():
    network = Sluice(P, HIDDEN, num_columns=J, num_subspaces=3, orthogonality=0.7)
    total = 0.0
    for weight in network.towers.weights:
        for j in range(J):
            first, second, third = weight[j].split(2, 1)
            for a, b in ((first, second), (first, third), (second, third)):
                total += float((a.T @ b).square().sum())
    assert float(network.log_prior()) == pytest.approx(-0.7 * total)
    assert float(Sluice(P, HIDDEN, num_columns=J, num_subspaces=1).log_prior()) == 0


def test_one_expert_is_a_shared_network():
    network = stir(MixtureOfExperts(P, [5, 2], num_columns=J, num_experts=1))
    shared, x = MLP(P, [5, 2]), normal(N, P)
    linear = [layer for layer in shared.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for l, layer in enumerate(linear):
            layer.weight.copy_(network.experts.weights[l][0].T)
            layer.bias.copy_(network.experts.biases[l][0])
    for j in range(J):
        torch.testing.assert_close(network(x)[:, j], shared(x))


def test_gates_mix_experts():
    network = MixtureOfExperts(P, [5], num_columns=2, num_experts=3)
    x, experts = normal(N, P), Towers(P, [5], num_columns=3)
    mean = experts(x).mean(1, keepdim=True).expand(-1, 2, -1)
    torch.testing.assert_close(network(x), mean)
    network.gate_weights.data.copy_(normal(2, 3, P))
    network.gate_biases.data.copy_(normal(2, 3, seed=1))
    gates = network.gates(x)
    for j in range(2):
        logits = x @ network.gate_weights[j].T + network.gate_biases[j]
        torch.testing.assert_close(gates[:, j], logits.softmax(-1))
        expected = (gates[:, j, :, None] * experts(x)).sum(1)
        torch.testing.assert_close(network(x)[:, j], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind):
    network, x = stir(KINDS[kind]()), normal(N, P)
    torch.manual_seed(0)
    prior = network.log_prior() if isinstance(network, ParameterPrior) else 0.0
    ((network(x) * normal(N, J, HIDDEN[-1] + 1, seed=9)).sum() + prior).backward()
    for name, parameter in network.named_parameters():
        assert bool((parameter.grad != 0).all()), name


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_by_themselves_and_start_from_the_seed(kind):
    network, x = KINDS[kind]().eval(), normal(N, P)
    torch.testing.assert_close(network(x)[3:5], network(x[3:5]))
    assert network(x).shape == (N, J, HIDDEN[-1] + 1)
    assert bool((network(x)[..., 0] == 1).all())
    torch.manual_seed(1)
    assert torch.equal(KINDS[kind]().eval()(x), network(x))


# ---- soft sharing ------------------------------------------------------------------------------


@torch.no_grad()
def test_columns_that_are_alike_are_towers():
    network, towers = (
        SoftSharing(P, [5, 2], num_columns=J, strength=1.0),
        Towers(P, [5, 2], num_columns=J),
    )
    x, alone = normal(N, P), MLP(P, [5, 2])
    torch.testing.assert_close(network(x), alone(x)[:, None].expand(-1, J, -1))
    theirs = [*towers.towers.weights, *towers.towers.biases]
    for delta, theta in zip(network.offsets, theirs, strict=True):
        delta.copy_(theta - theta[:1])  # the first tower is where all start
    torch.testing.assert_close(network(x), towers(x))


@torch.no_grad()
def test_the_penalty_of_soft_sharing():
    network = SoftSharing(P, [5, 2], num_columns=J, strength=3.0)
    assert float(network.log_prior()) == 0  # all columns start as one
    stir(network)
    total = sum(float(d[j].square().sum()) for d in network.offsets for j in range(J))
    assert float(network.log_prior()) == pytest.approx(-1.5 * total)
    assert torch.equal(network.precision, torch.full((2,), 3.0).double())
    x = normal(N, P)
    assert torch.equal(network.train()(x), network.eval()(x))  # no law, no draws


def test_the_strength_by_evidence():
    r"""-KL(q || p) + log p(τ) by torch, at the τ that is best for it."""
    network = stir(SoftSharing(P, [5], num_columns=J))
    tau = network.precision[0]
    mean = network.offsets
    scale = [s.exp() for s in network.log_spreads]

    def bound(tau: Tensor) -> Tensor:
        total = torch.distributions.Gamma(1.0, 0.01).log_prob(tau)
        for m, s in zip(mean, scale, strict=True):
            q = torch.distributions.Normal(m, s)
            p = torch.distributions.Normal(torch.zeros_like(m), tau.rsqrt())
            total = total - torch.distributions.kl_divergence(q, p).sum()
        return total

    constant = math.log(0.01)  # of the Gamma density
    torch.testing.assert_close(network.log_prior(), bound(tau) - constant)
    for factor in (0.9, 1.1):
        assert bound(factor * tau) < bound(tau)
    # the gradient is that of the bound at a fixed τ
    parameters = [*network.offsets, *network.log_spreads]
    ours = torch.autograd.grad(network.log_prior(), parameters)
    theirs = torch.autograd.grad(bound(tau), parameters)
    torch.testing.assert_close(ours, theirs)


def test_draws_of_soft_sharing():
    network, x = SoftSharing(P, [5], num_columns=J), normal(N, P)
    torch.manual_seed(0)
    first, second = network.train()(x), network(x)
    assert not torch.equal(first, second)
    assert torch.equal(network.eval()(x), network(x))
    many = torch.stack([network.train()(x) for _ in range(400)])
    torch.testing.assert_close(many.mean(0), network.eval()(x), atol=0.01, rtol=0)


@torch.no_grad()
def distance(network: nn.Module) -> float:
    return max(float((d - d.mean(0)).abs().max()) for d in network.offsets)


def test_strength_holds_columns_together():
    data, spread = nonlinear(), {}
    for strength in (1e-6, 1e2, 1e8):
        network = SoftSharing(P, HIDDEN, num_columns=J, strength=strength)
        fit(model(network), {"tasks": data}, engine=SVI(steps=60), progress=False)
        spread[strength] = distance(network)
    assert spread[1e-6] > 0.1
    assert spread[1e8] < 0.01
    assert spread[1e8] < spread[1e2] < spread[1e-6]


# ---- in a model --------------------------------------------------------------------------------


class Believing(ParameterPrior):
    """Inputs as they are, and a parameter with a prior."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.theta

    def log_prior(self) -> Tensor:
        return -0.5 * (self.theta - 5).square()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.theta


@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_prior_of_parameters_enters_the_bound_once(batch_size):
    data = nonlinear()
    results = []
    for backbone in (Believing(), Plain()):
        net = MultitaskModel(SharedGaussian("diagonal"), backbone=nn.Sequential(backbone))
        engine = SVI(steps=1, lr=0.1, batch_size=batch_size)
        results.append((fit(net, data, engine=engine, progress=False), backbone))
    (with_prior, believing), (without, plain) = results
    assert with_prior.history[0] - without.history[0] == pytest.approx(-4.5)
    assert float(plain.theta.detach()) == 2.0
    assert float(believing.theta.detach()) == pytest.approx(2.1)  # Adam's step towards 5
    assert with_prior.bound - without.bound == pytest.approx(-0.5 * 2.9**2)


@pytest.mark.parametrize("kind", ["towers", "stitch", "experts"])
def test_the_closed_form_trains_columns(kind):
    data, network = nonlinear(), KINDS[kind]()
    before = [p.detach().clone() for p in network.parameters()]
    engine = CoordinateAscent(max_iter=3)
    result = fit(model(network), {"tasks": data}, engine=engine, progress=False)
    assert result.history[-1] > result.history[0]
    assert not all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["soft", "evidence", "sluice"])
def test_the_closed_form_refuses_priors_of_parameters(kind):
    net = model(KINDS[kind]())
    with pytest.raises(TypeError, match=r"parameters have a prior; use SVI\(\)"):
        fit(net, {"tasks": nonlinear()}, engine=CoordinateAscent(), progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_they_learn_and_are_saved(kind, tmp_path):
    data, network = nonlinear(), KINDS[kind]()
    net = model(network)
    fit(net, {"tasks": data}, engine=SVI(steps=60, lr=0.03), progress=False)
    task = data.task.tolist()
    prediction = net.predict(data.x, task)
    assert float((prediction.mean - data.y).square().mean()) < 0.4  # variance .5
    net.save(tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.predict(data.x, task).mean, prediction.mean)
    assert vars(again.backbone)["_arguments"] == vars(network)["_arguments"]


def test_a_family_a_column():
    """Families with a column each, of their own sizes, equal one family of them all."""
    network = Towers(P, [5], num_columns=2).requires_grad_(False)
    data = nonlinear()
    parts = {}
    for j in range(2):
        own = torch.nonzero(data.task == j)[: 20 + j, 0]
        parts[f"t{j}"] = TaskData(data.x[own], data.y[own], ["a"] * len(own))
    families = {name: Family(reader=Column(j)) for j, name in enumerate(parts)}
    net = MultitaskModel(backbone=network, families=families)
    fit(net, parts, progress=False)
    for j, (name, part) in enumerate(parts.items()):
        alone = MultitaskModel()
        fit(alone, TaskData(network(part.x)[:, j], part.y, part.task), progress=False)
        torch.testing.assert_close(net[name].weights.mean, alone.weights.mean)


def test_new_tasks_read_the_mean_of_columns():
    data, network = nonlinear(), Towers(P, [5], num_columns=J).requires_grad_(False)
    net = model(network)
    fit(net, {"tasks": data}, progress=False)
    with pytest.warns(UserWarning, match="outside the fit"):
        assert net.predict(data.x[:5], "new").mean.shape == (5,)
    read = OwnColumn()(network(data.x[:2]), data.x[:2], torch.tensor([J, 1]))
    torch.testing.assert_close(read[0], network(data.x[:1])[0].mean(0))
    torch.testing.assert_close(read[1], network(data.x[1:2])[0, 1])


def two_pairs(seed: int, num_rows: int = 80) -> TaskData:
    """Four tasks: the first two read the same three hidden units, the last two three others."""
    units = normal(2, 6, 3, seed=seed)
    x, task = normal(4 * num_rows, 6, seed=seed + 100), torch.arange(4).repeat(num_rows)
    hidden = torch.tanh(1.6 * torch.einsum("np,npd->nd", x, units[task // 2]))
    y = (hidden * normal(4, 3, seed=seed + 200)[task]).sum(1)
    return TaskData(x, y + 0.1 * normal(len(x), seed=seed + 300), task)


@pytest.mark.slow
def test_stitches_find_related_tasks():
    """On the mean of five draws; of single draws it is true of most."""
    same, other = [], []
    for seed in range(5):
        network = CrossStitch(6, [6], num_columns=4, seed=seed)
        engine = SVI(steps=200, lr=0.03)
        fit(model(network), {"tasks": two_pairs(seed)}, engine=engine, progress=False)
        size = network.stitches[-1].detach().abs()
        size = (size + size.T) / 2
        same.append((size[0, 1] + size[2, 3]) / 2)
        other.append(size[:2, 2:].mean())
    assert torch.stack(same).mean() > 1.5 * torch.stack(other).mean(), (same, other)


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Towers(P, [5], num_columns=0), "num_columns must be at least 1; got 0"),
        (lambda: Towers(P, [], num_columns=2), "at least one layer"),
        (lambda: MixtureOfExperts(P, [5], num_columns=2, num_experts=0), "got 2 and 0"),
        (lambda: Sluice(P, [6, 4], num_columns=2), r"one width.*\[6, 4\]"),
        (lambda: Sluice(P, [5, 5], num_columns=2), "multiple of num_subspaces"),
        (lambda: Sluice(P, [4], num_columns=2, orthogonality=-1.0), "not be negative; got -1"),
        (lambda: SoftSharing(P, [4], num_columns=2, strength=0.0), "positive and finite"),
        (lambda: SoftSharing(P, [4], num_columns=2, strength=math.inf), "positive and finite"),
        (lambda: Column(-1), "0 or more; got -1"),
        (lambda: Column(2)(normal(5, 2, 3), normal(5, 1), torch.zeros(5).long()), "2 columns"),
        (lambda: OwnColumn()(normal(5, 2), normal(5, 1), torch.zeros(5).long()), r"\(N, J, D\)"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
