"""The vendor's contract under load: what is rejected, what is used, who gets it, and what it costs."""
