"""Rank and similarity measures: pure functions, each a page of formulas."""
