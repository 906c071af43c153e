"""Say what fine-tuning did, and hold it against limits.

evaluation   one model, base or tuned: its readings, judged answers and capability
capability   perplexity, local question sets, lm-eval's tasks
comparison   two evaluations to one comparison
measure      tuned models beside their base
report       the comparison as a value
gate         limits on it
model_card   a model card of it
"""
