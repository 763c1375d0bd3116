"""Profiles of hypothesis: `--hypothesis-profile deep` tries thirty times as many examples."""

from hypothesis import HealthCheck, settings

settings.register_profile("deep", max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
