"""What frozen features are worth: linear and nearest-neighbour probes, curves of few labels, gaps between groups."""

from finetune.probing.judge import Card, Question, Row, askable, judge
from finetune.probing.questions import read_question

__all__ = ["Card", "Question", "Row", "askable", "judge", "read_question"]
