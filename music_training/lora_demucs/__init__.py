"""LoRA adapters for HT-Demucs: a separator adapted to a genre or to new stems with a few megabytes."""
