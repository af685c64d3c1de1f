"""How close an unlearned model is to one that never saw the forget set."""

from rumfast.evaluation.audit import Auditor
from rumfast.evaluation.bands import Interval, NullBand, null_band, t_interval
from rumfast.evaluation.guards import utility
from rumfast.evaluation.membership import modified_entropy, svc_mia
from rumfast.evaluation.metrics import METRICS, Metric
from rumfast.evaluation.model_scores import SCORED, ModelScores, compare, score_model
from rumfast.evaluation.outputs import Outputs, collect
from rumfast.evaluation.tow import tug_of_war
from rumfast.evaluation.verdicts import Finding

__all__ = [
    "METRICS",
    "SCORED",
    "Auditor",
    "Finding",
    "Interval",
    "Metric",
    "ModelScores",
    "NullBand",
    "Outputs",
    "collect",
    "compare",
    "modified_entropy",
    "null_band",
    "score_model",
    "svc_mia",
    "t_interval",
    "tug_of_war",
    "utility",
]
