"""Continuous-time control: SDE environments with known solutions, and what solves them."""

from girsanov.control.affine import AffinePolicy as AffinePolicy
from girsanov.control.affine import Occupation as Occupation
from girsanov.control.environments import ENVIRONMENTS as ENVIRONMENTS
from girsanov.control.environments import LQ as LQ
from girsanov.control.environments import Environment as Environment
from girsanov.control.grid_solution import GridSolution as GridSolution
from girsanov.control.hjb import HJB as HJB
from girsanov.control.lattice import Axis as Axis
from girsanov.control.lattice import Lattice as Lattice
from girsanov.control.linear_quadratic import LinearQuadratic as LinearQuadratic
from girsanov.control.linear_quadratic import LQSolution as LQSolution
from girsanov.control.solution import Solution as Solution
