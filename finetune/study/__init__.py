"""The transfer study: does pretraining help fine-tuning on phantoms, by how much, and how sure is that."""

from finetune.study.config import StudyConfig
from finetune.study.page import write_results
from finetune.study.plan import plan_lines
from finetune.study.results import read_page
from finetune.study.run import run_study

__all__ = ["StudyConfig", "plan_lines", "read_page", "run_study", "write_results"]
