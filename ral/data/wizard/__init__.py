"""Describes a user's own table: guesses columns and words, and asks what is not certain."""
