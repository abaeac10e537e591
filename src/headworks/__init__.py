"""headworks: layered traffic control for FastAPI services that call rate-limited vendors."""
