"""Seeded attacks on everything that reads, ranks, writes or is interrupted; ``python -m tests.hostile --minutes N`` runs them."""
