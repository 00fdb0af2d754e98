"""Defects of the exact answers themselves, each with the law that must notice it."""

import pytest

from girsanov.problems import control, laws, line, moments, proximal, recursions, rewards
from girsanov.problems.limits import preference
from girsanov.processes import RectifiedFlow
from girsanov.samplers import GDDIM
from tests.laws import test_control, test_limits, test_line, test_problems, test_proximal, test_recursions
from tests.laws.mutation import Mutation, check, mutants


def value_law() -> None:
    test_control.test_the_value_is_that_of_the_untuned_chain(0.6, RectifiedFlow())


MUTATIONS = [
    Mutation(
        laws.Mixture,
        "posterior",
        "lam * white",
        "white",
        lambda: test_problems.test_the_posterior_mean_is_the_integral("rectified-flow", 0.4),
    ),
    Mutation(
        laws.Mixture,
        "posterior",
        "-torch.einsum(turn, white, basis)",
        "torch.einsum(turn, white, basis)",
        test_problems.test_the_score_is_the_gradient_of_the_log_density,
    ),
    Mutation(
        rewards,
        "tilt",
        "law.weights.log() + log_z",
        "law.weights.log()",
        lambda: test_problems.test_the_tilted_mixture_is_the_integral("quadratic", 0.8),
    ),
    Mutation(
        rewards,
        "log_mean_exp",
        "-0.5 * torch.logdet(mix)",
        "0.5 * torch.logdet(mix)",
        lambda: test_problems.test_the_tilted_mixture_is_the_integral("quadratic", 0.8),
    ),
    Mutation(
        moments.AffineKernel,
        "push",
        "self.std**2",
        "self.std",
        lambda: test_problems.test_sampler_moments_follow_the_published_recursion("ve", 1.0),
    ),
    Mutation(control, "transition", "((1 + e) / 2)", "(1 + e)", value_law),
    Mutation(
        control.OptimalControl,
        "score_correction",
        "2 * e / (1 + e)",
        "1.0",
        lambda: test_control.test_the_corrected_score_steers_the_sampler_to_the_trained_law(1.7),
    ),
    Mutation(
        control,
        "deployment_factor",
        "(e + d) * (1 + e)",
        "(e - d) * (1 + e)",
        lambda: test_control.test_the_deployment_factor(2.0, 0.5),
    ),
    Mutation(
        control,
        "mixture_value",
        "post.log_weights + logs",
        "logs",
        test_control.test_the_same_identity_on_a_mixture,
    ),
    Mutation(proximal, "prox", "z + reward.b", "z - reward.b", test_proximal.test_the_printed_numbers),
    Mutation(
        proximal.DiscreteFlow,
        "controls",
        "1 / self.weight",
        "self.weight",
        test_proximal.test_the_euler_numbers_of_the_notes,
    ),
    Mutation(
        recursions,
        "path_kl_limit",
        "kernel.std**2",
        "kernel.std",
        lambda: test_recursions.test_path_kl_limit_is_the_stationary_point_of_its_objective("gddim-1"),
    ),
    Mutation(
        recursions,
        "per_step_kl_limit",
        "moved.F.mT @ Q @ moved.F",
        "kernel.F.mT @ Q @ kernel.F",
        lambda: test_recursions.test_per_step_limit_is_where_the_policy_gradient_vanishes("gddim-1"),
    ),
    Mutation(
        recursions,
        "lean_adjoint_limit",
        "Pi @ kernel.F, K @ moved.c",
        "Pi @ moved.F, K @ moved.c",
        lambda: test_recursions.test_lean_adjoint_limit_answers_its_regression("gddim-1"),
    ),
    Mutation(
        recursions,
        "path_kl",
        "(2 * old.std**2)",
        "old.std**2",
        lambda: test_recursions.test_path_kl_is_the_monte_carlo_girsanov_weight(1.0, RectifiedFlow()),
    ),
    Mutation(
        preference,
        "dpo_shift",
        "B * c * s.sigma**2",
        "B * c * s.sigma",
        lambda: test_limits.test_the_dpo_shift_is_the_minimum_of_the_population_loss("velocity", RectifiedFlow()),
    ),
    Mutation(
        line,
        "line_path_kl_limit",
        "beta / kernel.std**2",
        "beta / (2 * kernel.std**2)",
        lambda: test_line.test_it_is_the_recursion_on_gaussian_data(GDDIM(1.0)),
    ),
]


@mutants(MUTATIONS)
def test_a_defect_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
