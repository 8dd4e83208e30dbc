"""Reading, validating, filtering, reshaping and simulating count matrices."""
