"""Codec and language model on AudioCraft: training, tokens, generation, export."""
