"""Trains music models on rented GPU pods: library, codec, language model and four systems on one trainer."""
