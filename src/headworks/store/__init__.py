"""Shared state: one question, one verdict. The only package that knows Redis and Valkey."""
