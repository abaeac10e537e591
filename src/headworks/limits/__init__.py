"""The arithmetic of limits: pure numbers, no waiting, no store, no clock."""
