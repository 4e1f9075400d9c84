"""What holds for every test here."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No test fails because a machine is slow: the first `st.text()` of a fresh checkout alone takes seconds.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
