"""Polynya connects two programs across NATs and firewalls."""
