"""Tests of what the figures of several benchmarks share."""

from benchmarks import figures
from graphs.solvers import SOLVERS


def test_every_solver_has_a_colour_of_its_own():
    colours = [figures.COLOURS[solver] for solver in SOLVERS if solver != "lu"]
    assert len(set(colours)) == len(colours)
