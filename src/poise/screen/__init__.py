"""Find the training rows that would push a model towards a trait, before they do.

score      answers to projections: the core loop
answers    the base model's own answers y′, kept on disk
parts      windows of the data, kept as they are finished
ray        the same windows on a cluster
work       what the stages share, and the scoring of a whole data set
found      all scores together, and their figures
rules      which scores are flagged
second     a judge's opinion
fix, mend  flagged answers replaced, in the row's own shape
write      the files of rows and scores
shown      single answers, token by token
sums       a trait summed up; predict says what its mean means
summary    the values that the page is drawn from
job        all of it
estimate   what the cheap methods are worth on a sample
rows       the same from Python, without files
"""

from poise.screen.dataset_map import ColumnScorer, ScoredRow, screen_rows
from poise.screen.projection import SCORING_METHODS, ScoredAnswer, ScoringMethod, score_answers

__all__ = [
    "SCORING_METHODS",
    "ColumnScorer",
    "ScoredAnswer",
    "ScoredRow",
    "ScoringMethod",
    "score_answers",
    "screen_rows",
]
