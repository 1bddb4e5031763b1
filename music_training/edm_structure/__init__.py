"""Structure of electronic dance music: section boundaries, energy, beats, downbeats and labels of a track."""

LABELS = ("intro", "buildup", "drop", "breakdown", "outro")  # the one order of the labels, everywhere
