"""Training: one function, `train(run, deadline)`, called again and again until the run is finished."""
