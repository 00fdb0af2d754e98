"""Laws of the prediction table: all conversions against the truth, round trips, singular pairs, guidance."""

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.models import Guided, velocity
from girsanov.predictions import ROWS, Prediction, affine_map, convert, is_singular
from girsanov.problems import Classes, Gaussian
from girsanov.processes import Process
from tests.laws.cases import EVERY_PROCESS, F64, KINDS, PLANE, normal

X0, EPS = normal(5, 3, seed=1), normal(5, 3, seed=2)
TIMES = (0.0005, 0.1237, 0.5, 0.9411, 0.999)  # the first lies below the table's first point


def truth(process: Process, t: float, kind: Prediction) -> torch.Tensor:
    """The prediction by its meaning; the velocity as the time derivative of ``x_t`` with x_0 and eps held."""
    c = process(t)
    if kind == "velocity":
        time = torch.tensor(t, dtype=F64, requires_grad=True)
        at = process(time)
        slopes = (
            torch.autograd.grad(v, time, retain_graph=True)[0] if v.requires_grad else 0.0 for v in (at.alpha, at.sigma)
        )
        return sum(k * part for k, part in zip(slopes, (X0, EPS), strict=True))
    return {"x0": X0, "eps": EPS, "score": -EPS / c.sigma, "v": c.alpha * EPS - c.sigma * X0}[kind]


def check_conversions(process: Process) -> None:
    """All 25 conversions give the truth (1e-8 relative: eps from score at sigma = 1e-3 costs digits), and come back."""
    for t in TIMES:
        c = process(t)
        x = c.alpha * X0 + c.sigma * EPS
        for source in KINDS:
            p = truth(process, t, source)
            for target in KINDS:
                q = convert(p, x, c, source, target)
                assert torch.allclose(q, truth(process, t, target), rtol=1e-8, atol=1e-8), (t, source, target)
                assert torch.allclose(convert(q, x, c, target, source), p, rtol=1e-7, atol=1e-7), (t, target, source)


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_conversions(name: str) -> None:
    check_conversions(EVERY_PROCESS[name])


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_any_combination_of_x0_and_eps(name: str) -> None:
    """``affine_map`` gives A x_0 + B eps from every kind, A and B chosen at random, one pair a sample."""
    process, t = EVERY_PROCESS[name], torch.tensor([0.1, 0.35, 0.6, 0.8, 0.95], dtype=F64)
    c, A, B = process(t), normal(5, seed=3), normal(5, seed=4)
    x = c.alpha[:, None] * X0 + c.sigma[:, None] * EPS
    for kind in KINDS:
        p = torch.stack([truth(process, float(u), kind)[i] for i, u in enumerate(t)])
        c_x, c_p = affine_map(c, kind, A, B)
        assert torch.allclose(c_x[:, None] * x + c_p[:, None] * p, A[:, None] * X0 + B[:, None] * EPS, atol=1e-9)


@pytest.mark.parametrize("name", EVERY_PROCESS)
@pytest.mark.parametrize("law", [Gaussian([0.8], [[1.69]]), PLANE], ids=["gaussian", "mixture"])
def test_exact_networks_agree(name: str, law: Gaussian) -> None:
    """The five exact networks of a law are one statement: each converts into each, at the data end too."""
    process = EVERY_PROCESS[name]
    for t in (0.003, 0.4, 0.97):
        c = process(t)
        x = law.noised(float(c.alpha), float(c.sigma)).sample(7, torch.Generator().manual_seed(5))
        out = {kind: law.model(process, kind)(x, torch.tensor(t, dtype=F64)) for kind in KINDS}
        for source in KINDS:
            for target in KINDS:
                assert torch.allclose(convert(out[source], x, c, source, target), out[target], rtol=1e-7, atol=1e-7)


def check_score_is_a_gradient(process: Process) -> None:
    """The score that a velocity network implies is the gradient of the log density of the noised mixture, to 1e-9."""
    for t in (0.05, 0.5, 0.95):
        c = process(t)
        noised = PLANE.noised(float(c.alpha), float(c.sigma))
        x = noised.sample(6, torch.Generator().manual_seed(6)).requires_grad_(True)
        (score,) = torch.autograd.grad(noised.log_prob(x).sum(), x)
        v = PLANE.model(process, "velocity")(x.detach(), torch.tensor(t, dtype=F64))
        assert torch.allclose(convert(v, x.detach(), c, "velocity", "score"), score, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_score_is_a_gradient(name: str) -> None:
    check_score_is_a_gradient(EVERY_PROCESS[name])


@pytest.mark.parametrize("kind", KINDS)
def test_times_of_a_batch_with_as_many_samples_as_columns(kind: Prediction) -> None:
    """B = width = 3: a [B] factor must go along the batch, not along the data."""
    process, t = EVERY_PROCESS["cosine"], torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    p, x = normal(3, 3, seed=7), normal(3, 3, seed=8)
    for target in KINDS:
        together = convert(p, x, process(t), kind, target)
        alone = [convert(p[i : i + 1], x[i : i + 1], process(t[i]), kind, target) for i in range(3)]
        assert torch.allclose(together, torch.cat(alone), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("t", "source"),
    [(1.0, "eps"), (1.0, "score"), (0.0, "x0"), (0.0, "score")],
)
def test_singular_pairs_are_refused(t: float, source: Prediction) -> None:
    """At alpha = 0 eps and score do not know x_0, at sigma = 0 x0 does not know eps (and the score is infinite)."""
    c = EVERY_PROCESS["rectified-flow"](t)
    assert is_singular(c, source)
    with pytest.raises(GirsanovError) as error:
        convert(X0, X0, c, source, "velocity")
    assert str(error.value) == (
        f"a {source} prediction does not determine the sample at alpha = {1 - t}, sigma = {t}: start the grid below "
        "t = 1 (for example start=0.999) and evaluate above t = 0, or use a velocity model"
    )


@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("name", ["rectified-flow", "cosine", "ve", "vp-table"])
def test_the_other_pairs_hold_at_the_ends(name: str, t: float) -> None:
    """Velocity and v know both parts at both ends; x0 at t = 1 and eps at t = 0 do too."""
    process = EVERY_PROCESS[name]
    c = process(t)
    x = c.alpha * X0 + c.sigma * EPS
    for source in ("velocity", "v", "x0" if t else "eps"):
        p = truth(process, t, source) if source != "velocity" else c.d_alpha * X0 + c.d_sigma * EPS
        for target, value in (("x0", X0), ("eps", EPS)):
            assert torch.allclose(convert(p, x, c, source, target), value, rtol=1e-9, atol=1e-9)


def test_unknown_kinds_are_told() -> None:
    c = EVERY_PROCESS["vp"](0.5)
    with pytest.raises(GirsanovError) as error:
        convert(X0, X0, c, "noise", "x0")  # type: ignore[arg-type]
    assert str(error.value) == "unknown prediction 'noise': choose one of x0, eps, score, velocity, v"


def test_a_batch_of_the_wrong_number_of_times_is_told() -> None:
    c = EVERY_PROCESS["vp"](torch.full((4,), 0.5, dtype=F64))
    with pytest.raises(GirsanovError) as error:
        convert(X0, X0, c, "eps", "x0")
    assert str(error.value) == "4 times for 5 samples: give one time, or one per sample"


@pytest.mark.parametrize("kind", ROWS)
def test_guiding_commutes_with_converting(kind: Prediction) -> None:
    """The velocity of a guided model of any kind is the guided velocity: w = 3, two classes, 1e-9."""
    process, t = EVERY_PROCESS["vp"], torch.tensor(0.4, dtype=F64)
    classes = Classes([Gaussian([1.0, 0.0], torch.eye(2)), PLANE])
    cond, x = classes.cond([0, 1, 1, 0], null=True), normal(4, 2, seed=9)
    guided = velocity(Guided(classes.model(process, kind), 3.0), x, t, cond)
    plain = classes.model(process, "velocity")
    with_class, without = plain(x, t, cond), plain(x, t, cond.null)
    assert torch.allclose(guided, without + 3.0 * (with_class - without), rtol=1e-8, atol=1e-9)
