"""Spectocloud: audio and emotion to a cloud of coloured points in time, frequency and energy."""
