"""What neurons react to and what they write: contexts in a text, and tokens that they promote and demote."""

__all__: list[str] = []
