"""Find the training rows that would push a model towards a trait, before they do.

projection       answers to projections: the core loop
base_answers     the base model's own answers y′, kept on disk
reading_cache    projections of texts that were read before
shards           windows of the data, kept as they are finished
ray_backend      the same windows on a cluster
ray_worker       what runs on its machines
driver_disk      what they reach of the driver's disk
scoring          what the stages share, and the scoring of a whole data set
scores           all scores together, and their statistics
flagging         which scores are flagged
judge_review     a judge's opinion of flagged answers
judge_cascade    a judge with a budget: who is drawn, what is estimated
judged_answers   the answers that it saw, written
replacement      flagged answers replaced by the model's own
row_editor       an answer put into a row, in the row's own shape
output           the files of rows and scores
examples         single answers, token by token
trait_summary    one trait summed up
prediction       what a trait's mean says of fine-tuning
summary          the values that the report is drawn from
pipeline         all of it
compare_methods  what the cheap methods are worth on a sample
dataset_map      the same from Python, without files
preference       preference pairs: the whole screening
pair_scores      readings of both answers, and what is between them
pair_files       the files of rows and scores of pairs
pair_swap        a row's two answers swapped, in the row's own shape
pair_examples    single pairs, token by token
pair_rows        pairs from Python, without files
"""

from poise.screen.dataset_map import ColumnScorer, ScoredRow, screen_rows
from poise.screen.pair_rows import ScoredPair, screen_preferences
from poise.screen.projection import SCORING_METHODS, ScoredAnswer, ScoringMethod, score_answers

__all__ = [
    "SCORING_METHODS",
    "ColumnScorer",
    "ScoredAnswer",
    "ScoredPair",
    "ScoredRow",
    "ScoringMethod",
    "score_answers",
    "screen_preferences",
    "screen_rows",
]
