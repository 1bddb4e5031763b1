"""Sources of audio; each writes a catalogue: studio (composed), folder (a person's own), and the public data sets."""
