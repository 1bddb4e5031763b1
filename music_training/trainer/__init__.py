"""The trainer that every system outside audiocraft shares: one loop on Accelerate, exact resume, callbacks, run folders."""
