"""How many examples hypothesis tries: few by default, thirty times as many with `--hypothesis-profile deep`."""

from hypothesis import HealthCheck, settings

QUICK, DEEP = 50, 1500


def examples(number: int) -> settings:
    """So many examples by default, of a test whose examples take longer than most."""
    factor = max(1, settings.default.max_examples // QUICK) if settings.default is not None else 1
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=number * factor, deadline=None, suppress_health_check=slow)
