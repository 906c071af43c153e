"""Fine-tune without picking a trait up, watch it while it trains, and say what training did.

vaccine      the callback that adds a trait while a model learns
watch        the callback that reads traits while it does
data         conversations to training texts
config       what ``poise train`` is told
checkpoints  whole or not at all; steps that are numbers or not taken
folder       what a run began with, and what the disk refuses
train        LoRA fine-tuning under all of these
look         one model looked at, base or tuned
capability   perplexity, local question sets, lm-eval's tasks
shift        tuned models beside their base
compared     two looks to one comparison
measured     the report, as a value
gate         limits on it
card         a model card of it
"""
