"""Processes that compile in place of this one: what they are told, and what they say."""
