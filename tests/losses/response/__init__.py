"""Tests of losses on logits."""
