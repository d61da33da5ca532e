"""Utilities that know nothing about models: flags, files, distribution, memory."""
