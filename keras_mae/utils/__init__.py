"""Helpers without any idea of models."""
