"""Proof of what the documents promise: every claim measured beside a control that must fail."""
