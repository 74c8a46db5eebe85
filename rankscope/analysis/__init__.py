"""Analyses: measures mapped over the updates of one or two sources, into results."""
