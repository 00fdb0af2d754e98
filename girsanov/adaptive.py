"""The rule that moves the weight of a penalty, so that a distance stays near a target.

    distance > (1 + slack) target:  weight *= factor;      distance < (1 - slack) target:  weight /= factor

and the weight stays within its bounds. Both trust regions use it: that of agents in an environment and that of score as
action. Reference: Zhao et al. 2023, arXiv:2305.18901 (CPPO).
"""


def adapted(
    weight: float, distance: float, target: float, *, slack: float, factor: float, least: float, most: float
) -> float:
    """The next weight, after an iteration that went as far as ``distance``.

    Args:
        weight: of the iteration.
        distance, target: what was seen, and what is aimed at.
        slack: how far it may be off (a share of the target) before the weight moves.
        factor: by which the weight moves.
        least, most: where the weight ends.
    """
    if distance > (1 + slack) * target:
        weight *= factor
    elif distance < (1 - slack) * target:
        weight /= factor
    return min(max(weight, least), most)
