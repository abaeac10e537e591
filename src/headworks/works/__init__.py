"""Builds every layer from the policy and installs them on an application."""

from headworks.works.headworks import Headworks

__all__ = ["Headworks"]
