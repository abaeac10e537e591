"""What tests of headworks, and of services built on it, need: time that jumps, vendors that enforce."""
