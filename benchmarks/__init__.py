"""Studies of speed and quality; results are kept beside them with their provenance."""
