"""Tests of kdlab/data."""
