"""Judges: who says how much classes look alike, and the transition matrix made of the answers."""
