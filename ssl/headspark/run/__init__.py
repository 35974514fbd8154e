"""What every run has, pretraining's and fine-tuning's alike: its folder, state, checkpoints, metrics, signals, device.

Nothing here knows a recipe or a model; `headspark.train` and `finetune.train` do.
"""
