"""MIDI from emotion and musical context: tokens, transformer, sampling, and whether it follows the emotion."""
