"""Settings of the whole suite."""

from hypothesis import HealthCheck, settings

# Derandomised: a run tells about the change under test, never about the draw.
settings.register_profile(
    "suite", max_examples=30, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
