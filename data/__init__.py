"""Data sets: sources, tokenizers, packing, the tokenised cache and the order of batches.

Floor 1: nothing here reads a configuration or knows a model; ``dataloader.py`` brings both together.
"""
