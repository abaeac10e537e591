"""Renders what runs the pods: the server's flags, manifests, image."""
