"""How long the fuzz tests look: the same few examples every time, or, with --hypothesis-profile=long, new ones."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick", derandomize=True, max_examples=150, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("long", max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("quick")
