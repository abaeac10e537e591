"""Drives traffic through a running stack and tells who was served, refused, and why."""

from headworks.local.load.profiles import PROFILES, Profile
from headworks.local.load.report import Report
from headworks.local.load.run import CannotStart, LoadRun
from headworks.local.load.wire import NotLoopback, loopback

__all__ = ["PROFILES", "CannotStart", "LoadRun", "NotLoopback", "Profile", "Report", "loopback"]
