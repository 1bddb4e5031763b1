"""Checks that look at the pipeline from outside: before, during and after training."""
