"""Tests of losses on relations of samples."""
