"""Evaluation: quality, diversity, drift from the reference, win rates, and the intervals of all of them."""

from girsanov.evaluation.distances import frechet as frechet
from girsanov.evaluation.distances import frechet_gaussian as frechet_gaussian
from girsanov.evaluation.distances import kid as kid
from girsanov.evaluation.distances import mmd as mmd
from girsanov.evaluation.distances import sliced_wasserstein as sliced_wasserstein
from girsanov.evaluation.diversity import manifold as manifold
from girsanov.evaluation.diversity import nearest as nearest
from girsanov.evaluation.diversity import pairwise as pairwise
from girsanov.evaluation.diversity import vendi as vendi
from girsanov.evaluation.diversity import within_class as within_class
from girsanov.evaluation.drift import energy as energy
from girsanov.evaluation.drift import kernel_kl as kernel_kl
from girsanov.evaluation.drift import path_kl as path_kl
from girsanov.evaluation.intervals import Interval as Interval
from girsanov.evaluation.intervals import bootstrap as bootstrap
from girsanov.evaluation.intervals import grouped_interval as grouped_interval
from girsanov.evaluation.intervals import mean_interval as mean_interval
from girsanov.evaluation.intervals import share_interval as share_interval
from girsanov.evaluation.intervals import win_rate as win_rate
from girsanov.evaluation.judge import Judge as Judge
from girsanov.evaluation.judge import Verdict as Verdict
from girsanov.evaluation.metrics import measure as measure
