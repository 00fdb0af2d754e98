"""Studies: questions that take several runs. ``STUDIES`` lists them as ``module:function``, imported when run."""

STUDIES: dict[str, str] = {
    "stochasticity": "girsanov.studies.stochasticity:run_study",
    "values": "girsanov.studies.values:run_study",
    "discretisation": "girsanov.studies.discretisation:run_study",
    "timestep": "girsanov.studies.timestep:run_study",
}
"""Every study by name; called with (out, command, parts, fast)."""
