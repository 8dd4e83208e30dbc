"""LIGER: integrative non-negative matrix factorization and alignment."""
