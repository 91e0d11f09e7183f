"""Experiments: the tables and figures of the paper, and our own studies. Importing this package registers all of them."""

from maga.experiments import catalogue, judging, opinions, search, studies
