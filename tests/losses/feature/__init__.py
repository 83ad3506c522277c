"""Tests of losses on layers."""
