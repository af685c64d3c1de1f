"""The conductor: the stages of a run in order over one folder, resumable."""

from rumfast.pipeline.assess import evaluate
from rumfast.pipeline.stages import STAGES, Run, run

__all__ = ["STAGES", "Run", "evaluate", "run"]
