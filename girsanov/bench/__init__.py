"""``girsanov bench``: every method on problems whose answer is known, with three errors each."""

from girsanov.bench.report import run_bench as run_bench
from girsanov.bench.run import bench as bench
