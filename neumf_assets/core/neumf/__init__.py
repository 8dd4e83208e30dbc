"""Neural matrix factorization for counts: network, objectives, training, prediction, evaluation."""
