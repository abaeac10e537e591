"""A vendor that speaks OpenAI's and Anthropic's wire formats and really enforces its limits.

Knows no limiter of ours."""

from headworks.testing.fake_vendor.app import FakeVendor
from headworks.testing.fake_vendor.in_process import InProcess
from headworks.testing.fake_vendor.judge import Judge, Limit
from headworks.testing.fake_vendor.traffic import Delay, Faults, limit, model_limits

__all__ = ["Delay", "FakeVendor", "Faults", "InProcess", "Judge", "Limit", "limit", "model_limits"]
