"""Fetching raw data from where its sources publish it; each can be stopped, and goes on where it was."""
