"""Blocks of a stack that run one after the other: how they are called, and the states between them."""

__all__: list[str] = []
