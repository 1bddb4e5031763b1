"""The sources of audio: each fetches or composes it and writes a catalogue."""
