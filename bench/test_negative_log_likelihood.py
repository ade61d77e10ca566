"""The mean negative log-likelihood, the one loss that every linear cross-entropy offers: forward and backward as one unit."""

from bench import measure, shapes

PROBLEM = shapes.LIKELIHOOD


def test_ours(benchmark, case, keep, least_rounds):
    measure.ours(benchmark, case, keep, least_rounds=least_rounds)


def test_peer(benchmark, case, peer, keep, least_rounds):
    measure.peer(benchmark, case, peer, keep, least_rounds=least_rounds)
