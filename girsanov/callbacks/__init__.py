"""What happens around iterations. Their order matters: throughput, metrics, evaluation, alarms, patience, trackers,
pictures, progress, checkpoints.

The throughput is added before the metrics are written. The evaluation adds its numbers to the metrics as
``eval/...``, so the callbacks after it see them; checkpoints come last, so that a
checkpoint holds what all the others have put into ``run.callback_state``.
"""

from girsanov.callbacks.alarms import ALARMS as ALARMS
from girsanov.callbacks.alarms import Alarm as Alarm
from girsanov.callbacks.alarms import Alarms as Alarms
from girsanov.callbacks.checkpoints import Checkpoints as Checkpoints
from girsanov.callbacks.metrics import Evaluation as Evaluation
from girsanov.callbacks.metrics import Metrics as Metrics
from girsanov.callbacks.patience import Patience as Patience
from girsanov.callbacks.pictures import Pictures as Pictures
from girsanov.callbacks.progress import Progress as Progress
from girsanov.callbacks.throughput import Throughput as Throughput
from girsanov.callbacks.trackers import TRACKERS as TRACKERS
