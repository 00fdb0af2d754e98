r"""Score as action with linear scores: value, policy gradient and optimum as ordinary differential equations.

Data ``N(0, s_0^2)`` on the line, ``r = -a x^2 / 2``, actions ``N(-Theta_t x, variance_t)``, reference ``-Theta^0_t
x``. With lever l, price K and noise ``eta g`` of the sampler (``methods/continuous/rate.py``) the value is ``V = P_t
x^2 / 2 + c_t``. In our clock, data at t = 0,

.. math:: \dot P = -2 (f + l \Theta) P - K (\Theta - \Theta^0)^2, \qquad
          \dot c = \tfrac12 \eta^2 g^2 P - \tfrac12 K\, variance, \qquad P_0 = -a,\; c_0 = 0

and the second moment M of the state runs the other way, ``-dM/dt = -2 (f + l Theta) M + eta^2 g^2``. The derivative of
``J = E V(x_T)`` in Theta at a time is

.. math:: \frac{\delta J}{\delta \Theta_t} = -\big( l P_t + K (\Theta_t - \Theta^0_t) \big) M_t

which vanishes at ``Theta = Theta^0 - l P / K``; there P is that of ``problems.control.OptimalControl``.

Reference: derived here from the policy gradient of arXiv:2502.01819.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

from girsanov.methods.continuous.rate import AdvantageRate

Gain = Callable[[float], float]
"""A number for every time."""

TOLERANCE = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12, "dense_output": True}


@dataclass(frozen=True)
class LinearScore:
    """A linear policy between two times.

    Attributes:
        rate: process, price and eta.
        a: curvature of the reward.
        theta, theta0: slopes of policy and reference.
        start, end: the noisy and the clean time; the reward is paid at the end.
        moment: ``E x^2`` at the start.
        variance: of the policy's exploration at a time.
        breaks: times at which theta jumps.
    """

    rate: AdvantageRate
    a: float
    theta: Gain
    theta0: Gain
    start: float
    moment: float
    end: float = 0.0
    variance: Gain = lambda t: 0.0
    breaks: Sequence[float] = ()

    def _at(self, t: float) -> tuple[float, float, float, float]:
        """``f + l Theta, l, K, eta^2 g^2`` at a time."""
        lever, stiffness = float(self.rate.lever(t)), float(self.rate.stiffness(t))
        pull = float(self.rate.process.f(t)) + lever * self.theta(t)
        eta2 = self.rate.eta**2
        return pull, lever, stiffness, 2 * eta2 / (1 + eta2) * lever  # the lever is (1 + eta^2) g^2 / 2

    def slope(self, t: float, P: float) -> tuple[float, float]:
        """``(dP/dt, dc/dt)``."""
        pull, _, stiffness, noise = self._at(t)
        gap = self.theta(t) - self.theta0(t)
        return -2 * pull * P - stiffness * gap**2, 0.5 * noise * P - 0.5 * stiffness * self.variance(t)

    def _edges(self) -> list[float]:
        inside = {b for b in self.breaks if self.end < b < self.start}
        return sorted({self.end, self.start} | inside)

    def value(self) -> Callable[[float], tuple[float, float]]:
        """``t -> (P, c)``."""
        pieces, state, edges = [], np.array([-self.a, 0.0]), self._edges()
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            middle = self._inside(low, high)
            solved = solve_ivp(lambda t, y, m=middle: self.slope(m(t), y[0]), (low, high), state, **TOLERANCE)
            pieces.append((low, high, solved.sol))
            state = solved.y[:, -1]

        def at(t: float) -> tuple[float, float]:
            piece = next(sol for low, high, sol in pieces if low <= t <= high)
            P, c = piece(t)
            return float(P), float(c)

        return at

    @staticmethod
    def _inside(low: float, high: float) -> Callable[[float], float]:
        """Keeps a time inside an open interval, so that a jump at its ends is seen from within."""
        edge = 1e-13 * (high - low)
        return lambda t: min(max(t, low + edge), high - edge)

    def objective(self) -> float:
        """``J``."""
        P, c = self.value()(self.start)
        return 0.5 * P * self.moment + c

    def derivative(self, low: float, high: float) -> float:
        """``int delta J / delta Theta_t dt`` over an interval: the derivative in a constant added to Theta there."""
        value, total, moment = self.value(), 0.0, self.moment
        edges = sorted({*self._edges(), low, high}, reverse=True)
        for above, below in zip(edges[:-1], edges[1:], strict=True):
            counted, middle = low <= below and above <= high, self._inside(below, above)

            def field(t: float, y: np.ndarray, counted: bool = counted, middle: Gain = middle) -> tuple[float, float]:
                pull, lever, stiffness, noise = self._at(middle(t))
                gap = self.theta(middle(t)) - self.theta0(middle(t))
                density = -(lever * value(t)[0] + stiffness * gap) * y[0]
                return 2 * pull * y[0] - noise, -density if counted else 0.0

            end = solve_ivp(field, (above, below), np.array([moment, total]), **TOLERANCE).y[:, -1]
            moment, total = float(end[0]), float(end[1])
        return total
