"""Layer 5: when may we call. A fair line, late-bound bookings of the shared quota, breaker, retry."""

from headworks.vendor.transport import REFUSED
from headworks.vendor.vendor import Vendor, VendorCall, VendorStatistics

__all__ = ["REFUSED", "Vendor", "VendorCall", "VendorStatistics"]
