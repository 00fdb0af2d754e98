"""What linear-quadratic environments share: their problem in homogeneous coordinates gives their solutions."""

from abc import abstractmethod
from functools import cached_property

from girsanov.control.environments.base import Environment
from girsanov.control.linear_quadratic import LinearQuadratic, LQSolution


class LinearEnvironment(Environment):
    """An environment that is a ``LinearQuadratic`` problem; refused where it or its chain has no best policy."""

    def __post_init__(self) -> None:
        self.solution()
        self.chain()

    @property
    @abstractmethod
    def problem(self) -> LinearQuadratic:
        """The problem in homogeneous coordinates, in continuous time."""

    def solution(self) -> LQSolution:
        """The optimum in continuous time; ``.evaluate(policy)`` for any affine policy."""
        return self._continuous

    def chain(self) -> LQSolution:
        """The optimum of the Euler-Maruyama chain; ``.evaluate(policy)`` for any affine policy."""
        return self._chain

    @cached_property
    def _continuous(self) -> LQSolution:
        return self.problem.optimum()

    @cached_property
    def _chain(self) -> LQSolution:
        return self.problem.at(self.dt).optimum()
