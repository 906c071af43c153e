"""Base, retrieval, fine-tuning and both, on one task: accuracy, cost, and what each does to the model's character.

task        the YAML
arms        what is compared
questions   evaluation questions with answers
scoring     whether an answer is right
answering   questions to answers, arm by arm
character   where each trait stands in an arm
measure     all of it, with training, resumable
figures     measurements to figures with their intervals
verdict     figures to a recommendation
result      all of it as a value
"""

from poise.comparison.arms import ARMS, ArmName
from poise.comparison.figures import summarise
from poise.comparison.measure import Measurements, measure_arms
from poise.comparison.questions import EvaluationQuestion, learnt_questions, read_questions
from poise.comparison.result import ArmResult, Comparison, Recommendation, load_comparison, save_comparison
from poise.comparison.task import ComparisonTask

__all__ = [
    "ARMS",
    "ArmName",
    "ArmResult",
    "Comparison",
    "ComparisonTask",
    "EvaluationQuestion",
    "Measurements",
    "Recommendation",
    "learnt_questions",
    "load_comparison",
    "measure_arms",
    "read_questions",
    "save_comparison",
    "summarise",
]
