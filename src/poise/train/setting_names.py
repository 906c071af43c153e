"""What Axolotl and TRL's command line call the settings of ``poise train``."""

from __future__ import annotations

__all__ = ["OTHER_NAMES", "REFUSED_NAMES"]

OTHER_NAMES = {
    "base_model": "model",
    "model_name_or_path": "model",
    "datasets": "data",
    "dataset_name": "data",
    "output_dir": "out",
    "val_set_size": "held_out",
    "test_datasets": "eval_data",
    "rl": "method",
    "rl_beta": "beta",
    "dpo_beta": "beta",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "optimizer": "optim",
    "micro_batch_size": "batch",
    "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "sequence_len": "longest",
    "max_length": "longest",
    "sample_packing": "packing",
    "save_steps": "save_every",
    "logging_steps": "log_every",
    "torch_dtype": "dtype",
    "lora_r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.targets",
    "lora_modules_to_save": "lora.modules_to_save",
    "peft_trainable_token_indices": "lora.trainable_tokens",
    "lora_model_dir": "lora.start",
    "peft_use_rslora": "lora.rslora",
    "use_rslora": "lora.rslora",
    "peft_use_dora": "lora.dora",
    "use_dora": "lora.dora",
}
"""The setting that each of their names stands for."""

REFUSED_NAMES = {
    "eval_strategy": "eval_steps alone switches evaluation on",
    "evaluation_strategy": "eval_steps alone switches evaluation on",
    "save_strategy": "checkpoints are written every save_every steps",
    "save_total_limit": "the last two checkpoints are kept, and the best",
    "metric_for_best_model": "it is the loss on what is held out",
    "use_peft": "say adapter: lora, or adapter: none for all weights",
    "load_in_8bit": "use load_in_4bit, or neither",
    "completion_only_loss": "only answers are learnt, all those of a conversation",
    "precompute_ref_log_probs": "the reference would be read unsteered and compared with a steered policy",
    "neftune_noise_alpha": "noise on embeddings is not tested under a vaccine; use TRL with VaccineCallback",
    "fsdp": "under a vaccine it works in a loop of your own only; see docs/training.md",
    "fsdp_config": "under a vaccine it works in a loop of your own only; see docs/training.md",
    "deepspeed": "it is not tested under a vaccine; use TRL with VaccineCallback(untested=True)",
    "resume_from_checkpoint": "the same command goes on by itself; to go on from an adapter use lora.start",
    "push_to_hub": "upload the adapter's folder when the run is done",
    "chat_template": "the model's own is used; save another one with its tokenizer",
    "wandb_project": "set the environment variable WANDB_PROJECT",
}
"""Settings of theirs that there are none for here, and why or what to do."""
