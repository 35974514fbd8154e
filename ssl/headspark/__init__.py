"""Pretrain 3D head encoders by masked modelling that computes only what is visible."""
