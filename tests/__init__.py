"""Tests of kdlab, one folder for each of its rooms."""
