"""What a study answers beyond its embedding: which cells these are, and what differs between conditions."""
