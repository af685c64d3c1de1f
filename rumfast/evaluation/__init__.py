"""How close an unlearned model is to one that never saw the forget set."""

from rumfast.evaluation.bands import Interval, NullBand, null_band, t_interval
from rumfast.evaluation.membership import modified_entropy, svc_mia
from rumfast.evaluation.metrics import METRICS, Metric, ModelScores, compare, score_model
from rumfast.evaluation.tow import tug_of_war

__all__ = [
    "METRICS",
    "Interval",
    "Metric",
    "ModelScores",
    "NullBand",
    "compare",
    "modified_entropy",
    "null_band",
    "score_model",
    "svc_mia",
    "t_interval",
    "tug_of_war",
]
