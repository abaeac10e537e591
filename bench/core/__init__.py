"""How fast, how small and how exact the limiter is, beside its peers and beside what is possible."""
