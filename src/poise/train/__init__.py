"""Fine-tune without picking a trait up, and watch it while it trains.

config             the settings of ``poise train``
examples           conversations to token ids, with labels for the answers only
vaccine_callback   adds a trait while a model learns
monitor_callback   reads traits while it does
checkpoints        whole or not at all; non-finite steps are not taken
run_folder         what a run began with, and disk errors
lora               LoRA fine-tuning under all of these
"""
