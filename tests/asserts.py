"""Assertions that several test modules share."""
