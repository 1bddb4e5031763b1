"""Emotion bridges: audio and emotion to coloured point clouds (Spectocloud), emotion and musical context to MIDI."""
