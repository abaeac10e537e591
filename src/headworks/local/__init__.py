"""The whole stack on one machine: supervises its processes, drives load through them."""
