"""How long the fuzz tests look: with --hypothesis-profile=long they try new examples, else the same few every time."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

EVERYTHING = list(HealthCheck)
settings.register_profile("quick", derandomize=True, max_examples=150, deadline=None, suppress_health_check=EVERYTHING)
settings.register_profile("long", max_examples=10_000, deadline=None, suppress_health_check=EVERYTHING)
settings.load_profile("quick")
