"""Is a run working? Measures of its representation without labels, and a verdict in words."""
