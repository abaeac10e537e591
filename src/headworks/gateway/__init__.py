"""Layer 1: who may enter. Renders edge configuration from the policy; runs nothing in the pod."""
