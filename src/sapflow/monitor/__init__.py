"""What every process shows of itself: counters, ratios, its control plane."""
