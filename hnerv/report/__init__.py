"""A run folder -> findings in words, plots, and one HTML page that can be sent."""
