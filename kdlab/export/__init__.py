"""The student out of a run, and profiles of networks."""
