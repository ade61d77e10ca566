"""Log-probs from logits: forward and backward as one unit, against every peer at right answers."""

from bench import measure, shapes

PROBLEM = shapes.LOGITS


def test_ours(benchmark, case, keep, least_rounds):
    measure.ours(benchmark, case, keep, least_rounds=least_rounds)


def test_peer(benchmark, case, peer, keep, least_rounds):
    measure.peer(benchmark, case, peer, keep, least_rounds=least_rounds)
